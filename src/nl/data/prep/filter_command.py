"""What ``filter_corpus.py`` does with its flags, the older ones among them. Floor 1."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from nl.config import ConfigError
from nl.data.prep.engine import Executor
from nl.data.prep.filters import NothingKeptError, filter_corpus
from nl.data.prep.filters_checks import FilterOptions
from nl.data.prep.ingest import PART_MB, IngestOptions, ingest
from nl.data.prep.sources_spec import SAMPLE_HELP, SampleBy, Source
from nl.data.prep.stage import summary, told

INSTEAD = {
    "dedup_window": "duplicates stay here and go, over the whole corpus, with dedup_corpus.py",
    "force_exit": "the command ends by itself",
    "streaming": "hub data sets are always streamed",
}


def add_source_flags(parser: argparse.ArgumentParser) -> None:
    """Where documents come from, and flags of older recipes that have no meaning any more."""
    flag = parser.add_argument_group("documents: a corpus, or a raw source").add_argument
    flag("--corpus", type=Path, help="corpus directory to filter")
    flag("--dataset", help="a hub data set, or json, parquet, arrow, text, wikitext, stdlib")
    flag("--subset", help="configuration of a hub data set; prose or code of stdlib")
    flag("--split", default="train", help="split of a hub data set (default: %(default)s)")
    flag("--text-column", default="text", help="key of the text (default: %(default)s)")
    flag("--data-files", nargs="*", help="files, directories, patterns of a local format")
    flag("--sample-by", default="line", choices=get_args(SampleBy), help=SAMPLE_HELP)
    flag("--name", help="domain of the documents (default: the name of the data set)")
    flag("--part-mb", type=float, default=PART_MB, help="text of a part (default: %(default)s)")
    flag = parser.add_argument_group("older flags; each prints what holds instead").add_argument
    flag("--dedup-window", metavar="N", help=INSTEAD["dedup_window"])
    flag("--force-exit", action="store_const", const="", help=INSTEAD["force_exit"])
    flag("--streaming", nargs="?", const="", help=INSTEAD["streaming"])
    flag("--no-streaming", dest="streaming", action="store_const", const="")


def filter_command(
    args: argparse.Namespace, options: FilterOptions, executor: Executor
) -> Iterator[str]:
    """Filter ``--corpus`` or ``--dataset`` into ``--output-path``; yields what became of it.

    Raises:
        ConfigError: no input or two, an output that is a file of lines.
    """
    output: Path = args.output_path
    if output.suffix == ".txt":
        raise ConfigError(
            f"--output-path: {output}; a line of a text file cannot hold the line breaks of a "
            "document; name a directory, which becomes a corpus of JSONL files."
        )
    if (args.corpus is None) == (args.dataset is None):
        raise ConfigError("--corpus, --dataset: name one of them, a corpus or a raw source.")
    for name, text in INSTEAD.items():
        if getattr(args, name) is not None:
            yield f"--{name.replace('_', '-')} does nothing: {text}"
    if args.corpus is not None:
        log, done = filter_corpus(args.corpus, output, options, executor)
        yield from told(output, log, done)
    else:
        yield from _from_source(args, options, executor)


def _from_source(
    args: argparse.Namespace, options: FilterOptions, executor: Executor
) -> Iterator[str]:
    """Read a source into ``<output>/raw``, as much as the limit on kept documents needs."""
    output: Path = args.output_path
    wanted = 2 * options.limit or None
    while True:
        source = Source(
            name=args.name or re.sub(r"\W+", "_", args.dataset).strip("_"),
            dataset=args.dataset,
            subset=args.subset,
            split=args.split,
            text_column=args.text_column,
            sample_by=args.sample_by,
            data_files=tuple(args.data_files) if args.data_files else None,
            max_records=wanted,
        )
        read, _ = ingest(source, output / "raw", IngestOptions(part_mb=args.part_mb), executor)
        found = read["counts"]["documents_out"]
        last = wanted is None or found < wanted
        try:
            log, done = filter_corpus(output / "raw", output, options, executor)
            if last or log["counts"]["documents_out"] >= options.limit:
                break
        except NothingKeptError:
            if last:
                raise
        wanted = 2 * (wanted or 0)
    yield f"{output / 'raw'}: {summary(read)}"
    yield from told(output, log, done)
