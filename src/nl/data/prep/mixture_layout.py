"""Where the stages of a mixture lie on disk. Floor 1."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nl.data.prep.mixture import Mixture
from nl.data.prep.stage import LOG_NAME


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Directories of one mixture.

    ``<work>/<data set>/ingest`` and ``filter``, ``<work>/joined``, ``<work>/dedup``; the divided
    corpus is ``<data directory>/corpus``, the shards are in the data directory itself.
    """

    mixture: Mixture
    work: Path

    def ingest(self, name: str) -> Path:
        """The corpus of one source."""
        return self.work / name / "ingest"

    def filter(self, name: str) -> Path:
        """The filtered corpus of one source."""
        entry = next(e for e in self.mixture.datasets if e.name == name)
        return Path(entry.filtered_dir or self.work / name / "filter")

    @property
    def joined(self) -> Path:
        """All filtered corpora as one."""
        return self.work / "joined"

    @property
    def dedup(self) -> Path:
        """Without duplicates."""
        return self.work / "dedup"

    @property
    def corpus(self) -> Path:
        """Divided into train, val and test."""
        return self.mixture.output / "corpus"

    @property
    def tokenizer(self) -> Path:
        """Directory of the tokenizer that is trained."""
        return Path(self.mixture.tokenizer_output_dir or self.mixture.output)

    def forget(self, stage: str) -> None:
        """Make a stage begin anew: its log goes, and what it had begun."""
        names = [entry.name for entry in self.mixture.datasets]
        places = {
            "ingest": [self.ingest(name) for name in names],
            "filter": [self.filter(name) for name in names],
            "dedup": [self.dedup],
            "divide": [self.corpus],
            "tokenizer": [self.tokenizer],
            "shard": [self.mixture.output],
        }
        for place in places[stage]:
            for file in self._records(stage, place):
                file.unlink(missing_ok=True)
            for begun in place.glob(f".{stage}-*"):
                shutil.rmtree(begun)

    def _records(self, stage: str, place: Path) -> Iterator[Path]:
        if stage == "tokenizer":
            yield place / "tokenizer_log.json"
        elif stage == "shard":
            yield place / "manifest.json"
        else:
            yield place / LOG_NAME
