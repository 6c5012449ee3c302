"""stream=sign_of_winner: short Gaussian sequences, classified by a rule. Floor 1."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nl.config import ConfigError, register, require
from nl.config.groups import StreamConfig
from nl.core.seeds import SeedBook
from nl.data.order import MixturePlan, Plan, SequentialPlan
from nl.data.stream import RowStream, stack

CHUNK = 4096
BUCKETS = {"train": range(80), "val": range(80, 90), "test": range(90, 100)}
Floats = npt.NDArray[np.float32]


@register("stream", "sign_of_winner")
@dataclass(frozen=True, kw_only=True)
class SignOfWinnerConfig(StreamConfig):
    """Is the row sum of largest absolute value positive? Inputs (B, T, F), targets (B,) 0 or 1.

    A hash of the example decides its split, so that no example can be in two. Both labels are
    equally frequent and no example is used twice.
    """

    steps: int = 5
    """Rows T of an example."""
    features: int = 2
    """Columns F of an example, standard normal."""
    train_size: int = 4000
    """Training examples; a fresh shuffle every epoch."""
    val_size: int = 1000
    """Validation examples."""
    test_size: int = 1000
    """Test examples."""
    batch_size: int = 128
    """Rows per micro-batch, over all ranks."""

    def __post_init__(self) -> None:
        for name in ("steps", "features", "batch_size"):
            value = getattr(self, name)
            require(value >= 1, f"{name}: {value}; must be >= 1.")
        for name in ("train_size", "val_size", "test_size"):
            value = getattr(self, name)
            require(value >= 2 and value % 2 == 0, f"{name}: {value}; must be even and >= 2.")

    def splits(self) -> tuple[str, ...]:
        """``train`` and ``val``; ``test`` can be built too."""
        return ("train", "val")

    def vocab_size(self) -> int | None:
        """None: the inputs are no tokens."""
        return None

    def build(self, split: str, *, seed: int, rank: int, world: int) -> RowStream:
        """``train`` is endless; ``val`` and ``test`` go once through all examples."""
        if split not in BUCKETS:
            raise ConfigError(f"split {split!r} of sign_of_winner: use {', '.join(BUCKETS)}.")
        size = {"train": self.train_size, "val": self.val_size, "test": self.test_size}[split]
        inputs, labels = draw_balanced(self.steps, self.features, split, size, seed)
        plan: Plan = MixturePlan([size], [split], [1], seed)
        if split != "train":
            plan = SequentialPlan([size])
        return RowStream(
            plan,
            stack(inputs, labels),
            batch_size=self.batch_size,
            rank=rank,
            world=world,
            identity=f"sign_of_winner {split} {size}, {self.steps} x {self.features}, seed {seed}",
        )


def sign_of_winner(inputs: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Labels of (n, T, F) examples, and whether each has one winner.

    With s_t the sum of row t and t* = argmax |s_t|, the label is 1 if s_{t*} > 0. A tie for
    the largest |s_t| has no label.
    """
    sums = inputs.sum(axis=2, dtype=np.float64)
    size = np.abs(sums)
    winner = size.argmax(axis=1)
    best = np.take_along_axis(sums, winner[:, None], axis=1)[:, 0]
    unique = (size == np.abs(best)[:, None]).sum(axis=1) == 1
    return (best > 0).astype(np.int64), unique


def draw_balanced(
    steps: int, features: int, split: str, size: int, seed: int
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """``size`` examples of one split: half of each label, none twice, in a random order.

    Returns:
        inputs (size, steps, features) float32, labels (size,) int64.
    """
    book = SeedBook(seed)
    rows: list[Floats] = []
    row_labels: list[int] = []
    wanted = [size // 2, size // 2]
    seen: set[bytes] = set()
    chunk = 0
    while sum(wanted):
        rng = np.random.Generator(np.random.Philox(book.seed("sign_of_winner", chunk)))
        inputs = rng.standard_normal((CHUNK, steps, features), dtype=np.float32)
        labels, valid = sign_of_winner(inputs)
        for row, label in zip(inputs[valid], labels[valid].tolist(), strict=True):
            digest = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
            mine = int.from_bytes(digest[:8], "little") % 100 in BUCKETS[split]
            if mine and wanted[label] and digest not in seen:
                seen.add(digest)
                wanted[label] -= 1
                rows.append(row)
                row_labels.append(label)
        chunk += 1
    return np.stack(rows), np.asarray(row_labels, dtype=np.int64)
