"""Runs or saved results side by side: paired differences with 95 % intervals, a page, markdown.

Example: python scripts/eval/compare.py --inputs runs/a/<run> runs/b/<run> --suite perplexity
    zeroshot --set zeroshot.samples=200 --output eval/compare.html
The first input is what the others are compared with. Without --suite their saved results are read:
rows of a run, a result JSON, or a folder of them, with the samples.jsonl that evaluations leave.
"""

import argparse
import sys
from pathlib import Path

from nl.cli_compare import compare
from nl.cli_measure import guarded


def main() -> int:
    """Read the flags, measure or read, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag, shown = parser.add_argument, "default: %(default)s"
    flag("--inputs", nargs="+", action="extend", default=[], help="runs, result files, folders")
    flag("--names", nargs="+", help="of the columns; default: from the paths")
    for letter in "ab":
        flag(f"--{letter}-checkpoint", help="as --inputs; a is the first, b the second")
        flag(f"--{letter}-config", help="not needed: a checkpoint holds its own")
    flag("--suite", nargs="+", default=[], help="evaluators to run on every input; none: read")
    sets = "settings of those evaluators, <suite>.<field>=<value>; nl help evaluator=<kind>"
    flag("--set", nargs="+", default=[], help=sets)
    flag("--data", help="data directory; default: the one each run was trained on")
    flag("--device", default="cpu", choices=("cpu", "cuda"), help=shown)
    flag("--batch-size", type=int, default=8, help="rows per forward pass; " + shown)
    flag("--limit", type=int, default=0, help="samples per task; 0: no limit; " + shown)
    flag("--seed", type=int, default=0, help="seed of everything that is sampled; " + shown)
    flag("--output", type=Path, default=Path("eval/compare.html"), help="page; " + shown)
    args = parser.parse_args()
    return guarded(lambda: compare(args))


if __name__ == "__main__":
    sys.exit(main())
