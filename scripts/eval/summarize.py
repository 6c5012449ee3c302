"""Numbers of result files side by side, as a markdown table.

Example: python scripts/eval/summarize.py --inputs eval/zeroshot.json eval/niah.json
    --keys "cloze_*" "*choice_accuracy.context" --output eval/summary.md
A key is dotted; of the result files here it is <task>.<metric>.<mode>. * stands for any text.
"""

import argparse
import sys
from pathlib import Path

from nl.cli_measure import guarded
from nl.report.summary import summary
from nl.run.files import writable_folder, write_atomic


def main() -> int:
    """Read the flags, write and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag, shown = parser.add_argument, "default: %(default)s"
    flag("--inputs", type=Path, nargs="+", action="extend", required=True, help="JSON files")
    flag("--keys", nargs="+", action="extend", default=[], help="dotted, with *; default: all")
    flag("--output", type=Path, default=Path("eval/summary.md"), help="markdown; " + shown)
    args = parser.parse_args()

    def work() -> None:
        text = summary(args.inputs, [key for word in args.keys for key in word.split(",") if key])
        writable_folder(args.output.parent, "--output")
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.output, text)
        sys.stdout.write(text)
        print(f"written: {args.output}")

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
