"""Windows inside documents: a nested prefix of a component, cut at a new phase every epoch.

Of the documents of a component, in an order that a seed gives, the first ones that hold its share
are read, so that a smaller share is a part of a larger one; the last document is cut to make the
count exact. In every epoch each document is cut anew, at a phase that leaves out the same number of
tokens. Floor 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nl.core.seeds import SeedBook
from nl.data.components import ComponentData, Documents, gather
from nl.data.order import Ints, KeyedPermutation, keyed_below

IdRows = npt.NDArray[Any]
Mixing = Literal["iid", "stratified", "sequential", "cyclic"]
TOKENS_AT_ONCE = 1 << 18
"""Tokens fetched together, so that what a call costs is shared by small batches."""


@dataclass(frozen=True)
class Cut:
    """How rows are cut out of documents.

    Attributes:
        window: tokens of a window.
        legacy: rows are the window; else the token behind it is read too, as the last target.
        bos: this id is put in front, and the first token is a target; None: nothing is.
    """

    window: int
    legacy: bool = False
    bos: int | None = None

    @property
    def width(self) -> int:
        """Tokens that are read for a row."""
        return self.window + (not self.legacy)

    @property
    def context(self) -> Ints:
        """(positions,) Tokens before each target, BOS not counted."""
        return np.arange(0 if self.bos is not None else 1, self.width)

    def rows(self, tokens: IdRows) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, positions) int32 of windows (B, width)."""
        rows = torch.from_numpy(np.ascontiguousarray(tokens, dtype=np.int32))
        if self.bos is None:
            return rows[:, :-1], rows[:, 1:]
        front = torch.full((len(rows), 1), self.bos, dtype=torch.int32)
        return torch.cat([front, rows[:, :-1]], 1), rows


@dataclass(frozen=True)
class Prefix:
    """The windows of one component: the first documents of an order.

    Attributes:
        documents: (n,) their numbers in the component.
        first: (n + 1,) window at which each begins; the last entry is the share.
        slack: (n,) tokens that no window of a document covers, at any phase.
        last_cut: windows that the last document does not give.
    """

    documents: Ints
    first: Ints
    slack: Ints
    last_cut: int


def prefix_of(documents: Documents, cut: Cut, share: int | None, order: Ints) -> Prefix:
    """The first documents of an order that hold ``share`` windows (None: all, in full).

    Raises:
        AssertionError: they hold fewer.
    """
    counts = documents.windows(cut.window, legacy=cut.legacy)[order]
    kept, counts = order[counts > 0], counts[counts > 0]
    slack = documents.length[kept] - (not cut.legacy) - counts * cut.window
    first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    if share is None:
        return Prefix(kept, first, slack, 0)
    assert share <= first[-1], "the caller compares shares with what there is"
    number = int(np.searchsorted(first, share))
    last_cut = int(first[number] - share)
    first = first[: number + 1].copy()
    first[-1] = share
    return Prefix(kept[:number], first, slack[:number], last_cut)


def seeded_order(count: int, seed: int, name: str) -> Ints:
    """The documents of a component in the order of a seed; the budget has no say in it."""
    rng = np.random.Generator(np.random.Philox(SeedBook(seed).seed("documents", name)))
    return rng.permutation(count).astype(np.int64)


class ComponentWindows:
    """Rows of windows; callable as the fetch function of a stream.

    ``index`` is epoch times share plus window. Without a seed every epoch is cut at phase 0.

    Attributes:
        sizes: windows of each component in an epoch.
        rows_at_once: windows that are worth fetching together.
    """

    def __init__(
        self, data: ComponentData, cut: Cut, prefixes: Sequence[Prefix], seed: int | None
    ) -> None:
        self.data, self.cut, self.prefixes = data, cut, tuple(prefixes)
        self.sizes = [int(prefix.first[-1]) for prefix in prefixes]
        self.rows_at_once = max(1, TOKENS_AT_ONCE // cut.window)
        book = None if seed is None else SeedBook(seed)
        self._keys = [None if book is None else book.seed("phase", name) for name in data.names]

    def places(self, source: Ints, index: Ints) -> tuple[Ints, Ints, Ints]:
        """Document (number in its component), window inside it, first token inside it."""
        document, number, start = (np.empty_like(index) for _ in range(3))
        for component, prefix in enumerate(self.prefixes):
            mine = np.flatnonzero(source == component)
            if not mine.size:
                continue
            epoch, window = np.divmod(index[mine], self.sizes[component])
            place = np.searchsorted(prefix.first, window, side="right") - 1
            document[mine] = prefix.documents[place]
            number[mine] = window - prefix.first[place]
            key, phase = self._keys[component], np.zeros_like(place)
            if key is not None:
                phase = keyed_below(key, prefix.slack[place] + 1, document[mine], epoch)
            start[mine] = phase + number[mine] * self.cut.window
        return document, number, start

    def __call__(self, source: Ints, index: Ints) -> tuple[Tensor, Tensor]:
        """Inputs and targets, both (B, positions) int32."""
        document, _, start = self.places(source, index)
        return self.cut.rows(gather(self.data, source, document, start, self.cut.width))


class ComponentPlan:
    """Which window of which component a global row is; endless.

    Attributes:
        total: None.
    """

    total: int | None = None

    def __init__(
        self,
        sizes: Sequence[int],
        names: Sequence[str],
        mixing: Mixing,
        *,
        batch_size: int,
        epochs: int,
        seed: int,
    ) -> None:
        book = SeedBook(seed)
        self._sizes = np.asarray(sizes, dtype=np.int64)
        self._names, self._mixing, self._batch, self._epochs = names, mixing, batch_size, epochs
        self._budget = int(self._sizes.sum())
        self._all = KeyedPermutation(self._budget, book.seed("order", "components"))
        self._orders = [
            KeyedPermutation(size, book.seed("order", name))
            for size, name in zip(sizes, names, strict=True)
        ]
        self._first = np.concatenate([[0], np.cumsum(self._sizes)])

    def locate(self, rows: Ints) -> tuple[Ints, Ints]:
        """Global rows to (component, epoch times share plus window)."""
        if self._mixing == "iid":
            epoch, place = np.divmod(rows, self._budget)
            number = self._all(place, epoch)
            source = np.searchsorted(self._first, number, side="right") - 1
            return source, epoch * self._sizes[source] + number - self._first[source]
        source, draw = getattr(self, f"_{self._mixing}")(rows)
        index = np.empty_like(draw)
        for component, order in enumerate(self._orders):
            mine = source == component
            epoch, place = np.divmod(draw[mine], order.size)
            index[mine] = epoch * order.size + order(place, epoch)
        return source, index

    def _stratified(self, rows: Ints) -> tuple[Ints, Ints]:
        """Every batch has as many rows of each: components take turns row by row."""
        draw, source = np.divmod(rows, len(self._sizes))
        return source, draw

    def _cyclic(self, rows: Ints) -> tuple[Ints, Ints]:
        """Batches of one component, in turn."""
        batch, place = np.divmod(rows, self._batch)
        turn, source = np.divmod(batch, len(self._sizes))
        return source, turn * self._batch + place

    def _sequential(self, rows: Ints) -> tuple[Ints, Ints]:
        """``epochs`` epochs of one component, then of the next; after the last from the first."""
        cycle, place = np.divmod(rows, self._budget * self._epochs)
        source = np.searchsorted(self._first * self._epochs, place, side="right") - 1
        inside = place - self._first[source] * self._epochs
        return source, cycle * self._epochs * self._sizes[source] + inside

    def tags(self, row: int) -> dict[str, Any]:
        """How often the budget was read; of sequential mixing also phase and component."""
        found: dict[str, Any] = {"epoch": row // self._budget}
        if self._mixing == "sequential":
            cycle = row // (self._budget * self._epochs)
            source = int(self._sequential(np.asarray([row], dtype=np.int64))[0][0])
            found |= {"phase": cycle * len(self._sizes) + source, "domain": self._names[source]}
        return found
