r"""Filter documents by language, length and quality: from a corpus or a raw source to a corpus.

Example: python scripts/data/filter_corpus.py --dataset json --data-files web/*.jsonl.gz \
  --output-path data/filtered --target-lang en --min-chars 200 --quality gopher --workers 8
"""

import argparse
import sys
from pathlib import Path

from nl.data.prep.command import run
from nl.data.prep.engine import Executor
from nl.data.prep.filter_command import add_source_flags, filter_command
from nl.data.prep.filters_checks import FilterOptions
from nl.data.prep.flags import add_flags, read_flags


def main() -> None:
    """Read the flags, filter, print the counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-path", type=Path, required=True, help="corpus directory to make")
    add_source_flags(parser)
    add_flags(parser, FilterOptions)
    add_flags(parser, Executor, kind="executor")
    args = parser.parse_args()
    for line in filter_command(args, read_flags(args, FilterOptions), read_flags(args, Executor)):
        print(line)


if __name__ == "__main__":
    sys.exit(run(main))
