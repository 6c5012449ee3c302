"""What ``shard_corpus.py`` does with its flags: a corpus, or a raw source, to shards. Floor 1."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from nl.config import ConfigError
from nl.data.files import check_writable, write_json
from nl.data.manifest import DataManifest
from nl.data.prep.engine import Executor
from nl.data.prep.ingest import IngestOptions, ingest
from nl.data.prep.shard import shard_corpus
from nl.data.prep.shard_part import SHARD_TOKENS
from nl.data.prep.sources_spec import SAMPLE_HELP, SampleBy, Source

SEQ_LEN, SEQUENCES = 2048, 1024
NOWHERE = Path("data/stdlib/corpus")


def add_shard_flags(parser: argparse.ArgumentParser) -> None:
    """Flags for the text, the tokenizer and the shards."""
    shown = "default: %(default)s"
    text = parser.add_argument_group("the text: a corpus directory, or a source")
    text.add_argument("--corpus", type=Path, help=f"corpus directory; default: {NOWHERE}")
    text.add_argument("--dataset", help="hub data set, or json, parquet, arrow, text, wikitext ...")
    text.add_argument("--subset", help="configuration of a hub data set")
    text.add_argument("--split", default="train", help="split of a hub data set; " + shown)
    text.add_argument("--text-column", default="text", help=shown)
    text.add_argument("--data-files", nargs="+", default=(), help="of a local --dataset")
    text.add_argument("--sample-by", default="line", choices=get_args(SampleBy), help=SAMPLE_HELP)
    text.add_argument("--max-records", type=int, help="documents per domain; default: all")
    flag = parser.add_argument
    flag("--tokenizer-path", default="data/stdlib/tokenizer.model", help="or bytes; " + shown)
    flag("--eos-id", type=int, default=-1, help="-1: the tokenizer's; " + shown)
    flag("--output-dir", type=Path, default=Path("data/stdlib"), help=shown)
    flag("--name", default="", help="of the data; default: that of the corpus or the data set")
    flag(
        "--shard-tokens", type=int, help=f"a shard is closed after so many; default: {SHARD_TOKENS}"
    )
    flag("--seq-len", type=int, help=f"with the next: --shard-tokens; default {SEQ_LEN}")
    flag("--sequences-per-shard", type=int, help=f"default {SEQUENCES}; rows are cut when read")
    flag("--log-file", type=Path, help="also write the counts to this JSON file")


def shard_command(args: argparse.Namespace, executor: Executor) -> Iterator[str]:
    """Shard ``--corpus`` or ``--dataset``; yields lines about what became of it.

    Raises:
        ConfigError: flags that contradict each other, and what the stages complain about.
    """
    if args.dataset is not None and args.corpus is not None:
        raise ConfigError("--dataset: given beside --corpus; name one of them.")
    check_writable(args.log_file)
    tokens = shard_tokens(args)
    corpus = args.corpus or NOWHERE
    if args.dataset is not None:
        corpus = args.output_dir / "corpus"
        ingest(source_of(args), corpus, IngestOptions(), executor)
    manifest, written = shard_corpus(
        corpus,
        args.tokenizer_path,
        args.output_dir,
        shard_tokens=tokens,
        eos_id=args.eos_id,
        max_records=None if args.dataset is not None else args.max_records,
        name=args.name,
        executor=executor,
    )
    if args.log_file is not None:
        write_json(args.log_file, stats(args, manifest))
    yield f"{args.output_dir}: {'written' if written else 'up to date, nothing to do'}"
    for split, domains in manifest.splits.items():
        for name, d in domains.items():
            yield f"  {split}/{name}: {d.documents:,} documents, {d.tokens:,} tokens"


def shard_tokens(args: argparse.Namespace) -> int:
    """Tokens per shard from either spelling.

    Raises:
        ConfigError: both, or a number below 1.
    """
    if args.seq_len is None and args.sequences_per_shard is None:
        return SHARD_TOKENS if args.shard_tokens is None else int(args.shard_tokens)
    if args.shard_tokens is not None:
        raise ConfigError(
            f"--shard-tokens: {args.shard_tokens} beside --seq-len or --sequences-per-shard; "
            "use one spelling."
        )
    seq_len = SEQ_LEN if args.seq_len is None else int(args.seq_len)
    count = SEQUENCES if args.sequences_per_shard is None else int(args.sequences_per_shard)
    for name, value in (("seq-len", seq_len), ("sequences-per-shard", count)):
        if value < 1:
            raise ConfigError(f"--{name}: {value}; must be >= 1.")
    return seq_len * count


def source_of(args: argparse.Namespace) -> Source:
    """The source that the flags describe; its name is its domain."""
    return Source(
        name=args.name or args.dataset.rstrip("/").rpartition("/")[2],
        dataset=args.dataset,
        subset=args.subset,
        split=args.split,
        text_column=args.text_column,
        sample_by=args.sample_by,
        data_files=tuple(args.data_files) or None,
        max_records=args.max_records,
    )


def stats(args: argparse.Namespace, manifest: DataManifest) -> dict[str, Any]:
    """Counts of the whole and of every split and domain."""
    rows: list[dict[str, Any]] = [
        {"split": split, "domain": name, "records": d.documents, "tokens": d.tokens}
        | {"bytes": d.bytes, "shards": len(d.shards)}
        for split, domains in manifest.splits.items()
        for name, d in domains.items()
    ]
    total = {key: sum(row[key] for row in rows) for key in ("records", "tokens", "shards")}
    return {
        "name": manifest.name,
        "dataset": args.dataset or str(args.corpus or NOWHERE),
        "subset": args.subset,
        **total,
        "sequences": total["tokens"] // (args.seq_len or SEQ_LEN),
        "output_dir": str(args.output_dir),
        "rows": rows,
    }
