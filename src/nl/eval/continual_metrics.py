"""Continual-learning metrics of a loss matrix R, in nats. Floor 6.

R has one row before training and one after each phase, one column per segment; R[i, j] is the mean
loss on segment j. Where a segment is trained in several phases, "learned" is its first phase and
"last trained" its last. With one phase per segment these are the usual definitions
(Lopez-Paz and Ranzato 2017; Chaudhry et al. 2018), written for losses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nl.config import require

BETTER = {
    "average_loss": "lower",
    "backward_transfer": "higher",
    "forgetting": "lower",
    "forward_transfer": "higher",
    "plasticity_loss": "lower",
    "anytime_loss": "lower",
}
"""Every metric and which direction is good."""


@dataclass(frozen=True)
class LossMatrix:
    """R and what was trained when.

    Attributes:
        segments: names of the columns.
        phases: the segment trained in each phase, in order; a segment may come back.
        values: (phases + 1, segments) losses in nats per token; row 0 is before training and may
            be NaN where that model is not at hand (forward transfer is then undefined).
    """

    segments: tuple[str, ...]
    phases: tuple[str, ...]
    values: NDArray[np.float64]

    def __post_init__(self) -> None:
        shape = (len(self.phases) + 1, len(self.segments))
        require(len(self.phases) >= 1, "phases: empty; at least one phase is needed.")
        require(
            len(set(self.segments)) == len(self.segments),
            f"segments: {list(self.segments)}; each name once.",
        )
        missing = [name for name in self.phases if name not in self.segments]
        require(not missing, f"phases: {missing} not among the segments {list(self.segments)}.")
        require(
            self.values.shape == shape,
            f"values: shape {self.values.shape}; expected {shape} (phases + 1, segments).",
        )

    def initial(self, segment: int) -> float:
        """R[-1, segment]: the loss before training."""
        return float(self.values[0, segment])

    def after(self, phase: int, segment: int) -> float:
        """R[phase, segment]: the loss after a phase (0-based)."""
        return float(self.values[phase + 1, segment])

    def visits(self, segment: int) -> list[int]:
        """The phases that trained this segment."""
        name = self.segments[segment]
        return [phase for phase, trained in enumerate(self.phases) if trained == name]


def average_loss(matrix: LossMatrix) -> float | None:
    """mean_j R[T-1, j]: what is known at the end."""
    return _mean(matrix.values[-1].tolist())


def backward_transfer(matrix: LossMatrix) -> float | None:
    """mean_j (R[last trained j, j] - R[T-1, j]) over segments trained before the last phase."""
    last = len(matrix.phases) - 1
    return _mean(
        [
            matrix.after(visits[-1], j) - matrix.after(last, j)
            for j, visits in _trained(matrix)
            if visits[-1] < last
        ]
    )


def forgetting(matrix: LossMatrix) -> float | None:
    """mean_j (R[T-1, j] - min over learned j <= i < T-1 of R[i, j]); can be negative."""
    last = len(matrix.phases) - 1
    return _mean(
        [
            matrix.after(last, j) - min(matrix.after(i, j) for i in range(visits[0], last))
            for j, visits in _trained(matrix)
            if visits[0] < last
        ]
    )


def forward_transfer(matrix: LossMatrix) -> float | None:
    """mean_j (R[-1, j] - R[learned j - 1, j]) over segments not learned first."""
    return _mean(
        [
            matrix.initial(j) - matrix.after(visits[0] - 1, j)
            for j, visits in _trained(matrix)
            if visits[0] >= 1
        ]
    )


def plasticity_loss(matrix: LossMatrix) -> float | None:
    """mean_j R[learned j, j]: the loss right after a segment was first trained."""
    return _mean([matrix.after(visits[0], j) for j, visits in _trained(matrix)])


def anytime_loss(matrix: LossMatrix) -> float | None:
    """mean_i mean over j learned by i of R[i, j]."""
    rows = []
    for phase in range(len(matrix.phases)):
        seen = [matrix.after(phase, j) for j, visits in _trained(matrix) if visits[0] <= phase]
        rows.append(float(np.mean(seen)))
    return _mean(rows)


def all_metrics(matrix: LossMatrix) -> dict[str, float | None]:
    """Every metric of ``BETTER`` by name; None where it is not defined for this matrix."""
    functions = (
        average_loss,
        backward_transfer,
        forgetting,
        forward_transfer,
        plasticity_loss,
        anytime_loss,
    )
    return {function.__name__: function(matrix) for function in functions}


def _trained(matrix: LossMatrix) -> list[tuple[int, list[int]]]:
    pairs = [(j, matrix.visits(j)) for j in range(len(matrix.segments))]
    return [(j, visits) for j, visits in pairs if visits]


def _mean(values: Sequence[float]) -> float | None:
    if not values or not all(math.isfinite(value) for value in values):
        return None
    return float(np.mean(values))
