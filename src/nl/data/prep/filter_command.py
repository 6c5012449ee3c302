"""What ``filter_corpus.py`` does with its flags, the older ones among them. Floor 1."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from nl.config import ConfigError
from nl.data.prep.engine import Executor
from nl.data.prep.filters import filter_corpus
from nl.data.prep.filters_checks import FilterOptions
from nl.data.prep.stage import told

INSTEAD = {
    "dedup_window": "duplicates stay here and go, over the whole corpus, with dedup_corpus.py",
    "force_exit": "the command ends by itself",
    "streaming": "hub data sets are always streamed",
}


def add_seed_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that older recipes use and that have no meaning any more."""
    group = parser.add_argument_group("accepted from older recipes; each prints what holds instead")
    group.add_argument("--dedup-window", metavar="N", help=INSTEAD["dedup_window"])
    group.add_argument("--force-exit", action="store_const", const="", help=INSTEAD["force_exit"])
    group.add_argument("--streaming", nargs="?", const="", help=INSTEAD["streaming"])
    group.add_argument("--no-streaming", dest="streaming", action="store_const", const="")


def filter_command(
    args: argparse.Namespace, options: FilterOptions, executor: Executor
) -> Iterator[str]:
    """Filter ``--corpus`` into ``--output-path``; yields lines about what became of it.

    Raises:
        ConfigError: no corpus named, an output that is a file of lines.
    """
    if args.output_path.suffix == ".txt":
        raise ConfigError(
            f"--output-path: {args.output_path}; a line of a text file cannot hold the line "
            "breaks of a document; name a directory, which becomes a corpus of JSONL files."
        )
    if args.corpus is None:
        raise ConfigError("--corpus: missing; name the corpus directory to filter.")
    for name, text in INSTEAD.items():
        if getattr(args, name) is not None:
            yield f"--{name.replace('_', '-')} does nothing: {text}"
    yield from told(
        args.output_path, *filter_corpus(args.corpus, args.output_path, options, executor)
    )
