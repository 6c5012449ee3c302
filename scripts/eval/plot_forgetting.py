"""Pictures of forgetting: R as heat maps, every segment's loss over the phases, numbers as CSV.

Example: python scripts/eval/plot_forgetting.py --input eval/continual.json
Of a plan each heat map is the mean over n seeds.
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
    flag, shown = parser.add_argument, "default: %(default)s"
    flag(
        "--input", type=Path, default=Path("eval/continual.json"), help="of continual.py; " + shown
    )
    flag("--output", type=Path, help="PNG; default: beside the input")
    flag("--memorize", default="off", help="memorisation mode that is drawn; " + shown)
    args = parser.parse_args()

    def work() -> None:
        from nl.report.continual import plot_forgetting

        target = args.output or args.input.with_suffix(".png")
        for path in plot_forgetting(args.input, target, args.memorize):
            print(f"written: {path}")

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
