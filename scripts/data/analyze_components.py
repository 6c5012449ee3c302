"""Say what components hold: of a data directory, or of an HDF5 file of windows.

By split and component: documents, tokens, windows, tokens in none, unknown tokens, bytes per token,
windows that repeat, runs of tokens that training text has, too; digests are compared. Exit code 1
if something is wrong.

Example: python scripts/data/analyze_components.py data/stdlib_components --json report.json
"""

import argparse
import sys
from pathlib import Path

from nl.data.files import check_writable, write_json
from nl.data.prep.analysis import NGRAM, analyse, analyse_hdf5, hdf5_table, table
from nl.data.prep.command import run


def main() -> None:
    """Read the flags, print the table, write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag, shown = parser.add_argument, "default: %(default)s"
    flag("path", type=Path, help="data directory, or file.hdf5")
    flag("--window", type=int, default=100, help="tokens of a window; " + shown)
    flag("--ngram", type=int, default=NGRAM, help="tokens of a run compared with train; " + shown)
    flag("--json", type=Path, help="also write the report to this file")
    args = parser.parse_args()
    check_writable(args.json)
    if args.path.suffix in (".hdf5", ".h5"):
        report = analyse_hdf5(args.path)
        lines = hdf5_table(report)
    else:
        report = analyse(args.path, args.window, args.ngram)
        lines = table(report)
    for line in lines:
        print(line)
    if args.json is not None:
        write_json(args.json, report)
    if report["problems"]:
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(run(main))
