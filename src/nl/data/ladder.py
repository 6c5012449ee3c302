"""stream=ladder: nine small tasks of two classes, from one sum of numbers to sums of sums. Floor 1.

Splits are disjoint by construction: a hash of the facts of an example says where it belongs. Both
classes are equally frequent in every split and no example is used twice. ``legacy`` draws the data
of the earlier tables instead, with their overlap.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from nl.config import ConfigError, register, require
from nl.config.groups import StreamConfig
from nl.core.overlap import Overlap
from nl.core.overlap import overlap as compare_rows
from nl.core.seeds import SeedBook
from nl.data.ladder_legacy import legacy_examples
from nl.data.ladder_tasks import KINDS, Ints, Raw, Rule, rule_of
from nl.data.order import MixturePlan, Plan, SequentialPlan
from nl.data.stream import RowStream, stack

BUCKETS = {"train": range(70), "val": range(70, 85), "test": range(85, 100)}
CHUNK = 4096
PATIENCE = 10
"""Chunks in a row without a new example before a task counts as exhausted."""
DEFAULT_SIZE = 1000
Task = Literal[
    "sign_of_winner",
    "sign_of_second_place",
    "has_pos_and_neg",
    "has_all_tokens",
    "any_abs_gt_one",
    "single_digit_sum",
    "single_digit_sum_swapped",
    "aa_bb_cc",
    "multi_digit_sum",
]


class Examples(NamedTuple):
    """Examples of one split.

    Attributes:
        raw: (n, T, F) numbers or (n, T) tokens.
        inputs: (n, T, F) float32, tokens one-hot.
        labels: (n,) 0 or 1.
        kinds: (n,) index into ``kind_names``.
        tokens: what the tokens of ``raw`` are called; None for numbers.
        kind_names: what kinds of examples are called.
    """

    raw: Raw
    inputs: npt.NDArray[np.float32]
    labels: Ints
    kinds: Ints
    tokens: tuple[str, ...] | None = None
    kind_names: tuple[str, ...] = KINDS


@register("stream", "ladder")
@dataclass(frozen=True, kw_only=True)
class LadderConfig(StreamConfig):
    """Is the sequence of class 1? Inputs (B, T, F) floats, targets (B,) 0 or 1."""

    row_kind: ClassVar[str] = "examples"
    """Vectors with a label."""

    task: Task = "sign_of_winner"
    """Which rule."""
    steps: int | None = None
    """T of the numeric tasks and of has_all_tokens; null: 5."""
    digits: int | None = None
    """Digits of every number of aa_bb_cc and multi_digit_sum; null: 2."""
    train_size: int | None = None
    """Training examples; null: 1000, or all there are of a small task."""
    val_size: int | None = None
    """Validation examples; null likewise."""
    test_size: int | None = None
    """Test examples; null likewise."""
    legacy: bool = False
    """The earlier system's data: 1000 examples drawn with replacement, test from the next seed."""
    legacy_seed: int = 0
    """What they are drawn from, whatever the seed of the run; the earlier system had 0."""
    batch_size: int = 128
    """Rows per micro-batch, over all ranks."""

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, f"batch_size: {self.batch_size}; must be >= 1.")
        require(
            self.digits is None or 1 <= self.digits <= 6,
            f"digits: {self.digits}; must be 1 to 6, or null.",
        )
        require(
            self.steps is None or 2 <= self.steps <= 1024,
            f"steps: {self.steps}; must be 2 to 1024, or null.",
        )
        require(self.legacy_seed >= 0, f"legacy_seed: {self.legacy_seed}; must be >= 0.")
        require(
            self.legacy or not self.legacy_seed,
            f"legacy_seed: {self.legacy_seed}; without legacy=true data follow the run's seed.",
        )
        for name in ("train_size", "val_size", "test_size"):
            value = getattr(self, name)
            fits = value is None or (value >= 2 and value % 2 == 0)
            require(fits, f"{name}: {value}; must be even and >= 2, or null.")
        self.rule()

    def rule(self) -> Rule:
        """The rule of the task."""
        return rule_of(self.task, self.steps, self.digits)

    def splits(self) -> tuple[str, ...]:
        """``train`` and ``val``; ``test`` can be built too."""
        return ("train", "val")

    def vocab_size(self) -> int | None:
        """None: the inputs are vectors."""
        return None

    def examples(self, split: str, seed: int) -> Examples:
        """All examples of a split, in a fixed order.

        Raises:
            ConfigError: no such split, or fewer examples than were asked for.
        """
        if split not in BUCKETS:
            raise ConfigError(f"split {split!r} of ladder: use {', '.join(BUCKETS)}.")
        asked: int | None = getattr(self, f"{split}_size")
        rule = self.rule()
        if self.legacy:
            offset = {"train": 0, "test": 1, "val": 2}[split]
            raw = legacy_examples(rule, asked or DEFAULT_SIZE, self.legacy_seed + offset)
            return _encoded(rule, raw, np.zeros(len(raw), dtype=np.int64))
        raw, kinds, each = draw(rule, split, (asked or DEFAULT_SIZE) // 2, seed, self.task)
        if asked is not None and each < asked // 2:
            raise ConfigError(
                f"{split}_size: {asked}; {self.task} has {2 * each} such examples of equally "
                "frequent classes: ask for fewer, or null for all."
            )
        return _encoded(rule, raw, kinds)

    def build(self, split: str, *, seed: int, rank: int, world: int) -> RowStream:
        """``train`` is endless; ``val`` and ``test`` go once through all examples."""
        found = self.examples(split, seed)
        size = len(found.labels)
        plan: Plan = SequentialPlan([size])
        if split == "train":
            plan = MixturePlan([size], [split], [1], seed)
        return RowStream(
            plan,
            stack(found.inputs, found.labels),
            batch_size=self.batch_size,
            rank=rank,
            world=world,
            identity=f"{self}, {split}, seed {seed}",
        )


def draw(rule: Rule, split: str, each: int, seed: int, name: str) -> tuple[Raw, Ints, int]:
    """Up to ``each`` examples of both classes of one split, none twice, in a random order.

    Returns:
        raw examples, their kinds, and how many there are of each class.
    """
    book = SeedBook(seed)
    rows: tuple[list[Raw], list[Raw]] = ([], [])
    kinds: tuple[list[int], list[int]] = ([], [])
    seen: set[bytes] = set()
    chunk = idle = 0
    while min(map(len, rows)) < each and idle < PATIENCE:
        rng = np.random.Generator(np.random.Philox(book.seed("ladder", name, chunk)))
        raw, drawn = rule.draw(rng, CHUNK)
        before = len(rows[0]) + len(rows[1])
        labels = rule.label(raw).tolist()
        for row, fact, label, kind in zip(raw, rule.facts(raw), labels, drawn, strict=True):
            key = row.tobytes()
            if label < 0 or len(rows[label]) >= each or key in seen or not _mine(fact, split):
                continue
            seen.add(key)
            rows[label].append(row)
            kinds[label].append(int(kind))
        idle = idle + 1 if len(rows[0]) + len(rows[1]) == before else 0
        chunk += 1
    count = min(map(len, rows))
    if not count:
        raise ConfigError(f"task: {name}; no examples of both classes in split {split}.")
    order = np.random.Generator(np.random.Philox(book.seed("ladder", name, split))).permutation(
        2 * count
    )
    both = np.stack([*rows[0][:count], *rows[1][:count]])[order]
    which = np.asarray([*kinds[0][:count], *kinds[1][:count]], dtype=np.int64)[order]
    return both, which, count


def _mine(fact: bytes, split: str) -> bool:
    digest = hashlib.blake2b(fact, digest_size=8).digest()
    return int.from_bytes(digest, "little") % 100 in BUCKETS[split]


def _encoded(rule: Rule, raw: Raw, kinds: Ints) -> Examples:
    inputs = raw if rule.tokens is None else np.eye(rule.features)[raw]
    return Examples(raw, inputs.astype(np.float32), rule.label(raw), kinds, rule.tokens)


def overlap(train: Examples, test: Examples) -> Overlap:
    """Compare two splits row by row."""
    return compare_rows(train.raw, train.labels, test.raw, test.labels)
