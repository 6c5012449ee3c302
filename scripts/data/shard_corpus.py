"""Tokenize a corpus into shards that a run can map, with a manifest of digests.

Example: python scripts/data/shard_corpus.py --tokenizer-path data/stdlib/tokenizer.model
"""

import argparse
import sys
from pathlib import Path

from nl.config import unstructure
from nl.data.files import write_json
from nl.data.prep.command import run
from nl.data.prep.shard import SHARD_TOKENS, shard_corpus


def main() -> None:
    """Read the flags, shard, print the counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag, shown = parser.add_argument, "default: %(default)s"
    flag("--corpus", type=Path, default=Path("data/stdlib/corpus"), help=shown)
    flag("--tokenizer-path", default="data/stdlib/tokenizer.model", help="or bytes; " + shown)
    flag("--output-dir", type=Path, default=Path("data/stdlib"), help=shown)
    flag("--shard-tokens", type=int, default=SHARD_TOKENS, help=shown)
    flag("--log-file", type=Path, help="also write the counts to this JSON file")
    a = parser.parse_args()
    manifest, written = shard_corpus(
        a.corpus, a.tokenizer_path, a.output_dir, shard_tokens=a.shard_tokens
    )
    if a.log_file is not None:
        write_json(a.log_file, unstructure(manifest))
    print(f"{a.output_dir}: {'written' if written else 'up to date, nothing to do'}")
    for split, domains in manifest.splits.items():
        for name, d in domains.items():
            print(f"  {split}/{name}: {d.documents:,} documents, {d.tokens:,} tokens")


if __name__ == "__main__":
    sys.exit(run(main))
