"""Forgetting: losses of every segment after every phase, with BWT, FWT and what forgetting costs.

Of given checkpoints of one run (a single run directory means the ends of its phases):
    python scripts/eval/continual.py --checkpoints runs/forgetting/<run>
        --segments-yaml configs/data/continual_segments_sample.yaml
Or of sequential runs that a plan names, trained here where they are not finished yet:
    python scripts/eval/continual.py --plan configs/continual/smoke.yaml --root runs/continual
"""

import sys

from nl.cli_continual import continual
from nl.cli_measure import guarded, parser_for


def main() -> int:
    """Read the flags, measure, print the matrix."""
    parser = parser_for(__doc__, "eval/continual.json", single=False)
    flag, shown = parser.add_argument, "default: %(default)s"
    flag("--checkpoints", nargs="+", action="extend", help="in order of training")
    flag("--segments-yaml", help="the columns: name, domain, split")
    flag("--max-batches", type=int, default=8, help="batches of documents per segment; " + shown)
    flag("--max-tokens", type=int, default=1024, help="per document; 0: all; " + shown)
    flag("--no-initial", action="store_true", help="leave out the row of the untrained model")
    always = "what always holds: State and attention are carried inside a document"
    flag("--eval-use-fast-state", action="store_true", help=always)
    flag("--eval-use-attention-cache", action="store_true", help=always)
    flag("--plan", help="phases, models and methods, such as configs/continual/smoke.yaml")
    flag("--root", default="runs/continual", help="run directories of the plan; " + shown)
    flag("--only", nargs="+", metavar="MODEL/METHOD", help="these rows of the plan; default: all")
    flag("--seeds", type=int, default=0, help="the first N seeds of the plan; 0: all")
    flag("--report-only", action="store_true", help="train nothing, measure finished runs")
    args = parser.parse_args()
    return guarded(lambda: continual(args))


if __name__ == "__main__":
    sys.exit(main())
