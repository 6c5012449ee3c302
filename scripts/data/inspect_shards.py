"""Show what a data directory holds and check it: every digest, count and id, repeated documents.

Prints counts, lengths, rates of EOS and unknown tokens, repetitions and decoded samples by split
and domain. Exit code 1 if something is wrong: a damaged shard, a wrong count, a held-out document
that is in train.

Example: python scripts/data/inspect_shards.py data/stdlib --samples 2 --unigram
"""

import argparse
import json
import sys
from pathlib import Path

from nl.data.prep.command import run
from nl.data.prep.inspection import describe, inspect_data


def main() -> None:
    """Read the flags, print the lines or the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag, shown = parser.add_argument, "default: %(default)s"
    flag("path", type=Path, help="data directory")
    flag("--samples", type=int, default=1, help="documents shown per domain; " + shown)
    flag("--window", type=int, default=128, help="tokens of windows looked for twice; " + shown)
    flag("--unigram", action="store_true", help="also the unigram loss of val, test")
    flag("--json", action="store_true", help="print the report as JSON")
    args = parser.parse_args()
    report = inspect_data(args.path, samples=args.samples, window=args.window)
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        for line in describe(report, args.path, unigram=args.unigram):
            print(line)
    if report["problems"]:
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(run(main))
