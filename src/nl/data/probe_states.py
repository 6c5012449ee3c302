"""Probes of state: products in a group, flip-flops, regular and counter languages. Floor 1.

state_tracking: word problems (arXiv 2404.08819); flipflop: arXiv 2306.00946; formal: the languages
of arXiv 2009.11264, a label at every prefix.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from nl.config import ConfigError, register, require
from nl.core.batch import IGNORE
from nl.core.groups.finite import FiniteGroup, GroupError, parse_group
from nl.data.probe import Guess, Ints, ProbeConfig, Row
from nl.data.probe_recall import last_of, log_bucket


@register("stream", "state_tracking")
@dataclass(frozen=True, kw_only=True)
class StateTrackingConfig(ProbeConfig):
    """Elements of a group; at every position their product so far, from left to right."""

    group_name: str = "C2"
    """C2 is parity; C5, S3, A5, S5, ... as in stream=group_composition."""
    length: int = 32
    """Elements of a row."""
    test_length: int | None = None
    """Elements of a test row; null: as many."""

    family = "state"

    def check(self) -> None:
        """See the base class."""
        for name in ("length", "test_length"):
            value = getattr(self, name)
            require(value is None or value >= 2, f"{name}: {value}; must be at least 2.")
        require(self.finite_group().order >= 2, f"group_name: {self.group_name}; one element.")

    def finite_group(self) -> FiniteGroup:
        """The group.

        Raises:
            ConfigError: no such group.
        """
        try:
            return parse_group(self.group_name)
        except GroupError as error:
            raise ConfigError(f"group_name: {error}.") from error

    def row(self, rng: np.random.Generator, split: str) -> Row:
        """See the base class."""
        group = self.finite_group()
        length = (self.test_length or self.length) if split == "test" else self.length
        inputs = rng.integers(0, group.order, length)
        targets = group.products(inputs[None])[0]
        return Row(inputs, targets, {"length": log_bucket(np.arange(1, length + 1))})

    def oracle(self, inputs: Ints) -> Ints:
        """The products."""
        return self.finite_group().products(inputs)

    def shortcuts(self) -> dict[str, Guess]:
        """The element itself; the product of the last two."""
        table = self.finite_group().table

        def two(inputs: Ints) -> Ints:
            before = np.concatenate([np.zeros_like(inputs[:, :1]), inputs[:, :-1]], axis=1)
            return np.asarray(table[before, inputs])

        return {"last element": lambda inputs: inputs, "last two": two}

    def chance(self) -> float:
        """Among all elements."""
        return 1 / self.finite_group().order

    def bound(self) -> float:
        """The product of two is right at the beginning of a row."""
        return self.chance() + 2.5 / self.length + 0.05

    def name(self, token: int) -> str:
        """Its number; g0 is the identity."""
        return f"g{token}"

    def tokens(self) -> int:
        """Elements."""
        return self.finite_group().order


@register("stream", "flipflop")
@dataclass(frozen=True, kw_only=True)
class FlipFlopConfig(ProbeConfig):
    """Instructions write, read, ignore with a bit each; after a read the bit written last."""

    length: int = 64
    """Tokens of a row, even: instruction and bit in turn."""
    ignore: float = 0.8
    """Share of ignores; reads and writes share the rest."""

    family = "state"

    def check(self) -> None:
        """See the base class."""
        fits = self.length >= 4 and self.length % 2 == 0
        require(fits, f"length: {self.length}; must be even and at least 4.")
        require(0 <= self.ignore < 1, f"ignore: {self.ignore}; must be in [0, 1).")

    def row(self, rng: np.random.Generator, split: str) -> Row:
        """See the base class; it begins with a write and ends with a read."""
        n = self.length // 2
        rest = (1 - self.ignore) / 2
        acts = rng.choice([0, 1, 2], size=n, p=[rest, rest, self.ignore])
        acts[0], acts[-1] = 0, 1
        bits = rng.integers(0, 2, n)
        written = np.maximum.accumulate(np.where(acts == 0, np.arange(n), -1))
        bits = np.where(acts == 1, bits[written], bits)
        inputs = np.stack([acts + 2, bits], axis=1).reshape(-1)
        targets = np.full(self.length, IGNORE)
        since = np.zeros(self.length, dtype=np.int64)
        reads = np.flatnonzero(acts == 1)
        targets[2 * reads], since[2 * reads] = bits[reads], reads - written[reads]
        return Row(inputs, targets, {"since write": log_bucket(since)})

    def oracle(self, inputs: Ints) -> Ints:
        """The bit after the last write."""
        writes = np.where(inputs[:, ::2] == 2, np.arange(inputs.shape[1] // 2), -1)
        latest = np.maximum.accumulate(writes, axis=1)
        bits = np.take_along_axis(inputs[:, 1::2], latest, axis=1)
        return np.repeat(bits, 2, axis=1)

    def shortcuts(self) -> dict[str, Guess]:
        """The last bit of any instruction."""

        def last_bit(inputs: Ints) -> Ints:
            return last_of(np.where(inputs < 2, inputs + 2, 0), 2) - 2

        return {"last bit": last_bit}

    def chance(self) -> float:
        """A coin."""
        return 0.5

    def bound(self) -> float:
        """The last bit is the written one where nothing was ignored, else right half the time."""
        return 1 - 0.4 * self.ignore

    def name(self, token: int) -> str:
        """Instructions by their first letters."""
        return ("0", "1", "write", "read", "ignore")[token]

    def tokens(self) -> int:
        """Two bits, three instructions."""
        return 5


LANGUAGES: dict[str, tuple[str, ...]] = {
    "parity": ("a", "b"),
    "aa_star": ("a",),
    "abab_star": ("a", "b"),
    "an_bn": ("a", "b"),
    "an_bn_cn": ("a", "b", "c"),
    "dyck1": ("(", ")"),
    "shuffle2": ("(", ")", "[", "]"),
    "reset_dyck1": ("(", ")", "1"),
}
"""Alphabets."""


@register("stream", "formal")
@dataclass(frozen=True, kw_only=True)
class FormalConfig(ProbeConfig):
    """Strings of a language; at every prefix: which tokens may come next, and may it end here.

    The label of a prefix is the number whose bits are the allowed next tokens, the end last.
    """

    language: Literal[
        "parity", "aa_star", "abab_star", "an_bn", "an_bn_cn", "dyck1", "shuffle2", "reset_dyck1"
    ] = "dyck1"
    """Which: regular (parity, aa_star, abab_star, reset_dyck1) or counting."""
    shortest: int = 2
    """Fewest tokens of a string."""
    longest: int = 20
    """Most tokens of a string; rows are filled up to it with a token that is not scored."""
    test_longest: int = 40
    """Most tokens of a test string, whose fewest are longest + 1."""

    family = "formal"
    shared = "the language; held out are longer strings"
    disjoint: ClassVar[bool] = False
    """There are few strings of each length; test strings are longer."""

    def check(self) -> None:
        """See the base class."""
        fits = 2 <= self.shortest <= self.longest
        require(fits, f"shortest: {self.shortest}; must be 2 to longest ({self.longest}).")
        require(
            self.test_longest > self.longest,
            f"test_longest: {self.test_longest}; must be above longest ({self.longest}).",
        )

    def row(self, rng: np.random.Generator, split: str) -> Row:
        """A random walk through the prefixes of the language."""
        size = len(LANGUAGES[self.language])
        bounds = (self.shortest, self.longest)
        if split == "test":
            bounds = (self.longest + 1, self.test_longest)
        length = int(rng.integers(bounds[0], bounds[1] + 1))
        state = initial(self.language)
        word: list[int] = []
        labels: list[int] = []
        while len(word) < length:
            moves = [t for t in range(size) if step(self.language, state, t) is not None]
            if not moves:
                break
            token = moves[int(rng.integers(len(moves)))]
            following = step(self.language, state, token)
            assert following is not None
            state = following
            word.append(token)
            labels.append(allowed(self.language, state))
        inputs = np.full(bounds[1], size, dtype=np.int64)
        targets = np.full(bounds[1], IGNORE, dtype=np.int64)
        inputs[: len(word)], targets[: len(word)] = word, labels
        places = np.arange(1, bounds[1] + 1)
        return Row(inputs, targets, {"length": log_bucket(places)})

    def oracle(self, inputs: Ints) -> Ints:
        """By following the language's own state."""
        found = np.full_like(inputs, IGNORE)
        for b, line in enumerate(inputs.tolist()):
            state: State | None = initial(self.language)
            for i, token in enumerate(line):
                if token >= len(LANGUAGES[self.language]) or state is None:
                    break
                state = step(self.language, state, token)
                if state is not None:
                    found[b, i] = allowed(self.language, state)
        return found

    def shortcuts(self) -> dict[str, Guess]:
        """What may follow the last token alone: the commonest label after it."""
        table = self._after

        def by_last(inputs: Ints) -> Ints:
            return np.asarray(table)[np.minimum(inputs, len(table) - 1)]

        return {"last token": by_last}

    @functools.cached_property
    def _after(self) -> list[int]:
        rng = np.random.default_rng(0)
        rows = [self.row(rng, "train") for _ in range(500)]
        found = []
        for token in range(len(LANGUAGES[self.language])):
            labels = np.concatenate([r.targets[r.inputs == token] for r in rows])
            found.append(int(np.bincount(labels).argmax()) if len(labels) else 0)
        return found

    def chance(self) -> float:
        """Among all labels that there are."""
        return float(0.5 ** (len(LANGUAGES[self.language]) + 1))

    def bound(self) -> float:
        """What may follow is often told by the last token; rows are told apart by what is not."""
        return 0.97

    def name(self, token: int) -> str:
        """Letters; what fills a dot."""
        letters = LANGUAGES[self.language]
        return letters[token] if token < len(letters) else "."

    def answer(self, label: int) -> str:
        """The letters that may follow, $ where it may end."""
        letters = (*LANGUAGES[self.language], "$")
        found = "".join(a for bit, a in enumerate(letters) if label >> bit & 1)
        return f"{{{found}}}"

    def tokens(self) -> int:
        """The alphabet, the filling, and every label."""
        size = len(LANGUAGES[self.language])
        return max(size + 1, 2 << size)


State = tuple[int, ...]


def initial(language: str) -> State:
    """The state of the empty string."""
    return (0, 0, 0) if language == "an_bn_cn" else (0, 0)


def step(language: str, state: State, token: int) -> State | None:
    """The state after a token; None where no string of the language goes on so."""
    a, b = state[0], state[1]
    if language == "parity":  # an even number of b
        return ((a + token) % 2, 0)
    if language == "aa_star":
        return ((a + 1) % 2, 0)
    if language == "abab_star":
        return ((a + 1) % 4, 0) if token == a % 2 else None
    if language == "an_bn":
        if token == 0:
            return (a + 1, 0) if b == 0 else None
        return (a, b + 1) if b < a else None
    if language == "an_bn_cn":
        return _abc(state, token)
    if language == "reset_dyck1" and token == 2:
        return (0, 0)
    if token in (0, 1):
        return (a + 1, b) if token == 0 else ((a - 1, b) if a else None)
    return (a, b + 1) if token == 2 else ((a, b - 1) if b else None)


def _abc(state: State, token: int) -> State | None:
    a, b, c = state
    if token == 0:
        return (a + 1, 0, 0) if b == c == 0 else None
    if token == 1:
        return (a, b + 1, 0) if b < a and c == 0 else None
    return (a, b, c + 1) if b == a and c < b else None


def accepts(language: str, state: State) -> bool:
    """Whether a string may end here."""
    if language in ("parity", "aa_star", "abab_star", "dyck1", "shuffle2", "reset_dyck1"):
        return not any(state)
    return len(set(state)) == 1


def allowed(language: str, state: State) -> int:
    """The label: bits of the tokens that may follow, then whether it may end."""
    size = len(LANGUAGES[language])
    bits = sum(1 << t for t in range(size) if step(language, state, t) is not None)
    return bits + ((1 << size) if accepts(language, state) else 0)
