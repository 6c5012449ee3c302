"""Train a lossless SentencePiece tokenizer on the train split of a corpus.

Example: python scripts/data/train_tokenizer.py --vocab-size 4096 --output-dir data/stdlib
"""

import argparse
import sys
from pathlib import Path

from nl.data.prep.command import run
from nl.data.prep.train_tokenizer import TokenizerOptions, train_tokenizer


def main() -> None:
    """Read the flags, train, print the digest."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag, shown = parser.add_argument, "default: %(default)s"
    flag("--corpus", type=Path, default=Path("data/stdlib/corpus"), help=shown)
    flag("--output-dir", type=Path, default=Path("data/stdlib"), help=shown)
    flag("--log-file", type=Path, help="default: <output-dir>/tokenizer_log.json")
    flag("--vocab-size", type=int, default=4096, help=shown)
    flag("--model-type", default="unigram", help="unigram or bpe; " + shown)
    flag("--character-coverage", type=float, default=0.9995, help=shown)
    flag("--sample-mb", type=float, default=2.0, help="megabytes of text to train on; " + shown)
    flag("--num-threads", type=int, default=1, help="changes a unigram model; " + shown)
    options = vars(parser.parse_args())
    corpus, output = options.pop("corpus"), options.pop("output_dir")
    log_file = options.pop("log_file")
    record, written = train_tokenizer(corpus, output, TokenizerOptions(**options), log_file)
    print(f"{output / record['model']}: {'written' if written else 'up to date, nothing to do'}")
    print(f"  sha256 {record['sha256']}, {record['sample_bytes']:,} bytes, {record['seconds']} s")


if __name__ == "__main__":
    sys.exit(run(main))
