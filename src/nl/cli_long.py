"""Perplexity by position over long documents: where they come from, and the picture. Floor 8."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from nl.config import ConfigError
from nl.report.figures import Figure, Line, matplotlib_ready, save_png

HUB = "emozilla/pg19"
"""The books of PG-19 as plain files on the hub."""
NAME = "texts"


class TextCorpus:
    """Long texts of files or of the hub, as an evaluator asks for them."""

    def __init__(self, source: str) -> None:
        """Look ``source`` up: ``pg19``, or a file, directory or pattern.

        Raises:
            ConfigError: nothing there, or the hub cannot be reached.
        """
        from nl.data.prep.sources import read_source
        from nl.data.prep.sources_spec import Source
        from nl.eval.hub_tasks import offline_if_unreachable

        local = None if source == "pg19" else source
        if local is None:
            offline_if_unreachable()
        elif not any(Path(p).exists() for p in (local, Path(local).parent)):
            raise ConfigError(f"--source: {local}; no such file or directory.")
        name = "pg19" if local is None else NAME
        self._name, self._read = name, read_source
        self._source = Source(
            name=name, dataset=HUB, split="test", local=local, sample_by="document"
        )
        self._first(local)

    def _first(self, local: str | None) -> None:
        """Read one document, so that what is wrong is said before a model is loaded."""
        from nl.data.prep.sources_local import find_local

        if local is not None and find_local((local,), "test", self._source) is None:
            raise ConfigError(f"--source: {local}; no text there (.txt, .jsonl, .parquet, ...).")
        try:
            found = next(iter(self._read(self._source)), None)
        except ConfigError as error:
            if local is not None:
                raise
            raise ConfigError(
                f"--source: pg19; {error} Or give --source <file or directory of books>, or "
                "--source corpus (held-out documents of the data directory)."
            ) from error
        if found is None:
            raise ConfigError(f"--source: {local or HUB}; holds no text.")

    def splits(self) -> tuple[str, ...]:
        """One split."""
        return ("test",)

    def domains(self, split: str) -> tuple[str, ...]:
        """One domain, called after the source."""
        return (self._name,)

    def documents(self, split: str, domain: str) -> Iterator[str]:
        """Texts in the order of the source."""
        return (document.text for document in self._read(self._source))


def measure_long(options: argparse.Namespace, evaluator: Any) -> None:
    """Run the evaluator on --source, and draw its curves as PNG beside the JSON."""
    from nl.cli_measure import check_output, measure

    check_output(options.output)
    matplotlib_ready()
    corpus = None if options.source == "corpus" else TextCorpus(options.source)
    change = None if corpus is None else lambda context: replace(context, corpus=corpus)
    if measure(options, evaluator, change=change):
        folder = options.output.with_suffix("")
        picture = options.output.with_suffix(".png")
        save_png(position_figure(json.loads((folder / "positions.json").read_text())), picture)
        print(f"written: {folder / 'positions.csv'}, {picture}")


def position_figure(found: dict[str, Any]) -> Figure:
    """Loss over the position, a line per domain and mode, the band one standard error."""
    lines = []
    for colour, one in enumerate(found["curves"]):
        buckets = one["buckets"]
        y = [bucket["nats_per_token"] for bucket in buckets]
        error = [bucket["stderr"] or 0.0 for bucket in buckets]
        lines.append(
            Line(
                f"{one['task'].partition('/')[2]}, {one['memorize']}",
                [float(bucket["end"]) for bucket in buckets],
                y,
                colour=colour,
                low=[a - b for a, b in zip(y, error, strict=True)],
                high=[a + b for a, b in zip(y, error, strict=True)],
            )
        )
    title = "nats per token"
    return Figure("positions", title, lines, x_label="tokens read", wide=True, log="x")
