"""Schedules at their corners."""

from __future__ import annotations

import math

import pytest

from nl.config import ConfigError
from nl.optim.schedules import ConstantConfig, CosineConfig, LinearConfig, WsdConfig


@pytest.mark.parametrize(
    "schedule",
    [
        ConstantConfig(warmup=4),
        CosineConfig(warmup=4),
        LinearConfig(warmup=4),
        WsdConfig(warmup=4),
    ],
)
def test_warm_up_is_linear_and_reaches_the_peak(schedule: ConstantConfig) -> None:
    assert [schedule.factor(step, 20) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert all(0 < schedule.factor(step, 20) <= 1 for step in range(20))


def test_cosine() -> None:
    schedule = CosineConfig(warmup=2, final=0.1)
    assert schedule.factor(2, 13) == 1.0
    assert schedule.factor(7, 13) == pytest.approx(0.1 + 0.9 * 0.5)
    assert schedule.factor(12, 13) == pytest.approx(0.1)
    quarter = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.2))
    assert schedule.factor(4, 13) == pytest.approx(quarter)


def test_linear() -> None:
    values = [LinearConfig(final=0.0).factor(step, 5) for step in range(5)]
    assert values == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])


def test_wsd_holds_then_falls() -> None:
    schedule = WsdConfig(decay=0.4, final=0.2)
    values = [schedule.factor(step, 10) for step in range(10)]
    assert values == pytest.approx([1.0] * 6 + [0.8, 0.6, 0.4, 0.2])


def test_one_step_and_steps_beyond_the_plan_are_defined() -> None:
    for schedule in (CosineConfig(), LinearConfig(), WsdConfig(), ConstantConfig()):
        assert 0 <= schedule.factor(0, 1) <= 1
        assert 0 <= schedule.factor(50, 10) <= 1


def test_values_out_of_range_are_refused() -> None:
    for build in (
        lambda: CosineConfig(final=1.5),
        lambda: WsdConfig(decay=0.0),
        lambda: ConstantConfig(warmup=-1),
    ):
        with pytest.raises(ConfigError, match="must be"):
            build()
