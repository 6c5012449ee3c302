"""Sequential runs compared: metrics beside joint and fresh training, means over seeds. Floor 6.

All losses are nats per token. Two means of perplexities are told apart by name: ``geometric`` is
exp of the mean loss, ``arithmetic`` the mean of exp of the losses, which the hardest segment rules.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nl.config import require
from nl.eval.continual_metrics import BETTER, LossMatrix, all_metrics
from nl.run.student import t_95

ALL_BETTER = {
    **BETTER,
    "average_ppl_geometric": "lower",
    "average_ppl_arithmetic": "lower",
    "forgetting_ppl_ratio": "lower",
    "anytime_ppl_geometric": "lower",
    "intransigence": "lower",
    "joint_gap": "lower",
    "plasticity_gap": "lower",
}
"""Every metric of a sequential run and which direction is good."""
UNITS = {name: "ppl" if "_ppl_" in name else "nats" for name in ALL_BETTER} | {
    "forgetting_ppl_ratio": "ratio"
}


def sequential_metrics(
    matrix: LossMatrix,
    joint: Sequence[float] | None = None,
    fresh: Sequence[float | None] | None = None,
) -> dict[str, float | None]:
    """Every metric of ``ALL_BETTER``; None where it is not defined or its reference is missing.

    Args:
        matrix: R of the run.
        joint: loss per segment of a model trained on all phases mixed, with as many tokens.
        fresh: loss per segment of a fresh model right after the phase that first trained it; None
            for a segment that no phase trains.
    """
    found = all_metrics(matrix)
    last = matrix.values[-1].tolist()
    trained = _trained(matrix)
    learned = {j: matrix.after(visits[0], j) for j, visits in trained.items()}
    found["average_ppl_geometric"] = _exp(found["average_loss"])
    found["average_ppl_arithmetic"] = _mean([_exp(loss) for loss in last])
    found["forgetting_ppl_ratio"] = _exp(found["forgetting"])
    found["anytime_ppl_geometric"] = _exp(found["anytime_loss"])
    found["intransigence"] = found["joint_gap"] = found["plasticity_gap"] = None
    if joint is not None:
        found["intransigence"] = _mean([learned[j] - joint[j] for j in trained])
        found["joint_gap"] = _mean([last[j] - joint[j] for j in trained])
    if fresh is not None:
        pairs = [(learned[j], fresh[j]) for j in trained]
        found["plasticity_gap"] = _mean([None if f is None else own - f for own, f in pairs])
    return found


def joint_metrics(losses: Sequence[float]) -> dict[str, float | None]:
    """What is defined for joint training: the losses at its end."""
    average = _mean(list(losses))
    return {
        "average_loss": average,
        "average_ppl_geometric": _exp(average),
        "average_ppl_arithmetic": _mean([_exp(loss) for loss in losses]),
    }


def _trained(matrix: LossMatrix) -> dict[int, list[int]]:
    found = {j: matrix.visits(j) for j in range(len(matrix.segments))}
    return {j: visits for j, visits in found.items() if visits}


def fresh_losses(matrix: LossMatrix) -> list[float | None]:
    """Of a matrix whose row i is a fresh model after phase i alone: each segment's first one."""
    trained = _trained(matrix)
    columns = range(len(matrix.segments))
    return [matrix.after(trained[j][0], j) if j in trained else None for j in columns]


@dataclass(frozen=True)
class Interval:
    """A mean over seeds.

    Attributes:
        mean, std: std with n - 1 in the denominator; nan from a single value.
        half: half width of the 95 % interval (Student); nan from a single value.
        n: how many.
    """

    mean: float
    std: float
    half: float
    n: int

    def as_data(self) -> dict[str, float | int]:
        """Plain data for JSON."""
        low, high = self.mean - self.half, self.mean + self.half
        return {"mean": self.mean, "std": self.std, "n": self.n, "low": low, "high": high}

    def text(self, digits: int = 3) -> str:
        """Mean and half width; the mean alone from one value."""
        half = "" if math.isnan(self.half) else f" +- {self.half:.{digits}f}"
        return f"{self.mean:.{digits}f}{half}"


def interval(values: Sequence[float]) -> Interval:
    """Mean, standard deviation and 95 % interval (Student) of independent values.

    Raises:
        ConfigError: no value.
    """
    require(len(values) >= 1, "seeds: no finished run; train one first.")
    mean, n = statistics.fmean(values), len(values)
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    std = statistics.stdev(values)
    quantile = t_95(n - 1)
    return Interval(mean, std, quantile * std / math.sqrt(n), n)


def paired(mine: Mapping[int, float], theirs: Mapping[int, float]) -> Interval | None:
    """Mean difference over the seeds that both have; None where there is none."""
    common = sorted(mine.keys() & theirs.keys())
    return interval([mine[seed] - theirs[seed] for seed in common]) if common else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _exp(value: float | None) -> float | None:
    return None if value is None or value > 700 else math.exp(value)
