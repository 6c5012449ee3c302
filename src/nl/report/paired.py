"""Differences between two models on the same samples, with intervals. Floor 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nl.report.frames import Row, is_number
from nl.report.sides import LOGS, Pair
from nl.run.student import NORMAL, t_95

HIGHER = ("acc", "acc_norm", "exact_match", "choice_accuracy", "answer_logprob", "f1")
LOWER = ("nats", "perplexity", "bits_per_byte", "loss", "ppl", "forgetting")

LARGEST_LOG = 700.0
"""Nats whose exponential is still a number."""


@dataclass(frozen=True)
class Difference:
    """Second minus first.

    Attributes:
        value: the difference of the two values.
        half: half the width of the 95 % interval; None where it is not known.
        n: samples that both have; 0: not paired.
        better, worse: samples on which the second is better and worse (None: no direction).
        method: how the interval was made.
    """

    value: float
    half: float | None
    n: int
    better: int | None
    worse: int | None
    method: str

    @property
    def clear(self) -> bool:
        """Whether zero lies outside the interval."""
        return self.half is not None and abs(self.value) > self.half


def direction(metric: str) -> int:
    """1: higher is better, -1: lower is, 0: neither is known."""
    if any(word in metric for word in LOWER):
        return -1
    return 1 if metric.startswith(HIGHER) else 0


def paired(first: dict[str, Pair], second: dict[str, Pair], metric: str) -> Difference | None:
    """Difference of two sums over sums (means) on the samples that both have.

    The interval is Student's on what each sample adds to the difference, to first order (for
    means: on the differences of the samples): exact samples, so that what is hard for both cancels.
    For a perplexity the samples are those of its logarithm. None with fewer than two common
    samples, or a perplexity beyond all numbers.
    """
    names = [name for name in first if name in second]
    if len(names) < 2:
        return None
    below = [sum(side[name][1] for name in names) for side in (first, second)]
    if 0 in below:
        return None
    ratios = [
        sum(side[name][0] for name in names) / total
        for side, total in zip((first, second), below, strict=True)
    ]
    values, slopes = ratios, [1.0, 1.0]
    if metric in LOGS:
        if max(ratios) > LARGEST_LOG:
            return None
        values = slopes = [math.exp(ratio) for ratio in ratios]
    parts = []
    better = worse = 0
    sign = direction(metric)
    for name in names:
        (a, p), (b, q) = first[name], second[name]
        own, other = (b - ratios[1] * q) / below[1], (a - ratios[0] * p) / below[0]
        parts.append(slopes[1] * own - slopes[0] * other)
        gain = sign * (b * p - a * q)
        better, worse = better + (gain > 0), worse + (gain < 0)
    count = len(names)
    spread = sum(part * part for part in parts) * count / (count - 1)
    half = t_95(count - 1) * math.sqrt(spread)
    value = values[1] - values[0]
    if not sign:
        return Difference(value, half, count, None, None, "paired t")
    return Difference(value, half, count, better, worse, "paired t")


def unpaired(first: Row, second: Row) -> Difference | None:
    """Difference of two rows of which nothing per sample is known."""
    if not is_number(first.get("value")) or not is_number(second.get("value")):
        return None
    errors = [row.get("stderr") for row in (first, second)]
    half = None
    if all(is_number(error) for error in errors):
        half = NORMAL * math.hypot(*(float(error or 0) for error in errors))
    value = float(second["value"]) - float(first["value"])
    return Difference(value, half, 0, None, None, "unpaired normal")


SHARES = ("acc", "exact_match", "choice_accuracy")
"""Metrics whose samples are right or wrong."""


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of ``n`` (Wilson's), which also holds at 0 and 1."""
    square = NORMAL**2
    middle = (share + square / (2 * n)) / (1 + square / n)
    spread = math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    half = NORMAL * spread / (1 + square / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def interval(row: Row) -> tuple[float, float] | None:
    """95 % interval of one row: Wilson's of a share, else Student's on the standard error."""
    value, error, n = (row.get(key) for key in ("value", "stderr", "n"))
    if str(row.get("metric", "")).startswith(SHARES) and is_number(value) and is_number(n):
        return wilson(float(value or 0), int(n or 1))
    if not (is_number(value) and is_number(error) and is_number(n)) or int(n or 0) < 2:
        return None
    half = t_95(int(n or 0) - 1) * float(error or 0)
    return float(value or 0) - half, float(value or 0) + half
