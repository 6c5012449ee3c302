"""Write a SentencePiece model as tokenizer.json, and measure on texts how many lines are equal.

Example: python scripts/data/export_tokenizer.py --tokenizer-path data/stdlib/tokenizer.model \
  --corpus data/stdlib/corpus --output-dir data/stdlib/hf
"""

import argparse
import itertools
import sys
from pathlib import Path

from nl.data.prep.command import run
from nl.data.prep.coverage import documents_by_domain
from nl.data.prep.hf_export import export_hf


def main() -> None:
    """Read the flags, write, print the rate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag, shown = parser.add_argument, "default: %(default)s"
    flag("--tokenizer-path", type=Path, required=True, help="a SentencePiece .model")
    flag("--output-dir", type=Path, required=True, help="gets tokenizer.json and its config")
    flag("--corpus", type=Path, help="corpus directory to compare on")
    flag("--split", default="val", help="split of the corpus; " + shown)
    flag("--sample-file", nargs="*", default=[], help="texts to compare on: .txt, .jsonl ...")
    flag("--max-lines", type=int, default=10_000, help="documents of each domain; " + shown)
    a = parser.parse_args()
    domains = documents_by_domain(a.corpus, a.split, a.sample_file, a.max_lines)
    result = export_hf(
        a.tokenizer_path, a.output_dir, itertools.chain.from_iterable(domains.values())
    )
    print(f"{a.output_dir}: tokenizer.json, tokenizer_config.json, export_log.json")
    print(f"  {result.equal:,} of {result.lines:,} lines have the same ids ({result.rate:.4%})")
    print(f"  {result.round_trips:,} of {result.documents:,} documents come back as they were")


if __name__ == "__main__":
    sys.exit(run(main))
