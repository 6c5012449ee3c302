"""Student's distribution, as far as intervals of results need it. Floor 0."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

SMALL = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""Two-sided 95 % quantiles for 1 to 30 degrees of freedom."""
NORMAL = 1.959964
"""The same for infinitely many."""


def t_95(freedom: int) -> float:
    """Two-sided 95 % quantile for so many degrees of freedom (at least 1)."""
    if freedom <= len(SMALL):
        return SMALL[freedom - 1]
    z = NORMAL  # Cornish and Fisher's expansion: five digits from 30 degrees on
    first = (z**3 + z) / 4
    return z + first / freedom + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation, 95 % interval of the mean (Student), extremes, median."""
    n, mean = len(values), statistics.fmean(values)
    found: dict[str, Any] = {
        "n": n,
        "mean": mean,
        "std": None,
        "ci95": None,
        "min": min(values),
        "max": max(values),
        "median": statistics.median(values),
    }
    if n > 1:
        quantile = t_95(n - 1)
        found["std"] = statistics.stdev(values)
        found["ci95"] = quantile * found["std"] / math.sqrt(n)
    return found
