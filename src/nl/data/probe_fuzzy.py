"""mad_fuzzy_recall: keys and values of several tokens (MAD, arXiv 2403.17844). Floor 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nl.config import register, require
from nl.core.batch import IGNORE
from nl.data.probe import Guess, Ints, Row
from nl.data.probe_mad import MadConfig, earlier
from nl.data.probe_recall import last_of, log_bucket, recalled


@register("stream", "mad_fuzzy_recall")
@dataclass(frozen=True, kw_only=True)
class MadFuzzyRecallConfig(MadConfig):
    """As mad_recall, but keys and values are motifs of one to three tokens.

    A motif has no token twice. A row has a few keys, a motif each, drawn again and again; where one
    comes again, its last token asks for the first of the value, and every token of the value for
    the next. The last key has the greatest length. The row is filled up on its left.
    """

    length: int = 128
    """L, tokens of a row."""
    vocab: int = 16
    """V, ids: one that fills, then keys, then as many values; the last may stay unused."""
    motif: int = 3
    """Most tokens of a key, and of a value."""
    keys: int = 6
    """Different keys of a row. MAD draws from all motifs, of which few come twice."""

    def check(self) -> None:
        """See the base class."""
        require(self.motif >= 2, f"motif: {self.motif}; must be >= 2 (1 is mad_recall).")
        fits = self._half >= max(2, self.motif)
        require(fits, f"vocab: {self.vocab}; too few for motifs of {self.motif}.")
        fits = 2 <= self.keys <= self._half
        require(fits, f"keys: {self.keys}; must be 2 to {self._half}, half of the ids.")
        least = 4 * self.motif
        require(self.length >= least, f"length: {self.length}; must be at least {least}.")

    @property
    def _half(self) -> int:
        return (self.vocab - 1) // 2

    def row(self, rng: np.random.Generator, split: str) -> Row:
        """See the base class."""
        pool, values = self._pool(rng)
        longest = [i for i, key in enumerate(pool) if len(key) == self.motif]
        drawn, left = [int(rng.choice(longest))], self.length
        left -= 2 * self.motif + self._size(pool, values, drawn[0])
        while True:
            key = int(rng.integers(self.keys))
            left -= self._size(pool, values, key)
            if left < 0:
                break
            drawn.append(key)
        drawn.append(int(rng.choice([key for key in drawn if key in longest])))
        before, _ = earlier(np.asarray(drawn))
        tokens: list[int] = []
        marks: list[tuple[int, int, int, int]] = []
        starts: list[int] = []
        for number, key in enumerate(drawn):
            starts.append(len(tokens))
            tokens += pool[key]
            if before[number] >= 0:
                gap = len(tokens) - starts[before[number]]
                at = len(tokens) - 1
                marks += [(at + i, v, gap, len(pool[key])) for i, v in enumerate(values[key])]
            tokens += values[key]
        inputs = np.zeros(self.length, dtype=np.int64)
        shift = self.length - len(tokens)
        inputs[shift:] = tokens
        targets = np.full(self.length, IGNORE)
        gaps, sizes = np.zeros((2, self.length), dtype=np.int64)
        at, labels, apart, size = np.asarray(marks).T
        targets[shift + at], gaps[shift + at], sizes[shift + at] = labels, apart, size
        return Row(inputs, targets, {"gap": log_bucket(gaps), "key length": sizes})

    def _pool(self, rng: np.random.Generator) -> tuple[list[list[int]], list[list[int]]]:
        """Different keys, one of the greatest length at least, and a value for each.

        The motifs of a row are made of few tokens, so that none is known by one of them.
        """
        few = max(self.motif, min(self._half, self.keys + 1))
        mine, theirs = (rng.permutation(self._half)[:few] + side for side in (1, self._half + 1))
        sizes = rng.integers(1, self.motif + 1, (2, self.keys))
        sizes[0, 0] = self.motif
        found: list[list[int]] = []
        for size in sizes[0].tolist():
            while True:
                key = rng.permutation(mine)[:size].tolist()
                if key not in found:
                    break
            found.append(key)
        return found, [rng.permutation(theirs)[:n].tolist() for n in sizes[1]]

    @staticmethod
    def _size(pool: list[list[int]], values: list[list[int]], key: int) -> int:
        return len(pool[key]) + len(values[key])

    def oracle(self, inputs: Ints) -> Ints:
        """Runs of key tokens and of value tokens in turn; the value of the same run of keys."""
        found = np.full_like(inputs, IGNORE)
        first = self._half + 1
        for b, line in enumerate(inputs.tolist()):
            known: dict[tuple[int, ...], list[int]] = {}
            key: tuple[int, ...] = ()
            value: list[int] = []
            for i, token in enumerate(line):
                if 0 < token < first:
                    if value:
                        known.setdefault(key, value)
                        key, value = (), []
                    key = (*key, token)
                elif token:
                    value.append(token)
                told = known.get(key, [])
                found[b, i] = told[len(value)] if len(value) < len(told) else IGNORE
        return found

    def shortcuts(self) -> dict[str, Guess]:
        """What followed the same single token last; the value token seen last."""
        return {
            "last token alone": lambda inputs: recalled(inputs, first=False),
            "last value": lambda inputs: last_of(inputs, self._half + 1),
        }

    def bound(self) -> float:
        """A single token of a motif tells more than half where keys are short, more of few keys."""
        return 0.7 + 0.4 / self.keys

    def chance(self) -> float:
        """Among the tokens of values."""
        return 1 / self._half

    def tokens(self) -> int:
        """V."""
        return self.vocab

    def name(self, token: int) -> str:
        """Keys k, values v."""
        if token == 0:
            return "."
        return f"k{token - 1}" if token <= self._half else f"v{token - 1 - self._half}"
