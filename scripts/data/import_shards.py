"""Make a data directory from token files of other programs; ids and widths are checked.

Formats: npy (rows (N, T), EOS after documents), datatrove (.ds with .ds.index), hdf5
(/token_chunks, /doc_idx_for_chunk, /category_for_chunk), bin (tokens.bin with index.jsonl and
splits.json).

Example: python scripts/data/import_shards.py --format npy --tokenizer-path spm.model \
  --output-dir data/old train/wiki=old/wiki val/wiki=old/wiki_val
"""

import argparse
import sys
from pathlib import Path

from nl.data.prep.command import run
from nl.data.prep.flags import add_flags, read_flags
from nl.data.prep.import_shards import ImportOptions, import_shards, told
from nl.data.readers import FORMATS, parse_input, read_split_map


def main() -> None:
    """Read the flags, import, print the counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag = parser.add_argument
    flag("inputs", nargs="+", metavar="[SPLIT[/DOMAIN]=]PATH", help="files or directories")
    flag("--format", required=True, help=", ".join(FORMATS))
    flag("--split-map", type=Path, help="JSON {train|validation|test: [documents]}")
    flag("--output-dir", type=Path, required=True, help="data directory; no default")
    add_flags(parser, ImportOptions)
    args = parser.parse_args()
    splits = None if args.split_map is None else read_split_map(args.split_map)
    inputs = [parse_input(text, args.format, splits) for text in args.inputs]
    manifest, written = import_shards(inputs, args.output_dir, read_flags(args, ImportOptions))
    for line in told(manifest, args.output_dir, written):
        print(line)


if __name__ == "__main__":
    sys.exit(run(main))
