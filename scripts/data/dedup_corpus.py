"""Drop duplicates over all domains of a corpus: equal texts, then nearly equal ones (MinHash).

Example: python scripts/data/dedup_corpus.py --corpus data/filtered --output-path data/distinct
"""

import argparse
import sys
from pathlib import Path

from nl.data.prep.command import run
from nl.data.prep.dedup import DedupOptions, dedup_corpus, dry_run
from nl.data.prep.engine import Executor
from nl.data.prep.flags import add_flags, read_flags
from nl.data.prep.stage import told


def main() -> None:
    """Read the flags, drop or only count, print the counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag = parser.add_argument
    flag("--corpus", type=Path, required=True, help="corpus directory")
    flag("--output-path", type=Path, required=True, help="corpus directory to make")
    flag("--dry-run", action="store_true", help="only count what would go; write no corpus")
    add_flags(parser, DedupOptions)
    add_flags(parser, Executor, kind="executor")
    args = parser.parse_args()
    call = args.corpus, args.output_path, read_flags(args, DedupOptions), read_flags(args, Executor)
    log, done = (dry_run(*call), False) if args.dry_run else dedup_corpus(*call)
    for line in told(args.output_path, log, done, dry=args.dry_run):
        print(line)


if __name__ == "__main__":
    sys.exit(run(main))
