"""What probe tasks share: rows by index, disjoint splits, oracle, shortcuts, slices. Floor 1.

A probe is a stream of token rows with labels at some positions. Row i of a split is a function of
(configuration, split, seed, i) alone: of neither batch size, ranks nor device. A hash of the row
says which split it may be in; one that falls elsewhere is drawn again, so no row is in two splits.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nl.config import ConfigError, require
from nl.config.groups import StreamConfig
from nl.core.batch import IGNORE
from nl.core.seeds import SeedBook
from nl.data.stream import COUNT, Fetch, RowStream, own_rows, stream_of

Ints = npt.NDArray[np.int64]
BUCKETS = {"train": range(80), "val": range(80, 90), "test": range(90, 100)}
TRIES = 10_000
Guess = Callable[[Ints], Ints]
"""Inputs (B, L) -> a prediction (B, L) at every position; only scored ones count."""


class Row(NamedTuple):
    """One example.

    Attributes:
        inputs: (L,) token ids.
        targets: (L,) what is to be said at each position, ``IGNORE`` where nothing is scored.
        slices: by name a number per position (L,), for accuracy by difficulty; only scored
            positions count.
    """

    inputs: Ints
    targets: Ints
    slices: Mapping[str, Ints] = {}


class Probes(NamedTuple):
    """Examples of a split, stacked; see ``Row``."""

    inputs: Ints
    targets: Ints
    slices: dict[str, Ints]


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(StreamConfig):
    """A probe task. Inputs (B, L) token ids, targets (B, L), IGNORE where nothing is scored."""

    val_size: int = 512
    """Validation rows."""
    test_size: int = 1024
    """Test rows."""
    train_size: int = 0
    """Training rows, shown again every pass; 0: fresh rows for ever."""
    batch_size: int = 32
    """Rows per micro-batch, over all ranks."""

    disjoint: ClassVar[bool] = True
    """Whether a row is in one split only; false for languages with a handful of strings per length,
    whose test is longer strings."""
    family: ClassVar[str] = ""
    """recall, state, formal, mad, continual."""
    shared: ClassVar[str] = ""
    """What splits have in common by intention, and what is held out then; empty: nothing."""

    def __post_init__(self) -> None:
        least = {"val_size": 1, "test_size": 1, "train_size": 0, "batch_size": 1}
        for name, smallest in least.items():
            value = getattr(self, name)
            require(value >= smallest, f"{name}: {value}; must be >= {smallest}.")
        self.check()

    def check(self) -> None:
        """Refuse settings that do not fit together."""

    @abstractmethod
    def row(self, rng: np.random.Generator, split: str) -> Row:
        """Draw one example; ``split`` matters where test rows are longer."""

    def draw(self, rng: np.random.Generator, split: str, number: int) -> Row:
        """``row``, of tasks for which the number of a row says more than its random stream."""
        del number
        return self.row(rng, split)

    @abstractmethod
    def oracle(self, inputs: Ints) -> Ints:
        """The right answer at every scored position, from the inputs alone."""

    @abstractmethod
    def shortcuts(self) -> dict[str, Guess]:
        """Rules that do without what the task is about, by name."""

    @abstractmethod
    def chance(self) -> float:
        """Accuracy of an even guess among the answers that are possible."""

    @abstractmethod
    def bound(self) -> float:
        """An accuracy that no shortcut reaches."""

    @abstractmethod
    def tokens(self) -> int:
        """Token ids in use."""

    def name(self, token: int) -> str:
        """An id as a reader sees it."""
        return str(token)

    def answer(self, label: int) -> str:
        """A label as a reader sees it."""
        return self.name(label)

    def errors(self, inputs: Ints, guess: Ints) -> dict[str, Ints]:
        """Kinds of wrong answers: where a guess (B, L) is one of a kind, by name; may be none."""
        del inputs, guess
        return {}

    def render(self, row: Row, guess: Ints | None = None) -> str:
        """A row for a reader: tokens in turn, behind a scored one [what is right].

        Args:
            row: the row.
            guess: (L,) predictions; where one is wrong it stands behind the right answer: [v1, not
                v2].
        """
        words = []
        for at, (token, label) in enumerate(
            zip(row.inputs.tolist(), row.targets.tolist(), strict=True)
        ):
            word = self.name(token)
            if label != IGNORE:
                said = "" if guess is None or guess[at] == label else self.answer(int(guess[at]))
                word += f"[{self.answer(label)}{f', not {said}' if said else ''}]"
            words.append(word)
        return " ".join(words)

    def fact(self, row: Row) -> bytes:
        """What decides the split: the whole row, unless a task holds out more."""
        return row.inputs.tobytes() + row.targets.tobytes()

    def splits(self) -> tuple[str, ...]:
        """``train`` and ``val``; ``test`` can be built too."""
        return ("train", "val")

    def vocab_size(self) -> int | None:
        """Token ids in use."""
        return self.tokens()

    def rows(self, split: str, seed: int, index: Ints) -> list[Row]:
        """Rows of a split by their numbers.

        Raises:
            ConfigError: no such split, or hardly any row of it.
        """
        if split not in BUCKETS:
            raise ConfigError(f"split {split!r} of {self.kind}: use {', '.join(BUCKETS)}.")
        key = SeedBook(seed).seed(self.kind, split)
        return [self._row(key, split, int(number)) for number in index]

    def _row(self, key: int, split: str, number: int) -> Row:
        rng = stream_of(key, number)
        for _ in range(TRIES):
            row = self.draw(rng, split, number)
            if not self.disjoint or belongs(self.fact(row), split):
                return row
        raise ConfigError(
            f"{self.kind}: no row of split {split} in {TRIES} draws; enlarge the task."
        )

    def examples(self, split: str, seed: int) -> Probes:
        """All rows of a split (of ``train``: as many as of ``test``)."""
        sizes = {"train": self.train_size or self.test_size}
        size = sizes.get(split, getattr(self, f"{split}_size", 0))
        found = self.rows(split, seed, np.arange(size))
        names = found[0].slices
        return Probes(
            np.stack([row.inputs for row in found]),
            np.stack([row.targets for row in found]),
            {name: np.stack([row.slices[name] for row in found]) for name in names},
        )

    def build(self, split: str, *, seed: int, rank: int, world: int) -> RowStream:
        """``train`` is endless; ``val`` and ``test`` go once through their rows."""
        self.rows(split, seed, np.arange(1))  # refused here rather than in the first step
        size, fetch = getattr(self, f"{split}_size", 0), self._fetch(split, seed)
        place = (seed, rank, world)
        return own_rows(self, split, fetch, size=size, place=place, scored=COUNT)

    def _fetch(self, split: str, seed: int) -> Fetch:
        def fetch(source: Ints, index: Ints) -> tuple[Tensor, Tensor]:
            del source
            found = self.rows(split, seed, index)
            inputs = np.stack([row.inputs for row in found])
            return torch.from_numpy(inputs), torch.from_numpy(np.stack([r.targets for r in found]))

        return fetch


def belongs(fact: bytes, split: str) -> bool:
    """Whether a fact may be in this split: its hash decides."""
    digest = hashlib.blake2b(fact, digest_size=8).digest()
    return int.from_bytes(digest, "little") % 100 in BUCKETS[split]


def score(guess: Ints, targets: Ints) -> dict[str, Any]:
    """Accuracy over scored positions, and the share of rows without an error."""
    scored = targets != IGNORE
    hits = (guess == targets) & scored
    return {
        "accuracy": float(hits.sum() / scored.sum()),
        "exact": float((hits.sum(axis=1) == scored.sum(axis=1)).mean()),
    }
