"""Show what a data directory holds: counts, digest check, decoded samples, unigram loss.

Example: python scripts/data/inspect_shards.py data/stdlib --samples 2 --unigram
"""

import argparse
import sys
from pathlib import Path

from nl.data.prep.command import run
from nl.data.prep.inspection import describe


def main() -> None:
    """Read the flags, print the lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, help="data directory")
    parser.add_argument(
        "--samples", type=int, default=1, help="documents shown per domain (default: %(default)s)"
    )
    parser.add_argument("--unigram", action="store_true", help="also the unigram loss of val, test")
    args = parser.parse_args()
    for line in describe(args.path, samples=args.samples, unigram=args.unigram):
        print(line)


if __name__ == "__main__":
    sys.exit(run(main))
