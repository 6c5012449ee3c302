"""Build the `stdlib` corpus from this Python: prose (help topics, docstrings) and code.

Example: python scripts/data/build_stdlib.py --output-dir data/stdlib/corpus --limit-mb 6
"""

import argparse
import sys
from pathlib import Path

from nl.data.documents import total_bytes, total_documents
from nl.data.prep.command import run
from nl.data.prep.stdlib import build_stdlib


def main() -> None:
    """Read the flags, build, print what there is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output-dir", type=Path, default=Path("data/stdlib/corpus"), help="default: %(default)s"
    )
    parser.add_argument(
        "--limit-mb", type=float, default=6.0, help="megabytes per domain (default: %(default)s)"
    )
    args = parser.parse_args()
    manifest, written = build_stdlib(args.output_dir, limit_mb=args.limit_mb)
    print(f"{args.output_dir}: {'written' if written else 'up to date, nothing to do'}")
    for split, domains in manifest.splits.items():
        for domain, texts in domains.items():
            documents, size = total_documents(texts), total_bytes(texts)
            print(f"  {split}/{domain}: {documents:,} documents, {size:,} bytes")


if __name__ == "__main__":
    sys.exit(run(main))
