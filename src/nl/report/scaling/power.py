"""How many windows show an effect: paired and unpaired. Floor 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from nl.report.scaling.losses import Losses


@dataclass(frozen=True)
class Power:
    """Windows needed for 80 % power at the 5 % level.

    Attributes:
        effect: nats per token; ln K spread over the positions, the most that K components cost.
        deviation: of the mean loss of a window.
        paired_deviation: of the difference of two runs on one window.
        unpaired, paired: windows (unpaired: in each arm).
    """

    effect: float
    deviation: float
    paired_deviation: float
    unpaired: int
    paired: int


def power(first: Losses, second: Losses, k: int) -> Power:
    """For two runs on the same windows; spreads are within components."""
    one, other = first.nll.mean(1), second.nll.mean(1)
    deviation = math.sqrt((_within(one, first) + _within(other, first)) / 2)
    paired = math.sqrt(_within(other - one, first))
    effect = math.log(k) / first.nll.shape[1]
    return Power(effect, deviation, paired, *needed(effect, deviation, paired))


def needed(
    effect: float, deviation: float, paired: float, *, level: float = 0.05, strength: float = 0.8
) -> tuple[int, int]:
    """(unpaired per arm, paired) windows."""
    normal = NormalDist()
    factor = normal.inv_cdf(1 - level / 2) + normal.inv_cdf(strength)
    unpaired = 2 * (factor * deviation / effect) ** 2
    return math.ceil(unpaired), math.ceil((factor * paired / effect) ** 2)


def _within(values: np.ndarray, losses: Losses) -> float:
    """Variance about the means of components."""
    total, freedom = 0.0, 0
    for code in np.unique(losses.component):
        part = values[losses.component == code]
        total += float(((part - part.mean()) ** 2).sum())
        freedom += len(part) - 1
    return total / max(1, freedom)
