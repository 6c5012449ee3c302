"""How much of a held-out split is in train: exact texts and near-duplicates, measured. Floor 1.

Every held-out document is compared with every train document by the shingles that they share, so
nothing depends on the luck of a signature; memory is that of the held-out shingles.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nl.data.documents import Document
from nl.data.prep.dedup_signatures import Ints, shingles
from nl.data.prep.parts import parts_of

LIMIT = 10_000
NGRAM = 5
SHOWN = 10
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Index:
    """Shingles of some documents, sorted, so that another is compared with all of them at once."""

    keys: Ints
    owners: NDArray[np.int32]
    """Number of the document of each key."""
    sizes: NDArray[np.int64]
    """Shingles of each document."""

    @classmethod
    def of(cls, documents: Sequence[Document]) -> Index:
        """The index of documents in their order."""
        found = [shingles(document.text, NGRAM) for document in documents]
        sizes = np.array([len(f) for f in found], np.int64)
        keys = np.concatenate([*found, np.empty(0, np.uint64)])
        owners = np.repeat(np.arange(len(found), dtype=np.int32), sizes)
        order = np.argsort(keys, kind="stable")
        return cls(keys[order], owners[order], sizes)

    def similarity(self, own: Ints) -> tuple[Floats, Floats]:
        """Of every document: its Jaccard similarity to ``own``, the share of it that is in them."""
        first = np.searchsorted(self.keys, own, "left")
        last = np.searchsorted(self.keys, own, "right")
        counts = last - first
        hit = np.repeat(last - np.cumsum(counts), counts) + np.arange(counts.sum())
        both = np.bincount(self.owners[hit], minlength=len(self.sizes))
        either = len(own) + self.sizes - both
        return both / np.maximum(either, 1), both / np.maximum(self.sizes, 1)

    def covered(self, others: Sequence[Ints]) -> Floats:
        """Of every document, the largest share of its shingles that one of ``others`` has."""
        own = np.concatenate([*others, np.empty(0, np.uint64)])
        who = np.repeat(np.arange(len(others)), [len(other) for other in others])
        order = np.argsort(own)
        own, who = own[order], who[order]
        first = np.searchsorted(self.keys, own, "left")
        counts = np.searchsorted(self.keys, own, "right") - first
        hit = np.repeat(first + counts - np.cumsum(counts), counts) + np.arange(counts.sum())
        pairs = np.repeat(who, counts) * len(self.sizes) + self.owners[hit]
        pairs, both = np.unique(pairs, return_counts=True)
        most = np.zeros(len(self.sizes), np.int64)
        np.maximum.at(most, pairs % max(1, len(self.sizes)), both)
        return most / np.maximum(self.sizes, 1)


class HeldOut:
    """Held-out documents, and the nearest train document of each so far."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self.documents = documents
        self._index = Index.of(documents)
        self._ids = {document.id for document in documents}
        self.best: Floats = np.zeros(len(documents))
        self.contained: Floats = np.zeros(len(documents))
        self.nearest = [""] * len(documents)
        self.exact: set[str] = set()

    def compare(self, document: Document) -> None:
        """Remember the document wherever it is the nearest so far."""
        if document.id in self._ids:
            self.exact.add(document.id)
        share, contained = self._index.similarity(shingles(document.text, NGRAM))
        for number in np.flatnonzero(share > self.best):
            self.nearest[number] = document.source
        self.best = np.maximum(self.best, share)
        self.contained = np.maximum(self.contained, contained)


def leak(
    corpus: Path, held_out: str = "val", *, threshold: float = 0.8, limit: int = LIMIT
) -> dict[str, Any]:
    """Exact and near-duplicates of held-out documents in train.

    Args:
        corpus: a divided corpus.
        held_out: ``val`` or ``test``.
        threshold: Jaccard similarity of 5-word shingles from which a pair is near.
        limit: held-out documents that are looked at, those of lowest id; all of train is.

    Returns:
        ``tested`` and ``held_out`` documents, ``train`` documents, how many of the tested are
        ``exact`` in train, ``near`` (similarity >= threshold, exact ones among them) or
        ``contained`` (that share of their shingles is in one train document), and the
        ``nearest`` pairs.

    Raises:
        ConfigError: no corpus, or a changed part.
    """
    parts = parts_of(corpus)
    every = (d for part in parts if part.split == held_out for d in part.documents())
    count = sum(part.info.documents for part in parts if part.split == held_out)
    tested = HeldOut(heapq.nsmallest(limit, every, key=lambda d: d.id))
    train = 0
    for part in parts:
        if part.split == "train":
            for document in part.documents():
                tested.compare(document)
                train += 1
    equal = np.array([d.id in tested.exact for d in tested.documents], bool)
    order = np.argsort(-tested.best, kind="stable")[:SHOWN]
    return {
        "split": held_out,
        "held_out": count,
        "tested": len(tested.documents),
        "train": train,
        "threshold": threshold,
        "exact": int(equal.sum()),
        "near": int((equal | (tested.best >= threshold)).sum()),
        "contained": int((tested.contained >= threshold).sum()),
        "highest": round(float(tested.best.max(initial=0.0)), 4),
        "nearest": [
            {
                "similarity": round(float(tested.best[n]), 4),
                "held_out": tested.documents[n].source,
                "train": tested.nearest[n],
            }
            for n in order.tolist()
            if tested.best[n] > 0
        ],
    }
