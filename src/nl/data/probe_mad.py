"""The tasks of MAD as probes: recall plain, fuzzy and in noise, memorization, compression. Floor 1.

Definitions: Mechanistic Design and Scaling of Hybrid Architectures (arXiv 2403.17844); the sixth
task is ``selective_copy``. Only answers that the row (or the weights) can know are scored, unless
``dense``; every random draw is the row's own.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from nl.config import register, require
from nl.core.batch import IGNORE
from nl.data.probe import Guess, Ints, ProbeConfig, Row
from nl.data.probe_recall import last_of, log_bucket, recalled, wrong_values


@dataclass(frozen=True, kw_only=True)
class MadConfig(ProbeConfig):
    """What MAD's tasks share: a row is decided by its inputs, targets may be dense."""

    dense: bool = False
    """Train on the next token at every position, as MAD does; held-out rows score answers only."""

    family = "mad"

    def fact(self, row: Row) -> bytes:
        """The inputs: a row with dense targets is the same row."""
        return row.inputs.tobytes()

    def _row(self, key: int, split: str, number: int) -> Row:
        row = super()._row(key, split, number)
        if not self.dense or split != "train":
            return row
        following = np.append(row.inputs[1:], IGNORE)
        return row._replace(targets=np.where(row.targets == IGNORE, following, row.targets))


@register("stream", "mad_recall")
@dataclass(frozen=True, kw_only=True)
class MadRecallConfig(MadConfig):
    """Pairs of a key and a value; a key that comes again has its value of the first time.

    The first half of the ids are keys, the second values; a row draws the value of every key anew.
    A key that was seen before asks for its value; the last pair always does.
    """

    length: int = 128
    """L, tokens of a row; even, two per pair."""
    vocab: int = 16
    """V, ids of keys and values together; even."""

    def check(self) -> None:
        """See the base class."""
        self._check(self.vocab)

    def _check(self, usable: int) -> None:
        fits = self.length >= 4 and self.length % 2 == 0
        require(fits, f"length: {self.length}; must be even and at least 4.")
        fits = usable >= 4 and usable % 2 == 0
        require(fits, f"vocab: {self.vocab}; {usable} ids of keys and values, must be even, >= 4.")

    def row(self, rng: np.random.Generator, split: str) -> Row:
        """See the base class."""
        return _pairs(rng, self.length // 2, self.vocab // 2, np.zeros(self.length // 2, bool))

    def oracle(self, inputs: Ints) -> Ints:
        """The token after the first time that the key was there."""
        return recalled(inputs, first=True)

    def shortcuts(self) -> dict[str, Guess]:
        """The value seen last; the value that the row has most often so far."""
        half = self._usable() // 2

        def last(inputs: Ints) -> Ints:
            return last_of(np.where(inputs < 2 * half, inputs, -1), half)

        return {
            "last value": last,
            "commonest value": lambda inputs: _commonest(inputs, range(half, 2 * half)),
        }

    def _usable(self) -> int:
        return self.vocab

    def bound(self) -> float:
        """The commonest of few values comes often by itself."""
        return 1.5 * self.chance() + 0.2

    def chance(self) -> float:
        """Among the values."""
        return 2 / self._usable()

    def errors(self, inputs: Ints, guess: Ints) -> dict[str, Ints]:
        """A value of another key; none of the row."""
        found = wrong_values(inputs, guess, range(self._usable() // 2, self._usable()))
        return {name: found[name] for name in list(found)[1:]}

    def tokens(self) -> int:
        """V."""
        return self.vocab

    def name(self, token: int) -> str:
        """Keys k, values v."""
        half = self._usable() // 2
        if token >= 2 * half:
            return "~"
        return f"k{token}" if token < half else f"v{token - half}"


@register("stream", "mad_noisy_recall")
@dataclass(frozen=True, kw_only=True)
class MadNoisyRecallConfig(MadRecallConfig):
    """As mad_recall, with pairs of noise tokens, which have ids of their own, in between."""

    vocab: int = 32
    """V, ids of keys, values and noise together."""
    noise_vocab: int = 16
    """Of them noise."""
    noise: float = 0.2
    """Share of pairs that are noise; never the first nor the last."""

    def check(self) -> None:
        """See the base class."""
        require(self.noise_vocab >= 1, f"noise_vocab: {self.noise_vocab}; must be >= 1.")
        require(0 <= self.noise < 1, f"noise: {self.noise}; must be in [0, 1).")
        self._check(self._usable())

    def _usable(self) -> int:
        return self.vocab - self.noise_vocab

    def bound(self) -> float:
        """As without noise; of few pairs the value is easier to meet."""
        return super().bound() + 0.2 * self.noise

    def row(self, rng: np.random.Generator, split: str) -> Row:
        """See the base class."""
        n = self.length // 2
        noisy = rng.random(n) < self.noise
        noisy[0] = noisy[-1] = False
        row = _pairs(rng, n, self._usable() // 2, noisy)
        static = rng.integers(self._usable(), self.vocab, self.length)
        return row._replace(inputs=np.where(np.repeat(noisy, 2), static, row.inputs))


def _pairs(rng: np.random.Generator, n: int, half: int, noisy: np.ndarray) -> Row:
    """n pairs; those that are ``noisy`` say nothing and ask nothing."""
    keys, values = rng.integers(0, half, n), rng.integers(half, 2 * half, half)
    clean = np.flatnonzero(~noisy)
    keys[-1] = keys[rng.choice(clean[:-1])]
    before, times = earlier(np.where(noisy, -1, keys))
    asks = (before >= 0) & ~noisy
    targets, gap, seen = np.full(2 * n, IGNORE), *np.zeros((2, 2 * n), dtype=np.int64)
    at = np.flatnonzero(asks)
    targets[2 * at], gap[2 * at], seen[2 * at] = values[keys[at]], 2 * (at - before[at]), times[at]
    inputs = np.stack([keys, values[keys]], axis=1).reshape(-1)
    return Row(inputs, targets, {"gap": log_bucket(gap), "times seen": log_bucket(seen)})


def earlier(items: Ints) -> tuple[Ints, Ints]:
    """Per place: where its item stood last before (-1: nowhere), and how often it did."""
    order = np.argsort(items, kind="stable")
    again = np.concatenate([[False], items[order][1:] == items[order][:-1]])
    before = np.full(len(items), -1)
    before[order[again]] = order[np.flatnonzero(again) - 1]
    starts = np.maximum.accumulate(np.where(again, 0, np.arange(len(items))))
    times = np.empty_like(before)
    times[order] = np.arange(len(items)) - starts
    return before, times


def _commonest(inputs: Ints, ids: range) -> Ints:
    """At every position the most frequent so far of some ids."""
    counts = np.cumsum(inputs[..., None] == np.asarray(ids), axis=1)
    return np.asarray(counts.argmax(axis=-1) + ids.start)


@register("stream", "mad_memorization")
@dataclass(frozen=True, kw_only=True)
class MadMemorizationConfig(MadConfig):
    """Keys, a mark behind each: there the key's value is to be said. No row ever shows a value.

    One map from keys to values holds for all rows and all splits: it has to get into the weights.
    """

    length: int = 32
    """L, tokens of a row; even, a key and a mark in turn."""
    vocab: int = 256
    """V, ids: the mark, keys, and as many values."""
    map_seed: int = 0
    """Seed of the map; seed it from the run (map_seed: ${seed}) where seeds shall differ in it."""

    shared = "the map from keys to values; held out are rows, combinations of keys"

    def check(self) -> None:
        """See the base class."""
        fits = self.length >= 2 and self.length % 2 == 0
        require(fits, f"length: {self.length}; must be even and at least 2.")
        require(self.vocab >= 5, f"vocab: {self.vocab}; must be at least 5.")
        require(self.map_seed >= 0, f"map_seed: {self.map_seed}; must be >= 0.")

    @property
    def _half(self) -> int:
        return (self.vocab - 1) // 2

    @functools.cached_property
    def _values(self) -> Ints:
        """The value of every id: key k (1 .. half) at place k."""
        rng = np.random.default_rng([self.map_seed, self.vocab])
        drawn = rng.integers(self._half + 1, 2 * self._half + 1, self._half)
        return np.concatenate([[IGNORE], drawn, np.full(self.vocab - 1 - self._half, IGNORE)])

    def row(self, rng: np.random.Generator, split: str) -> Row:
        """See the base class."""
        keys = rng.integers(1, self._half + 1, self.length // 2)
        inputs = np.zeros(self.length, dtype=np.int64)
        inputs[::2] = keys
        targets = np.full(self.length, IGNORE)
        targets[1::2] = self._values[keys]
        _, times = earlier(keys)
        place = np.arange(1, self.length + 1)
        seen = np.repeat(times, 2)
        return Row(inputs, targets, {"place": log_bucket(place), "times seen": log_bucket(seen)})

    def oracle(self, inputs: Ints) -> Ints:
        """The map, which is a function of the configuration."""
        before = np.concatenate([np.zeros_like(inputs[:, :1]), inputs[:, :-1]], axis=1)
        return np.asarray(self._values[before])

    def shortcuts(self) -> dict[str, Guess]:
        """The value that most keys have; that of the key with the number before."""
        values = self._values[1 : self._half + 1]
        best = int(np.bincount(values).argmax())

        def neighbour(inputs: Ints) -> Ints:
            return self.oracle(np.where(inputs > 1, inputs - 1, inputs))

        return {
            "commonest value": lambda inputs: np.full_like(inputs, best),
            "value of the key before": neighbour,
        }

    def bound(self) -> float:
        """Several keys share the commonest value."""
        return 6 / self._half + 0.05

    def chance(self) -> float:
        """Among the values."""
        return 1 / self._half

    def tokens(self) -> int:
        """V."""
        return self.vocab

    def name(self, token: int) -> str:
        """Keys k, values v, the mark ?."""
        if token == 0:
            return "?"
        return f"k{token - 1}" if token <= self._half else f"v{token - 1 - self._half}"


@register("stream", "mad_compression")
@dataclass(frozen=True, kw_only=True)
class MadCompressionConfig(MadConfig):
    """Random tokens, a mark, then a marker for each place: say the token that stood there.

    MAD's auto-encoder has a head of its own, fed with the hidden state at the mark and a code of
    the place. Here the same backbone reads the codes as tokens. What goes through the mark in MAD
    goes through the State here: a bottleneck for mixers of constant State, none for attention.
    """

    length: int = 32
    """L: L - 1 tokens and the mark; the row has 2 L - 1."""
    vocab: int = 16
    """V, ids of tokens; the mark and a marker per place come on top."""
    shuffled: bool = False
    """Ask for the places in random order; else from first to last."""

    def check(self) -> None:
        """See the base class."""
        require(self.length >= 3, f"length: {self.length}; must be at least 3.")
        require(self.vocab >= 2, f"vocab: {self.vocab}; must be at least 2.")

    def row(self, rng: np.random.Generator, split: str) -> Row:
        """See the base class."""
        n = self.length - 1
        data = rng.integers(0, self.vocab, n)
        places = rng.permutation(n) if self.shuffled else np.arange(n)
        inputs = np.concatenate([data, [self.vocab], self.vocab + 1 + places])
        targets = np.concatenate([np.full(n + 1, IGNORE), data[places]])
        place = np.concatenate([np.zeros(n + 1, dtype=np.int64), places])
        back = np.arange(2 * n + 1) - place
        back[: n + 1] = 0
        slices = {"place": log_bucket(place)}
        if self.shuffled:  # else it is the same everywhere
            slices["distance"] = log_bucket(back)
        return Row(inputs, targets, slices)

    def oracle(self, inputs: Ints) -> Ints:
        """The token at the place that a marker names."""
        n = self.length - 1
        places = np.maximum(inputs[:, n + 1 :] - self.vocab - 1, 0)
        said = np.take_along_axis(inputs[:, :n], places, axis=1)
        return np.concatenate([np.full_like(inputs[:, : n + 1], IGNORE), said], axis=1)

    def shortcuts(self) -> dict[str, Guess]:
        """The last of the tokens; the commonest."""
        n = self.length - 1

        def last(inputs: Ints) -> Ints:
            return np.repeat(inputs[:, n - 1 : n], inputs.shape[1], axis=1)

        def commonest(inputs: Ints) -> Ints:
            best = _commonest(inputs[:, :n], range(self.vocab))[:, -1:]
            return np.repeat(best, inputs.shape[1], axis=1)

        return {"last token": last, "commonest token": commonest}

    def bound(self) -> float:
        """The commonest of few tokens comes twice as often as another."""
        return 1.2 * self.chance() + 1 / math.sqrt(self.length)

    def chance(self) -> float:
        """Among the tokens."""
        return 1 / self.vocab

    def tokens(self) -> int:
        """V, the mark, a marker per place."""
        return self.vocab + self.length

    def name(self, token: int) -> str:
        """Tokens as they are, the mark |, markers @place."""
        if token == self.vocab:
            return "|"
        return str(token) if token < self.vocab else f"@{token - self.vocab - 1}"
