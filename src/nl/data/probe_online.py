"""nonstat_online: one long stream whose pairs change under way, and no reset. Floor 1.

    k_3 v_1  k_5 v_2  k_3 v_1  ...  (tau tokens)  k_3 v_7  k_5 v_2  ...

Every key is to be answered before its value is read (prequential accuracy), as soon as its present
value was shown at all. A stream is cut into rows of training; the State goes on from one to the
next (train.carry=true). Held-out streams are read in one piece.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from nl.config import ConfigError, register, require
from nl.core.batch import IGNORE
from nl.core.seeds import SeedBook
from nl.data.probe import BUCKETS, TRIES, Guess, Ints, ProbeConfig, Probes, Row, belongs
from nl.data.probe_mad import earlier
from nl.data.probe_recall import last_of, log_bucket, recalled, wrong_values
from nl.data.stream import COUNT, RowStream, stream_of

ROWS = 1 << 20
"""Numbers of rows that each stream has to itself: row n of stream s is number s * ROWS + n."""


class LanesPlan:
    """As many streams side by side as a batch has rows; each row by row, then the next ones."""

    def __init__(self, lanes: int, rows: int, streams: int, *, endless: bool) -> None:
        self.lanes, self.rows, self.streams = lanes, rows, streams
        self.total: int | None = None if endless else streams * rows

    def locate(self, rows: Ints) -> tuple[Ints, Ints]:
        """See ``Plan.locate``."""
        step, lane = np.divmod(rows, self.lanes)
        turn, row = np.divmod(step, self.rows)
        stream = turn * self.lanes + lane
        if self.streams:
            stream = stream % self.streams
        return np.zeros_like(rows), stream * ROWS + row

    def tags(self, row: int) -> dict[str, Any]:
        """How often all streams have been read."""
        read = row // (self.lanes * self.rows) * self.lanes
        return {"epoch": read // self.streams if self.streams else 0}


@register("stream", "nonstat_online")
@dataclass(frozen=True, kw_only=True)
class NonstatOnlineConfig(ProbeConfig):
    """Pairs of a long stream whose values are drawn anew every tau tokens, as they come.

    train_size counts streams, too; batch_size of them are read side by side.
    """

    val_size: int = 32
    """Validation streams."""
    test_size: int = 32
    """Test streams."""
    keys: int = 8
    """Keys."""
    values: int = 8
    """Values."""
    tau: int = 64
    """Tokens from one switch to the next."""
    turns: int = 1
    """At a switch one key in so many gets a new value, each in its turn; 1: all of them."""
    length: int = 128
    """Tokens of a row of training; even."""
    segments: int = 4
    """Rows of a stream, after which the next begins with a fresh State; above 1 they need
    train.carry=true."""
    test_segments: int | None = None
    """Rows of a test stream; null: as many."""

    family = "continual"

    def check(self) -> None:
        """See the base class."""
        for name, least in (("keys", 2), ("values", 2), ("turns", 1), ("segments", 1)):
            value = getattr(self, name)
            require(value >= least, f"{name}: {value}; must be >= {least}.")
        for name in ("tau", "length"):
            value = getattr(self, name)
            fits = value >= 4 and value % 2 == 0
            require(fits, f"{name}: {value}; must be even and at least 4.")
        fits = self.test_segments is None or 1 <= self.test_segments <= ROWS
        require(fits, f"test_segments: {self.test_segments}; must be 1 to {ROWS}.")
        require(self.segments <= ROWS, f"segments: {self.segments}; must be at most {ROWS}.")
        for name in ("val_size", "test_size", "train_size"):
            value = getattr(self, name)
            fits = value % self.batch_size == 0
            require(fits, f"{name}: {value} streams; must be a multiple of stream.batch_size.")

    @property
    def order(self) -> Literal["contiguous", "shuffled"]:
        """Whether rows go on where those of the last batch ended."""
        return "contiguous" if self.segments > 1 else "shuffled"

    @property
    def needs_carry(self) -> bool:
        """Whether rows ask for what was said in the rows before."""
        return self.segments > 1

    def _rows_of(self, split: str) -> int:
        return (self.test_segments or self.segments) if split == "test" else self.segments

    def row(self, rng: np.random.Generator, split: str) -> Row:
        """The first row of a stream."""
        return self._piece(int(rng.integers(1 << 62)), 0, 0)

    def _row(self, key: int, split: str, number: int) -> Row:
        stream, row = divmod(number, ROWS)
        return self._piece(key_of(self, key, split, stream), stream, row)

    def _piece(self, key: int, stream: int, row: int) -> Row:
        """Row ``row`` of a stream: what it asks for depends on the rows since the last switches."""
        each = self.length // 2
        first = max(0, (row * self.length // self.tau - self.turns + 1) * self.tau) // self.length
        drawn = [stream_of(key, stream * ROWS + n) for n in range(first, row + 1)]
        keys = np.concatenate([rng.integers(0, self.keys, each) for rng in drawn])
        place = 2 * (first * each + np.arange(len(keys)))
        since = self._since(place // self.tau, keys)
        values = self._values(key, stream, since, keys)
        before, times = earlier(keys * (int(since.max()) + 2) + since + 1)
        known, gap = before >= 0, place - np.maximum(since, 0) * self.tau
        targets, gaps, shown = np.full(2 * len(keys), IGNORE), *np.zeros((2, 2 * len(keys)), int)
        targets[::2] = np.where(known, values, IGNORE)
        gaps[::2], shown[::2] = np.where(known, gap, 0), np.where(known, times, 0)
        inputs = np.stack([keys, values], axis=1).reshape(-1)
        here = slice(-self.length, None)
        slices = {"tokens since switch": log_bucket(gaps), "times shown": shown}
        return Row(inputs[here], targets[here], {k: v[here] for k, v in slices.items()})

    def _since(self, epoch: Ints, keys: Ints) -> Ints:
        """The epoch in which each key got the value that it has; -1 before its first turn."""
        found = epoch - (epoch - keys) % self.turns
        return np.maximum(found, -1)

    def _values(self, key: int, stream: int, since: Ints, keys: Ints) -> Ints:
        """Ids of values; one draw per epoch for all keys, from a random stream of its own."""
        values = np.empty_like(keys)
        for epoch in np.unique(since).tolist():
            rng = stream_of(key ^ 1, stream * ROWS + epoch + 1)
            mine = since == epoch
            values[mine] = rng.integers(0, self.values, self.keys)[keys[mine]]
        return values + self.keys

    def examples(self, split: str, seed: int) -> Probes:
        """Whole streams, a row each."""
        sizes = {"train": self.train_size or self.test_size}
        size, each = sizes.get(split, getattr(self, f"{split}_size", 0)), self._rows_of(split)
        numbers = np.arange(size)[:, None] * ROWS + np.arange(each)
        found = self.rows(split, seed, numbers.reshape(-1))

        def whole(parts: list[Ints]) -> Ints:
            return np.stack(parts).reshape(size, each * self.length)

        names = found[0].slices
        return Probes(
            whole([row.inputs for row in found]),
            whole([row.targets for row in found]),
            {name: whole([row.slices[name] for row in found]) for name in names},
        )

    def build(self, split: str, *, seed: int, rank: int, world: int) -> RowStream:
        """``train`` is endless; ``val`` and ``test`` go once through their streams."""
        self.rows(split, seed, np.arange(1))
        each, streams = self._rows_of(split), int(getattr(self, f"{split}_size"))
        plan = LanesPlan(self.batch_size, each, streams, endless=split == "train")

        def anew(rows: Ints, source: Ints, index: Ints) -> tuple[tuple[int, ...], ...]:
            del rows, source
            return tuple((0,) if number % ROWS == 0 else () for number in index.tolist())

        return RowStream(
            plan,
            self._fetch(split, seed),
            batch_size=self.batch_size,
            rank=rank,
            world=world,
            identity=f"{self}, {split}, seed {seed}",
            scored=COUNT,
            boundaries=anew if each > 1 else None,
        )

    def oracle(self, inputs: Ints) -> Ints:
        """The value that followed the key last."""
        return recalled(inputs, first=False)

    def shortcuts(self) -> dict[str, Guess]:
        """The value that the key had at first; the value seen last."""
        return {
            "first value": lambda inputs: recalled(inputs, first=True),
            "last value": lambda inputs: last_of(inputs, self.keys),
        }

    def bound(self) -> float:
        """The first value holds until the first switch, and then by chance."""
        tokens = min(self.segments, self._rows_of("test")) * self.length
        return min(0.97, self.tau * self.turns / tokens + 1.5 * self.chance() + 0.1)

    def chance(self) -> float:
        """Among the values."""
        return 1 / self.values

    def tokens(self) -> int:
        """Keys and values."""
        return self.keys + self.values

    def name(self, token: int) -> str:
        """Keys k, values v."""
        return f"k{token}" if token < self.keys else f"v{token - self.keys}"

    def errors(self, inputs: Ints, guess: Ints) -> dict[str, Ints]:
        """A former value of the key; a value of another key; none so far."""
        return wrong_values(inputs, guess, range(self.keys, self.tokens()))


@functools.lru_cache(maxsize=8192)
def key_of(config: NonstatOnlineConfig, key: int, split: str, stream: int) -> int:
    """The seed of a stream: the first whose first row may be in this split.

    Raises:
        ConfigError: there is hardly any.
    """
    for attempt in range(TRIES):
        found = SeedBook(key).seed("stream", stream, attempt)
        if belongs(config.fact(config._piece(found, stream, 0)), split):
            return found
    known = ", ".join(BUCKETS)
    raise ConfigError(f"{config.kind}: no stream of {split} in {TRIES} draws ({known}).")
