"""Class-incremental text classification: examples are memorised task by task, nothing is trained.

Example: python scripts/eval/continual_classification.py --checkpoint runs/pilot_smoke/<run> --smoke
Without --dataset and --local-jsonl the examples are snippets of held-out Python modules of the
data directory ("modules"); clinc, banking77 and dbpedia14 are read from
<data-dir>/<name>/train.jsonl and test.jsonl, or fetched from the hub into it.
"""

import argparse
import sys

from nl.cli_classes import classes
from nl.cli_measure import guarded, parser_for


def boolean(word: str) -> bool:
    """True or False as the command line says it."""
    if word.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"{word!r}; true or false")
    return word.lower() in ("true", "1")


def main() -> int:
    """Read the flags, measure, print the matrices."""
    parser = parser_for(__doc__, "eval/continual_classification.json")
    flag, shown = parser.add_argument, "default: %(default)s"
    names = ("modules", "local", "clinc", "banking77", "dbpedia14")
    flag("--dataset", choices=names, help="default: modules, or the file of --local-jsonl")
    flag("--local-jsonl", help='lines of {"text": ..., "label": ...}')
    flag("--data-dir", help="local mirrors of hub data sets; default: eval/mirrors")
    flag("--task-size", type=int, default=10, help="labels per task; " + shown)
    flag("--train-per-label", type=int, default=25, help="examples memorised; " + shown)
    flag("--eval-per-label", type=int, default=25, help="examples classified; " + shown)
    flag("--max-tasks", type=int, default=0, help="0: as many as there are; " + shown)
    aware = "candidates are the labels of an example's own task, else all seen; " + shown
    flag("--task-aware", type=boolean, nargs="?", const=True, default=True, help=aware)
    flag("--length-normalise", action="store_true", help="mean over a label's tokens, not sum")
    flag("--max-tokens", type=int, default=128, help="of a text; " + shown)
    flag("--max-samples", type=int, default=0, help="examples read per split; 0: all; " + shown)
    flag("--smoke", action="store_true", help="2 tasks of 3 labels, 4 examples each")
    args = parser.parse_args()
    return guarded(lambda: classes(args))


if __name__ == "__main__":
    sys.exit(main())
