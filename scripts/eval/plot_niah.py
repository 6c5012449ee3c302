"""Heat maps (length by depth) of needle results as PNG, with the numbers as CSV beside it.

Example: python scripts/eval/plot_niah.py eval/niah.json --output eval/niah.png
"""

import argparse
import sys
from pathlib import Path

from nl.cli_measure import guarded
from nl.config import ConfigError
from nl.report.heat import heat_csv, save_png
from nl.report.needle_maps import needle_maps, read_details


def main() -> int:
    """Read the flags, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag, shown = parser.add_argument, "default: %(default)s"
    flag("inputs", nargs="+", type=Path, help="JSON of niah.py, passkey.py or recall.py")
    flag("--names", nargs="+", default=[], help="of the inputs; default: their file names")
    flag("--metric", help="default: choice_accuracy, exact_match or generated_match, if there")
    flag("--output", type=Path, default=Path("eval/niah.png"), help="PNG file; " + shown)
    args = parser.parse_args()

    def work() -> None:
        if args.output.suffix != ".png":
            raise ConfigError(f"--output: {args.output}; must end in .png.")
        if args.names and len(args.names) != len(args.inputs):
            raise ConfigError(f"--names: {len(args.names)} for {len(args.inputs)} inputs.")
        names = args.names or [path.stem for path in args.inputs]
        sources = [(n, read_details(p)) for n, p in zip(names, args.inputs, strict=True)]
        figure = needle_maps(sources, args.metric, args.output.stem)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        save_png(figure, args.output)
        args.output.with_suffix(".csv").write_text(heat_csv(figure))
        print(f"written: {args.output}, {args.output.with_suffix('.csv')}")

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
