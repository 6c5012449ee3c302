"""Tokenize a corpus, or a raw source, into shards that a run can map, with a manifest of digests.

Example: python scripts/data/shard_corpus.py --tokenizer-path data/stdlib/tokenizer.model
         python scripts/data/shard_corpus.py --dataset parquet --data-files "raw/*.parquet" \
           --tokenizer-path tok/tokenizer.model --output-dir data/mine --name mine --workers 8
"""

import argparse
import sys

from nl.data.prep.command import run
from nl.data.prep.engine import Executor
from nl.data.prep.flags import add_flags, read_flags
from nl.data.prep.shard_command import add_shard_flags, shard_command


def main() -> None:
    """Read the flags, shard, print the counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shard_flags(parser)
    add_flags(parser, Executor, kind="executor")
    args = parser.parse_args()
    for line in shard_command(args, read_flags(args, Executor)):
        print(line)


if __name__ == "__main__":
    sys.exit(run(main))
