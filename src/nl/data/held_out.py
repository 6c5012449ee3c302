"""The held-out documents of a data directory as text. Floor 1."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nl.data.manifest import documents, read_manifest


class DataCorpus:
    """The held-out documents of a data directory, as evaluators ask for them."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self._splits = read_manifest(path).splits

    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self._splits)

    def domains(self, split: str) -> tuple[str, ...]:
        """Names of the domains of a split."""
        return tuple(self._splits[split])

    def documents(self, split: str, domain: str) -> Iterator[str]:
        """Texts, in the order of the data."""
        return (document.text for document in documents(self.path, split, domain))
