"""What two sets of labelled examples share; what remembering one scores on the other. Floor 0."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[Any]


class Overlap(NamedTuple):
    """How much of a test set was seen in training."""

    seen: int
    """Test rows that are also training rows."""
    total: int
    """Test rows."""
    unique_train: int
    """Different training rows."""
    unique_test: int
    """Different test rows."""
    lookup: float
    """Test accuracy of a table of the training rows, class 0 where a row is not in it."""


def overlap(train: Rows, train_labels: Rows, test: Rows, test_labels: Rows) -> Overlap:
    """Compare two sets row by row.

    Args:
        train, test: examples (n, ...), equal where all their numbers are.
        train_labels, test_labels: (n,).
    """
    pairs = zip(train, train_labels.tolist(), strict=True)
    known = {row.tobytes(): int(label) for row, label in pairs}
    rows = [row.tobytes() for row in test]
    hits = [known.get(row, 0) == y for row, y in zip(rows, test_labels.tolist(), strict=True)]
    seen = sum(row in known for row in rows)
    return Overlap(seen, len(rows), len(known), len(set(rows)), float(np.mean(hits)))
