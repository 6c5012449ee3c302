"""Write splits of a data directory as HDF5 files of windows, one file per split.

Layout: /token_chunks, /doc_idx_for_chunk, /category_for_chunk, /category_code; import_shards.py
reads them again.

Example: python scripts/data/export_hdf5.py data/stdlib_components --output data/stdlib_len100
"""

import argparse
import sys
from pathlib import Path

from nl.data.prep.command import run
from nl.data.prep.export_hdf5 import export_hdf5


def main() -> None:
    """Read the flags, write the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag, shown = parser.add_argument, "default: %(default)s"
    flag("path", type=Path, help="data directory")
    flag("--output", type=Path, required=True, help="file without _<split>.hdf5")
    flag("--splits", nargs="+", default=["train", "val", "test"], help=shown)
    flag("--components", nargs="+", default=(), help="default: all")
    flag("--window", type=int, default=100, help="tokens of a row; " + shown)
    args = parser.parse_args()
    for split in args.splits:
        file, rows = export_hdf5(args.path, args.output, split, args.components, args.window)
        print(f"{file}: {sum(rows.values()):,} windows ({rows})")


if __name__ == "__main__":
    sys.exit(run(main))
