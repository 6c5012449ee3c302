"""Controllers: constant and scheduled knobs."""

from __future__ import annotations

import pytest

from nl.config import ConfigError
from nl.control.fixed import FixedControllerConfig
from nl.control.schedule import ScheduleControllerConfig


def test_fixed_never_moves() -> None:
    controller = FixedControllerConfig(lr_scale=0.5, write_scale=2.0).build(seed=1)
    for step in (0, 7):
        knobs = controller.act({"loss": step * 1.0}, step)
        assert (knobs.lr_scale, knobs.write_scale) == (0.5, 2.0)
    controller.load_state_dict(controller.state_dict())


def test_schedule_is_a_trapezoid_over_steps() -> None:
    config = ScheduleControllerConfig(write_scale=2.0, warmup=2, decay_start=4, decay_steps=4)
    controller = config.build(seed=0)
    scales = [controller.act({}, step).write_scale for step in range(10)]
    assert scales == [1.0, 2.0, 2.0, 2.0, 2.0, 1.5, 1.0, 0.5, 0.0, 0.0]
    assert controller.act({}, 3).lr_scale == 1.0
    assert ScheduleControllerConfig().build(seed=0).act({}, 10**6).write_scale == 1.0


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="write_scale: -1"):
        FixedControllerConfig(write_scale=-1.0)
    with pytest.raises(ConfigError, match="decay_start: 3; must be >= warmup"):
        ScheduleControllerConfig(warmup=5, decay_start=3, decay_steps=2)
