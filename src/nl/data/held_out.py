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
        """Domains of a split that have documents: of a small one none may be held out."""
        return tuple(name for name, domain in self._splits[split].items() if domain.documents)

    def documents(self, split: str, domain: str) -> Iterator[str]:
        """Texts, in the order of the data."""
        return (document.text for document in documents(self.path, split, domain))
