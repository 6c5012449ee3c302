"""Which sample each global row is: stateless keyed permutations and exact mixtures. Floor 1.

Every plan is a pure function of (seed, global row), so a position is one integer, a resume costs
nothing and the order does not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nl.config import require
from nl.core.seeds import SeedBook

Ints = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]
ROUNDS = 6
PERIOD = 10_000
"""Longest repeating mixture pattern: weights with up to four decimals are exact."""


class Plan(Protocol):
    """The order of samples from one or more sources."""

    total: int | None
    """Rows in all; None = endless."""

    def locate(self, rows: Ints) -> tuple[Ints, Ints]:
        """Global rows to (source, index inside the source), same shape."""
        ...

    def tags(self, row: int) -> dict[str, Any]:
        """Plain facts about the batch that starts at this global row.

        They never go back: where they are equal at two rows, they are equal between.
        """
        ...


def _mix(words: _Words) -> _Words:
    """The 64-bit finaliser of SplitMix64 (arithmetic modulo 2**64)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def keyed_below(key: int, bounds: Ints, *numbers: Ints) -> Ints:
    """Draws from ``range(bound)`` that depend on the key and on ``numbers`` alone, elementwise."""
    words = _mix(np.full(1, key, np.uint64))
    for number in numbers:
        words = _mix(number.astype(np.uint64) + words)
    return (words % bounds.astype(np.uint64)).astype(np.int64)


class KeyedPermutation:
    """A permutation of ``range(size)`` per epoch, evaluated at any index, without a table.

    A Feistel network over the smallest power of two that holds ``size``; values outside walk the
    cycle until they fall inside, which keeps it a permutation.
    """

    def __init__(self, size: int, key: int) -> None:
        if size < 1:
            raise ValueError(f"size: {size}; a permutation needs at least one element")
        self.size = size
        self.key = key
        bits = max(2, (size - 1).bit_length())
        self._widths = (bits // 2, bits - bits // 2)

    def __call__(self, index: Ints, epoch: Ints) -> Ints:
        """Images of ``index`` (values in range(size)) under the permutation of each epoch."""
        values = index.astype(np.uint64)
        keys = _mix(epoch.astype(np.uint64) + _mix(np.full(1, self.key, np.uint64)))
        pending = np.arange(values.size)
        while pending.size:
            moved = self._network(values[pending], keys[pending])
            values[pending] = moved
            pending = pending[moved >= np.uint64(self.size)]
        return values.astype(np.int64)

    def _network(self, values: _Words, keys: _Words) -> _Words:
        left_bits, right_bits = self._widths
        left = values >> np.uint64(right_bits)
        right = values & np.uint64((1 << right_bits) - 1)
        for number in range(ROUNDS):
            mask = np.uint64((1 << left_bits) - 1)
            turn = _mix(right + keys + np.uint64(number * 0x9E3779B9))
            left, right = right, left ^ (turn & mask)
            left_bits, right_bits = right_bits, left_bits
        return (left << np.uint64(right_bits)) | right


class Shuffler:
    """Per source: the k-th draw is the k-th element of an endless sequence of shuffled epochs."""

    def __init__(self, sizes: Sequence[int], names: Sequence[str], seed: int) -> None:
        book = SeedBook(seed)
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self._orders = [
            KeyedPermutation(size, book.seed("order", name))
            for size, name in zip(sizes, names, strict=True)
        ]

    def __call__(self, source: Ints, draw: Ints) -> Ints:
        """Index inside each source of its ``draw``-th sample (0-based)."""
        index = np.empty_like(draw)
        for number, order in enumerate(self._orders):
            mine = source == number
            if mine.any():
                epoch, position = np.divmod(draw[mine], order.size)
                index[mine] = order(position, epoch)
        return index


def integer_weights(weights: Sequence[float]) -> list[int]:
    """Weights as integers: the length of the mixture's period and each source's rows in it.

    Exact where the smallest such sum is at most ``PERIOD``; otherwise rounded to ``PERIOD`` parts,
    and a share below one part gets one.
    """
    exact = [Fraction(str(w)) for w in weights]
    total = sum(exact)
    shares = [w / total for w in exact]
    period = int(np.lcm.reduce([s.denominator for s in shares], dtype=object))
    if period <= PERIOD:
        return [int(s * period) for s in shares]
    parts = [max(1, int(s * PERIOD)) for s in shares]
    order = sorted(range(len(parts)), key=lambda i: shares[i] * PERIOD - parts[i], reverse=True)
    for i in order[: max(0, PERIOD - sum(parts))]:
        parts[i] += 1
    return parts


def mixture_pattern(parts: Sequence[int]) -> list[int]:
    """One period of sources in which, after any number of rows, each count is within 1 of exact.

    Tijdeman's chairman assignment: among the sources that are due, the one whose deadline comes
    first.
    """
    period, slack = sum(parts), max(1, 2 * len(parts) - 2)
    counts = [0] * len(parts)
    pattern = []
    for row in range(1, period + 1):
        due = [
            (Fraction(period * ((counts[i] + 1) * slack - 1), parts[i] * slack), i)
            for i, part in enumerate(parts)
            if (part * row - period * counts[i]) * slack >= period or len(parts) == 1
        ]
        chosen = min(due)[1]
        counts[chosen] += 1
        pattern.append(chosen)
    return pattern


class MixturePlan:
    """Endless shuffled epochs of several sources, mixed by exact weights."""

    total: int | None = None

    def __init__(
        self, sizes: Sequence[int], names: Sequence[str], weights: Sequence[float], seed: int
    ) -> None:
        self.parts = integer_weights(weights)
        self.period = sum(self.parts)
        pattern = np.asarray(mixture_pattern(self.parts), dtype=np.int64)
        hits = pattern[:, None] == np.arange(len(self.parts))
        self._pattern = pattern
        self._before = np.cumsum(hits, axis=0) - hits
        self._parts = np.asarray(self.parts, dtype=np.int64)
        self._shuffle = Shuffler(sizes, names, seed)

    def draws(self, rows: Ints) -> tuple[Ints, Ints]:
        """Global rows to (source, how many rows of that source came before)."""
        cycle, place = np.divmod(rows, self.period)
        source = self._pattern[place]
        return source, cycle * self._parts[source] + self._before[place, source]

    def locate(self, rows: Ints) -> tuple[Ints, Ints]:
        """See ``Plan.locate``."""
        source, draw = self.draws(rows)
        return source, self._shuffle(source, draw)

    def tags(self, row: int) -> dict[str, Any]:
        """The epoch of the source that is furthest ahead."""
        cycle, place = divmod(row, self.period)
        seen = cycle * self._parts + self._before[place]
        return {"epoch": int((seen // self._shuffle.sizes).max())}


class SequentialPlan:
    """Every sample once, in order: source after source."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._starts = np.cumsum([0, *sizes])
        self.total: int | None = int(self._starts[-1])

    def locate(self, rows: Ints) -> tuple[Ints, Ints]:
        """See ``Plan.locate``."""
        source = np.searchsorted(self._starts, rows, side="right") - 1
        return source, rows - self._starts[source]

    def tags(self, row: int) -> dict[str, Any]:
        """A validation pass is one epoch."""
        del row
        return {"epoch": 0}


class ContiguousPlan:
    """Row b of every batch goes on where row b of the batch before it ended.

    All samples of all sources in a row are cut into ``batch_size`` lanes of equal length, one per
    row; what does not fill the lanes is left out. Over a lane's end it begins anew.
    """

    def __init__(self, sizes: Sequence[int], batch_size: int, *, endless: bool) -> None:
        self._all, self.lanes = SequentialPlan(sizes), batch_size
        assert self._all.total is not None
        self.length = self._all.total // batch_size
        require(
            self.length >= 1,
            f"stream.batch_size: {batch_size} rows in contiguous order, but the data has only "
            f"{self._all.total} windows; lower stream.batch_size or stream.seq_len.",
        )
        self.total: int | None = None if endless else self.length * batch_size

    def locate(self, rows: Ints) -> tuple[Ints, Ints]:
        """See ``Plan.locate``."""
        batch, lane = np.divmod(rows, self.lanes)
        return self._all.locate(lane * self.length + batch % self.length)

    def begins(self, rows: Ints) -> npt.NDArray[np.bool_]:
        """Whether these global rows begin their lane, so that nothing leads to them."""
        return np.asarray(rows // self.lanes % self.length == 0)

    def tags(self, row: int) -> dict[str, Any]:
        """How often the lanes have been read."""
        return {"epoch": row // self.lanes // self.length}
