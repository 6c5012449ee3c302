"""The interval of a slope that benchmarks/streaming.py gives."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.unit.test_study import load


def test_the_trend_of_a_stream_is_that_of_least_squares() -> None:
    load("study")
    streaming = load("streaming")
    noise = [math.sin(37.0 * i) for i in range(10)]
    x = [1e5 * i for i in range(10)]
    y = [50 + 2e-5 * a + n for a, n in zip(x, noise, strict=True)]
    found, half = streaming.slope(x, y)
    assert found == pytest.approx(np.polyfit(x, y, 1)[0])
    residual = np.asarray(y) - np.polyval(np.polyfit(x, y, 1), x)
    error = math.sqrt(float((residual**2).sum()) / 8 / float(((np.asarray(x) - 4.5e5) ** 2).sum()))
    assert half == pytest.approx(2.306 * error)
    rows = [{"position": 1e4 * i, "cpu_us": 100 + 2e-4 * i * 1e4} for i in range(101)]
    change, interval = (float(word) for word in streaming.trend(rows, "cpu_us").split(" +- "))
    assert change == pytest.approx(100 * 200 / 201, rel=0.02)
    assert interval == pytest.approx(0.0, abs=1e-6)
