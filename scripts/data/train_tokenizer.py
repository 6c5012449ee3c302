"""Train a lossless tokenizer on a corpus, on data sets or on a manifest of them.

SentencePiece, or byte-level BPE of the tokenizers package (--model-type byte_bpe).

Example: python scripts/data/train_tokenizer.py --vocab-size 4096 --output-dir data/stdlib
"""

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from nl.data.prep.command import run
from nl.data.prep.train_tokenizer import TokenizerOptions, train_on
from nl.data.prep.training_text import TrainingText, add_text_flags

INPUTS = [f.name for f in fields(TrainingText) if f.name != "sample_limit"]


def main() -> None:
    """Read the flags, train, print the digest."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag, shown = parser.add_argument, "default: %(default)s"
    add_text_flags(parser)
    flag("--sample-limit", type=int, help="documents of each data set; default: all, or 100000")
    flag("--output-dir", type=Path, help="default: the corpus' parent, or the manifest's")
    flag("--log-file", type=Path, help="default: <output-dir>/tokenizer_log.json")
    flag("--vocab-size", type=int, default=4096, help=shown)
    flag("--model-type", default="unigram", help="unigram, bpe or byte_bpe; " + shown)
    flag("--character-coverage", type=float, default=0.9995, help=shown)
    flag("--sample-mb", type=float, default=2.0, help="megabytes of text to train on; " + shown)
    flag("--num-threads", type=int, default=1, help="changes a unigram model; " + shown)
    switch = argparse.BooleanOptionalAction
    flag("--hard-vocab-limit", action=switch, default=True, help="exactly so many pieces")
    flags = vars(parser.parse_args())
    where, log = flags.pop("output_dir"), flags.pop("log_file")
    text = TrainingText(**{k: flags.pop(k) for k in INPUTS}, sample_limit=flags["sample_limit"])
    output = where or text.output()
    record, written = train_on(text.domains(), output, TokenizerOptions(**flags), log)
    print(f"{output / record['model']}: {'written' if written else 'up to date, nothing to do'}")
    print(f"  sha256 {record['sha256']}, {record['sample_bytes']:,} bytes, {record['seconds']} s")
    for row in record["datasets"]:
        print(f"  {row['name']}: {row['samples']:,} of {row['read']:,} documents")


if __name__ == "__main__":
    sys.exit(run(main))
