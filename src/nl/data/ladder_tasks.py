"""The ladder: nine rules that decide whether a short sequence is of class 1. Floor 1.

A raw example is a row of numbers (T, F) or of tokens (T,); labels are computed by the rule, never
by the generator. Facts decide the split: an arithmetic example belongs where its operands belong,
so that no sum that is tested was trained on, right or wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nl.config import ConfigError

Raw = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
PLUS, EQUALS = 10, 11
ARITHMETIC = (*"0123456789", "+", "=")
KINDS = ("plain", "right", "near", "tens", "swapped digits", "same units", "any other")
"""What an example is: a numeric one, a right sum, or how its wrong number was made."""
PLAIN, RIGHT = 0, 1


class Rule(Protocol):
    """One task of the ladder."""

    @property
    def steps(self) -> int:
        """T."""

    @property
    def features(self) -> int:
        """F, after one-hot encoding of tokens."""

    @property
    def tokens(self) -> tuple[str, ...] | None:
        """Names of tokens; None for numbers."""

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Raw, Ints]:
        """Raw candidates and their kinds (count,)."""

    def label(self, raw: Raw) -> Ints:
        """(n,) 0 or 1; -1 where the rule does not decide."""

    def facts(self, raw: Raw) -> list[bytes]:
        """What decides the split of each example."""


# Numbers


@dataclass(frozen=True)
class Numeric:
    """Standard normal rows; a function of them is the label."""

    rule: Callable[[Raw], Ints]
    steps: int = 5
    features: int = 2
    tokens: None = None

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Raw, Ints]:
        """See ``Rule``."""
        rows = rng.standard_normal((count, self.steps, self.features), dtype=np.float32)
        return rows, np.zeros(count, dtype=np.int64)

    def label(self, raw: Raw) -> Ints:
        """See ``Rule``."""
        return np.asarray(self.rule(raw))

    def facts(self, raw: Raw) -> list[bytes]:
        """The example itself."""
        return [row.tobytes() for row in raw]


def ranked_sign(raw: Raw, rank: int) -> Ints:
    """Whether the row sum of the ``rank``-th largest absolute value is positive; -1 at a tie."""
    sums = raw.sum(axis=2, dtype=np.float64)
    sizes = np.abs(sums)
    order = np.argsort(-sizes, axis=1, kind="stable")
    place = order[:, rank]
    best = np.take_along_axis(sums, place[:, None], axis=1)[:, 0]
    tied = (sizes == np.abs(best)[:, None]).sum(axis=1) > 1
    return np.asarray(np.where(tied | (best == 0), -1, best > 0), dtype=np.int64)


def both_signs(raw: Raw) -> Ints:
    """Whether some row sums are positive and some negative."""
    sums = raw.sum(axis=2, dtype=np.float64)
    return np.asarray((sums > 0).any(axis=1) & (sums < 0).any(axis=1), dtype=np.int64)


def any_large(raw: Raw) -> Ints:
    """Whether any number is larger than one in absolute value."""
    return np.asarray((np.abs(raw) > 1).any(axis=(1, 2)), dtype=np.int64)


# Tokens


@dataclass(frozen=True)
class AllTokens:
    """Whether every token of a small vocabulary occurs."""

    steps: int = 5
    features: int = 4

    @property
    def tokens(self) -> tuple[str, ...]:
        """Letters."""
        return tuple(chr(ord("a") + n) for n in range(self.features))

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Raw, Ints]:
        """See ``Rule``."""
        rows = rng.integers(0, self.features, (count, self.steps))
        return rows, np.zeros(count, dtype=np.int64)

    def label(self, raw: Raw) -> Ints:
        """See ``Rule``."""
        present = (raw[:, :, None] == np.arange(self.features)).any(axis=1)
        return np.asarray(present.all(axis=1), dtype=np.int64)

    def facts(self, raw: Raw) -> list[bytes]:
        """The example itself."""
        return [row.tobytes() for row in raw.astype(np.int64)]


@dataclass(frozen=True)
class Sums:
    """Whether two sums of numbers of D digits are equal; the last number of the right is told.

    With ``swapped`` half of the examples have the single number first: a = b + c.
    """

    digits: int
    left: int = 2
    right: int = 1
    swapped: bool = False
    features: int = 12
    tokens: tuple[str, ...] = field(default=ARITHMETIC)

    @property
    def steps(self) -> int:
        """Tokens of an example."""
        return (self.digits + 1) * (self.left + self.right) - 1

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Raw, Ints]:
        """Right examples and wrong ones, as many of each kind of wrong as there are."""
        base = 10**self.digits
        rows: list[Raw] = []
        found = 0
        while found < count:
            numbers = rng.integers(0, base, (2 * count, self.left + self.right))
            last = numbers[:, : self.left].sum(axis=1) - numbers[:, self.left : -1].sum(axis=1)
            numbers = numbers[(last >= 0) & (last < base)]
            numbers[:, -1] = last[(last >= 0) & (last < base)]
            rows.append(numbers)
            found += len(numbers)
        numbers = np.concatenate(rows)[:count]
        kinds = np.full(count, RIGHT, dtype=np.int64)
        wrong = rng.random(count) < 0.5
        numbers[wrong, -1], kinds[wrong] = self._wrong(rng, numbers[wrong, -1])
        first = rng.random(count) < 0.5 if self.swapped else np.zeros(count, dtype=bool)
        return self.written(numbers, first), kinds

    def _wrong(self, rng: np.random.Generator, right: Ints) -> tuple[Ints, Ints]:
        """Another number for each, and how it was made; ways that fit are equally likely."""
        base, n = 10**self.digits, len(right)
        sign = rng.choice([-1, 1], size=n)
        ways = {2: right + sign, 6: (right + rng.integers(1, base, n)) % base}
        if self.digits > 1:
            place = 10 ** rng.integers(0, self.digits - 1, n)
            low, high = right // place % 10, right // (10 * place) % 10
            ways |= {
                3: right + 10 * sign,
                4: right + (low - high) * 10 * place + (high - low) * place,
                5: (right + 10 * rng.integers(1, base // 10, n)) % base,
            }
        names = np.asarray(list(ways))
        values = np.stack(list(ways.values()))
        fits = (values >= 0) & (values < base) & (values != right)
        chosen = np.argmax(np.where(fits, rng.random(values.shape), -1.0), axis=0)
        return values[chosen, np.arange(n)], names[chosen]

    def written(self, numbers: Ints, first: npt.NDArray[np.bool_]) -> Ints:
        """Tokens (n, T) of rows of numbers; where ``first``, the right side comes first."""
        plain = self._tokens(numbers, self.left)
        if not first.any():
            return plain
        turned = np.concatenate([numbers[:, self.left :], numbers[:, : self.left]], axis=1)
        return np.where(first[:, None], self._tokens(turned, self.right), plain)

    def _tokens(self, numbers: Ints, before: int) -> Ints:
        powers = 10 ** np.arange(self.digits - 1, -1, -1)
        digits = numbers[:, :, None] // powers % 10
        marks = np.full((*numbers.shape, 1), PLUS)
        marks[:, before - 1] = EQUALS
        flat = np.concatenate([digits, marks], axis=2).reshape(len(numbers), -1)
        return np.asarray(flat[:, :-1], dtype=np.int64)

    def label(self, raw: Raw) -> Ints:
        """1 where both sides are well formed and equal."""
        forms = [self._equal(raw, self.left)]
        if self.swapped:
            forms.append(self._equal(raw, self.right))
        return np.asarray(np.any(forms, axis=0), dtype=np.int64)

    def _equal(self, raw: Raw, before: int) -> npt.NDArray[np.bool_]:
        count = self.left + self.right
        ended = np.concatenate([raw, np.full((len(raw), 1), PLUS)], axis=1)
        parts = ended.reshape(len(raw), count, self.digits + 1)
        marks = np.full(count, PLUS)
        marks[before - 1] = EQUALS
        formed = (parts[:, :, -1] == marks).all(axis=1) & (parts[:, :, :-1] < 10).all(axis=(1, 2))
        powers = 10 ** np.arange(self.digits - 1, -1, -1)
        values = (parts[:, :, :-1] * powers).sum(axis=2)
        equal = values[:, :before].sum(axis=1) == values[:, before:].sum(axis=1)
        return np.asarray(formed & equal)

    def facts(self, raw: Raw) -> list[bytes]:
        """The operands, sorted on each side, without the number that may be wrong."""
        found = []
        width = self.digits + 1
        for row in raw:
            words = [row[n * width : n * width + self.digits].tobytes() for n in range(self._count)]
            turned = self.swapped and row[self.right * width - 1] == EQUALS
            head = words[self.right :] if turned else words[: self.left]
            tail = [] if turned else words[self.left : -1]
            found.append(b"".join(sorted(head)) + b"=" + b"".join(sorted(tail)))
        return found

    @property
    def _count(self) -> int:
        return self.left + self.right


TASKS: dict[str, str] = {
    "sign_of_winner": "sign_of_winner",
    "sign_of_second_place": "sign_of_second_place",
    "has_pos_and_neg": "has_pos_and_neg",
    "has_all_tokens": "has_all_tokens",
    "any_abs_gt_one": "any_abs_gt_one",
    "single_digit_sum": "single_digit_sum",
    "single_digit_sum_swapped": "single_digit_sum_swapped",
    "aa_bb_cc": "aa+bb=cc",
    "multi_digit_sum": "multi_digit_sum",
}
"""Name of every task and what earlier tables call it, in their order."""


def rule_of(task: str, steps: int | None = None, digits: int | None = None) -> Rule:
    """The rule of a task.

    Args:
        task: one of ``TASKS``.
        steps: rows of a numeric example or tokens of ``has_all_tokens``; None: 5.
        digits: of the numbers of ``aa_bb_cc`` and ``multi_digit_sum``; None: 2.

    Raises:
        ConfigError: an argument that the task does not have.
    """
    sums: dict[str, Rule] = {
        "single_digit_sum": Sums(1),
        "single_digit_sum_swapped": Sums(1, swapped=True),
        "aa_bb_cc": Sums(digits or 2),
        "multi_digit_sum": Sums(digits or 2, right=2),
    }
    if task in sums:
        if steps is not None:
            raise ConfigError(f"steps: {steps}; {task} follows from its digits, leave it null.")
        if digits is not None and task.startswith("single"):
            raise ConfigError(f"digits: {digits}; {task} has one, leave it null.")
        return sums[task]
    if digits is not None:
        raise ConfigError(f"digits: {digits}; {task} has no numbers of digits, leave it null.")
    size = 5 if steps is None else steps
    if task == "has_all_tokens":
        return AllTokens(size)
    rules: dict[str, Callable[[Raw], Ints]] = {
        "sign_of_winner": lambda raw: ranked_sign(raw, 0),
        "sign_of_second_place": lambda raw: ranked_sign(raw, 1),
        "has_pos_and_neg": both_signs,
        "any_abs_gt_one": any_large,
    }
    return Numeric(rules[task], size)
