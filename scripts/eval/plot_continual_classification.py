"""Pictures of class-incremental classification: accuracies after each task, numbers as CSV.

Example: python scripts/eval/plot_continual_classification.py
    --input eval/continual_classification.json
"""

import argparse
import sys
from pathlib import Path

from nl.cli_measure import guarded


def main() -> int:
    """Read the flags, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path("eval/continual_classification.json")
    words = "of continual_classification.py; default: %(default)s"
    parser.add_argument("--input", type=Path, default=default, help=words)
    parser.add_argument("--output", type=Path, help="PNG; default: beside the input")
    args = parser.parse_args()

    def work() -> None:
        from nl.report.continual import plot_classes

        for path in plot_classes(args.input, args.output or args.input.with_suffix(".png")):
            print(f"written: {path}")

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
