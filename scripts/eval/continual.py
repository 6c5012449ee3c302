"""Forgetting: losses of every segment after every phase of one run, with BWT, FWT and forgetting.

Example: python scripts/eval/continual.py --checkpoints runs/forgetting/<run>
    --segments-yaml configs/data/continual_segments_sample.yaml
A single run directory means the checkpoints at the ends of its phases.
"""

import sys

from nl.cli_continual import continual
from nl.cli_measure import guarded, parser_for


def main() -> int:
    """Read the flags, measure, print the matrix."""
    parser = parser_for(__doc__, "eval/continual.json", single=False)
    flag, shown = parser.add_argument, "default: %(default)s"
    flag("--checkpoints", nargs="+", action="extend", required=True, help="in order of training")
    flag("--segments-yaml", required=True, help="the columns: name, domain, split")
    flag("--max-batches", type=int, default=8, help="batches of documents per segment; " + shown)
    flag("--max-tokens", type=int, default=1024, help="per document; 0: all; " + shown)
    flag("--no-initial", action="store_true", help="leave out the row of the untrained model")
    args = parser.parse_args()
    return guarded(lambda: continual(args))


if __name__ == "__main__":
    sys.exit(main())
