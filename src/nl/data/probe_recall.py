"""Probes of recall: pairs asked for after gaps, pairs that are rewritten, copying. Floor 1.

mqar and its gaps: Zoology (arXiv 2312.04927); selective_copy and induction: Mamba (arXiv
2312.00752), with blanks that are really placed at random.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import numpy as np

from nl.config import register, require
from nl.core.batch import IGNORE
from nl.data.probe import Guess, Ints, ProbeConfig, Row

FILLER = 0
"""Token of positions that say nothing."""


@register("stream", "mqar")
@dataclass(frozen=True, kw_only=True)
class MqarConfig(ProbeConfig):
    """Multi-query associative recall: N pairs, then every key once, its value to be said.

    Keys are ids 1 ... V/2 - 1, values V/2 ... V - 1, both without repetition. Queries stand at even
    places after the pairs; the gap between a pair and its query follows p(g) ~ g^(power - 1).
    """

    length: int = 64
    """L, tokens of a row; even, at least 4 N."""
    pairs: int = 4
    """N."""
    vocab: int = 256
    """V, even."""
    power: float = 0.01
    """Exponent of the gaps; small: most queries come soon, 1: evenly."""

    family = "recall"

    def check(self) -> None:
        """See the base class."""
        require(self.pairs >= 1, f"pairs: {self.pairs}; must be >= 1.")
        fits = self.length % 2 == 0 and self.length >= 4 * self.pairs
        require(fits, f"length: {self.length}; must be even and at least 4 pairs.")
        require(self.vocab % 2 == 0, f"vocab: {self.vocab}; must be even.")
        require(
            self.vocab // 2 > self.pairs,
            f"vocab: {self.vocab}; {self.pairs} pairs need more than {2 * self.pairs}.",
        )
        require(self.power > 0, f"power: {self.power}; must be > 0.")

    def row(self, rng: np.random.Generator, split: str) -> Row:
        """See the base class."""
        half, n = self.vocab // 2, self.pairs
        keys = rng.permutation(half - 1)[:n] + 1
        values = rng.permutation(half)[:n] + half
        inputs = np.full(self.length, FILLER, dtype=np.int64)
        inputs[0 : 2 * n : 2], inputs[1 : 2 * n : 2] = keys, values
        places = (self.length - 2 * n) // 2
        weight = np.arange(1, places + 1) ** (self.power - 1.0)
        slots = rng.choice(places, size=n, replace=False, p=weight / weight.sum())
        targets = np.full(self.length, IGNORE, dtype=np.int64)
        gaps = np.zeros(self.length, dtype=np.int64)
        at = 2 * n + 2 * slots
        inputs[at], targets[at], gaps[at] = keys, values, at - 2 * np.arange(n)
        return Row(inputs, targets, {"gap": np.where(targets == IGNORE, 0, log_bucket(gaps))})

    def oracle(self, inputs: Ints) -> Ints:
        """The token after the first time that the token was there."""
        return recalled(inputs, first=True)

    def shortcuts(self) -> dict[str, Guess]:
        """The value seen last; the commonest value is chance here."""
        return {"last value": lambda inputs: last_of(inputs, self.vocab // 2)}

    def chance(self) -> float:
        """Among the values of the row."""
        return 1 / self.pairs

    def bound(self) -> float:
        """Where gaps are short the value seen last is right more often than one of N."""
        return self.chance() + 0.1

    def name(self, token: int) -> str:
        """Keys k, values v."""
        return pair_name(token, self.vocab // 2)

    def errors(self, inputs: Ints, guess: Ints) -> dict[str, Ints]:
        """A value of another key; none of the row."""
        found = wrong_values(inputs, guess, range(self.vocab // 2, self.vocab))
        return {name: found[name] for name in list(found)[1:]}

    def tokens(self) -> int:
        """V."""
        return self.vocab


@register("stream", "mqar_update")
@dataclass(frozen=True, kw_only=True)
class MqarUpdateConfig(ProbeConfig):
    """Recall of what is true now: pairs, some written again with another value, then every key.

    Writes come in a random order in which a key's first stands before its later ones; what is asked
    for is the value of the last. Values repeat between keys, never within one.
    """

    pairs: int = 4
    """N keys."""
    updates: int = 2
    """Further writes, of random keys."""
    vocab: int = 64
    """V, even; keys below V/2, values above."""

    family = "recall"

    def check(self) -> None:
        """See the base class."""
        require(self.pairs >= 1, f"pairs: {self.pairs}; must be >= 1.")
        require(self.updates >= 0, f"updates: {self.updates}; must be >= 0.")
        half = self.vocab // 2
        require(
            self.vocab % 2 == 0 and half > max(self.pairs, self.updates + 1),
            f"vocab: {self.vocab}; must be even, half of it above pairs and updates + 1.",
        )

    def row(self, rng: np.random.Generator, split: str) -> Row:
        """See the base class."""
        half, n = self.vocab // 2, self.pairs
        keys = rng.permutation(half - 1)[:n] + 1
        which = np.concatenate([np.arange(n), rng.integers(0, n, self.updates)])
        order = rng.permutation(len(which))
        which = which[order]
        pools = rng.permuted(np.tile(np.arange(half), (n, 1)), axis=1) + half
        turn = np.asarray([int((which[:i] == k).sum()) for i, k in enumerate(which)])
        written = pools[which, turn]
        last = {int(k): i for i, k in enumerate(which)}
        asked = rng.permutation(n)
        inputs = np.stack([keys[which], written], axis=1).reshape(-1)
        inputs = np.concatenate([inputs, keys[asked]]).astype(np.int64)
        targets = np.full(len(inputs), IGNORE, dtype=np.int64)
        start = 2 * len(which)
        targets[start:] = [written[last[int(k)]] for k in asked]
        age = np.zeros(len(inputs), dtype=np.int64)
        times = np.zeros(len(inputs), dtype=np.int64)
        age[start:] = [len(which) - 1 - last[int(k)] for k in asked]
        times[start:] = [int((which == k).sum()) for k in asked]
        return Row(inputs, targets, {"writes since": log_bucket(age), "times written": times})

    def oracle(self, inputs: Ints) -> Ints:
        """The token after the last time that the token was written."""
        return recalled(inputs, first=False, reads=self.pairs)

    def shortcuts(self) -> dict[str, Guess]:
        """The first value of the key instead of the last; the value seen last."""
        return {
            "first value": lambda inputs: recalled(inputs, first=True),
            "last value": lambda inputs: last_of(inputs, self.vocab // 2),
        }

    def chance(self) -> float:
        """Among all writes of the row."""
        return 1 / (self.pairs + self.updates)

    def bound(self) -> float:
        """The first value of a key is the last of those written once."""
        return max(0.5, 1 - 0.7 * self.updates / (self.pairs + self.updates))

    def name(self, token: int) -> str:
        """Keys k, values v."""
        return pair_name(token, self.vocab // 2)

    def errors(self, inputs: Ints, guess: Ints) -> dict[str, Ints]:
        """A former value of the key; a value of another key; none of the row."""
        return wrong_values(inputs, guess, range(self.vocab // 2, self.vocab))

    def tokens(self) -> int:
        """V."""
        return self.vocab


@register("stream", "selective_copy")
@dataclass(frozen=True, kw_only=True)
class SelectiveCopyConfig(ProbeConfig):
    """Some tokens among blanks, then as many marks: say the tokens in their order."""

    length: int = 64
    """Tokens before the marks."""
    copied: int = 4
    """Tokens to keep."""
    vocab: int = 16
    """Ids: a blank, a mark, and what can be copied."""

    family = "recall"

    def check(self) -> None:
        """See the base class."""
        fits = 1 <= self.copied <= self.length
        require(fits, f"copied: {self.copied}; must be 1 to length ({self.length}).")
        require(self.vocab >= 4, f"vocab: {self.vocab}; must be at least 4.")

    def row(self, rng: np.random.Generator, split: str) -> Row:
        """See the base class."""
        data = rng.integers(2, self.vocab, self.copied)
        places = np.sort(rng.permutation(self.length)[: self.copied])
        inputs = np.full(self.length + self.copied, FILLER, dtype=np.int64)
        inputs[places], inputs[self.length :] = data, 1
        targets = np.full(len(inputs), IGNORE, dtype=np.int64)
        targets[self.length :] = data
        order, distance = np.zeros((2, len(inputs)), dtype=np.int64)
        order[self.length :] = np.arange(self.copied)
        distance[self.length :] = self.length + np.arange(self.copied) - places
        return Row(inputs, targets, {"order": order, "distance": log_bucket(distance)})

    def oracle(self, inputs: Ints) -> Ints:
        """The j-th token that is no blank, at the j-th mark."""
        found = np.zeros_like(inputs)
        for b, line in enumerate(inputs):
            found[b, self.length :] = line[line > 1]
        return found

    def shortcuts(self) -> dict[str, Guess]:
        """Always the last of the tokens."""
        return {"last token": lambda inputs: last_of(inputs, 2)}

    def chance(self) -> float:
        """Among what can be copied."""
        return 1 / (self.vocab - 2)

    def bound(self) -> float:
        """The last token is right in one place of all."""
        return 1 / self.copied + self.chance() + 0.1

    def name(self, token: int) -> str:
        """Blanks ., marks ?, tokens from 0."""
        return ".?"[token] if token < 2 else str(token - 2)

    def tokens(self) -> int:
        """Ids in use."""
        return self.vocab


@register("stream", "induction")
@dataclass(frozen=True, kw_only=True)
class InductionConfig(ProbeConfig):
    """Random tokens with one special one; it comes again at the end: say what followed it."""

    length: int = 64
    """Tokens of a row."""
    vocab: int = 16
    """Ids besides the special one."""

    family = "recall"

    def check(self) -> None:
        """See the base class."""
        require(self.length >= 4, f"length: {self.length}; must be at least 4.")
        require(self.vocab >= 2, f"vocab: {self.vocab}; must be at least 2.")

    def row(self, rng: np.random.Generator, split: str) -> Row:
        """See the base class."""
        inputs = rng.integers(0, self.vocab, self.length)
        place = int(rng.integers(0, self.length - 2))
        inputs[place] = inputs[-1] = self.vocab
        targets, distance = np.full(self.length, IGNORE), np.zeros(self.length, dtype=np.int64)
        targets[-1], distance[-1] = inputs[place + 1], self.length - 1 - place
        return Row(inputs, targets, {"distance": log_bucket(distance)})

    def oracle(self, inputs: Ints) -> Ints:
        """The token after the first special one."""
        return recalled(inputs, first=True)

    def shortcuts(self) -> dict[str, Guess]:
        """The token that is most frequent in the row."""

        def commonest(inputs: Ints) -> Ints:
            counts = [np.bincount(line, minlength=self.vocab)[: self.vocab] for line in inputs]
            return np.repeat(np.argmax(counts, axis=1)[:, None], inputs.shape[1], axis=1)

        return {"commonest token": commonest}

    def chance(self) -> float:
        """Among all tokens."""
        return 1 / self.vocab

    def bound(self) -> float:
        """In a short row the commonest token may have been the one."""
        return self.chance() + 0.15

    def name(self, token: int) -> str:
        """The special one S."""
        return "S" if token == self.vocab else str(token)

    def tokens(self) -> int:
        """Ids in use."""
        return self.vocab + 1


def log_bucket(numbers: Ints) -> Ints:
    """0, 1, 2, 4, 8, ...: the largest power of two that a number reaches."""
    safe = np.maximum(numbers, 1)
    powers = 1 << np.floor(np.log2(safe)).astype(np.int64)
    return np.asarray(np.where(numbers < 1, 0, powers), dtype=np.int64)


def recalled(inputs: Ints, *, first: bool, reads: int = 0) -> Ints:
    """At every position what followed an earlier one of its token: the first, or the last.

    Args:
        inputs: (B, L).
        first: which of several.
        reads: tokens at the end that only ask; what follows them counts for nothing.
    """
    found = np.full_like(inputs, IGNORE)
    for b, line in enumerate(inputs.tolist()):
        known: dict[int, int] = {}
        for i, token in enumerate(line):
            found[b, i] = known.get(token, IGNORE)
            if i + 1 < len(line) - reads and not (first and token in known):
                known[token] = line[i + 1]
    return found


def last_of(inputs: Ints, least: int) -> Ints:
    """At every position the last token so far whose id is at least ``least``."""
    places = np.where(inputs >= least, np.arange(inputs.shape[1]), -1)
    latest = np.maximum.accumulate(places, axis=1)
    return np.where(latest < 0, IGNORE, np.take_along_axis(inputs, np.maximum(latest, 0), axis=1))


def pair_name(token: int, half: int) -> str:
    """Keys k (ids below ``half``), values v, what fills a dot."""
    if token == FILLER:
        return "."
    return f"k{token}" if token < half else f"v{token - half}"


def wrong_values(inputs: Ints, guess: Ints, values: Container[int]) -> dict[str, Ints]:
    """What a guess that is no right answer was: where it is of each kind (B, L), else 0.

    Args:
        inputs: (B, L) keys at even places, behind some of them their values.
        guess: (B, L).
        values: ids of values.
    """
    stale, other, outside = np.zeros((3, *inputs.shape), dtype=np.int64)
    for b, line in enumerate(inputs.tolist()):
        told: dict[int, list[int]] = {}
        shown: set[int] = set()
        for i, token in enumerate(line):
            said, mine = int(guess[b, i]), told.get(token, [])
            stale[b, i] = said in mine[:-1] and said != mine[-1]
            other[b, i] = said not in mine and said in shown
            outside[b, i] = said not in shown
            if i % 2 == 0 and i + 1 < len(line) and line[i + 1] in values:
                told.setdefault(token, []).append(line[i + 1])
                shown.add(line[i + 1])
    return {"stale value": stale, "value of another key": other, "out of context": outside}
