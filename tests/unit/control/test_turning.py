"""Controllers that turn knobs within ranges: at random, along a ramp, after a signal."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from nl.config import ConfigError
from nl.control.pi import PIControllerConfig
from nl.control.ramp import RampControllerConfig
from nl.control.random_knobs import RandomControllerConfig
from nl.control.ranges import KnobRanges
from nl.core.output import Knobs

REPLAY = KnobRanges(replay=(0.1, 0.5))


def test_random_knobs_fill_their_ranges_and_follow_from_seed_and_step() -> None:
    config = RandomControllerConfig(
        ranges=KnobRanges(experts_k=(1, 4), replay=(0.1, 0.5)), every=10
    )
    one, two = config.build(seed=3), config.build(seed=3)
    found = [one.act({}, step) for step in range(0, 40_000, 10)]
    assert found[7] == two.act({"loss": 1.0}, 79)
    counts = Counter(knobs.experts_k for knobs in found)
    assert set(counts) == {1, 2, 3, 4}
    assert min(counts.values()) > 850
    shares = [knobs.replay or 0 for knobs in found]
    assert 0.1 <= min(shares) < 0.105
    assert 0.495 < max(shares) <= 0.5
    assert found[0] != config.build(seed=4).act({}, 0)
    assert all(knobs.lr_scale == 1 and knobs.router_noise is None for knobs in found)


def test_a_ramp_is_linear_and_constant_outside() -> None:
    ramp = RampControllerConfig(
        ranges=KnobRanges(router_temperature=(0.5, 1.5), experts_k=(1, 3)), begin=10, steps=20
    ).build(seed=0)
    found = [ramp.act({}, step).router_temperature for step in (0, 10, 15, 30, 99)]
    assert found == [0.5, 0.5, 0.75, 1.5, 1.5]
    assert [ramp.act({}, step).experts_k for step in (0, 20, 99)] == [1, 2, 3]
    falling = RampControllerConfig(ranges=REPLAY, steps=4, falling=True).build(seed=0)
    assert [falling.act({}, step).replay for step in (0, 2, 9)] == [0.5, pytest.approx(0.3), 0.1]


def pi(**changes: Any) -> PIControllerConfig:
    plain: dict[str, Any] = {"ranges": REPLAY, "target": 2.0, "every": 1}
    return PIControllerConfig(**{**plain, **changes})


def test_pi_holds_a_plant_at_its_target() -> None:
    controller = pi(proportional=0.2, integral=0.1).build(seed=0)
    loss, found = 4.0, []
    for step in range(200):
        knobs = controller.act({"signal/memory_loss": loss}, step)
        assert knobs.replay is not None
        loss += 0.2 * (4.0 - 6 * knobs.replay - loss)  # settles at 4 - 6 replay
        found.append(loss)
    assert abs(found[-1] - 2.0) < 1e-3
    assert knobs.replay == pytest.approx(1 / 3, abs=1e-3)


def test_pi_does_not_wind_up_and_resumes() -> None:
    controller = pi(proportional=0.0, integral=0.1).build(seed=0)
    for step in range(500):
        assert controller.act({"signal/memory_loss": 9.0}, step) == Knobs(replay=pytest.approx(
            min(0.5, 0.1 + 0.4 * 0.7 * (step + 1))))  # fmt: skip
    state = json.loads(json.dumps(controller.state_dict()))
    assert state["total"] <= 1.0, "what pushes past the end is not summed"
    other = pi(proportional=0.0, integral=0.1).build(seed=0)
    other.load_state_dict(state)
    found = [c.act({"signal/memory_loss": 1.0}, 501).replay for c in (controller, other)]
    assert found[0] == found[1] == pytest.approx(0.1 + 0.4 * (state["total"] - 0.1))
    again = [c.act({"signal/memory_loss": 1.0}, 501).replay for c in (controller, other)]
    assert again == found, "a step that is tried again is no new turn"


def test_pi_turns_the_other_way_and_waits_for_a_measurement() -> None:
    controller = pi(direction="down", start=0.5).build(seed=0)
    assert controller.act({}, 0).replay == pytest.approx(0.3)
    above = controller.act({"signal/memory_loss": 2.4}, 1).replay
    assert above is not None
    assert above < 0.3
    assert controller.act({"loss": 3.0}, 2).replay == above, "no earlier tasks yet"
    with pytest.raises(ConfigError, match=r"'lost' is not measured\. Measured: loss"):
        pi(signal="lost").build(seed=0).act({"loss": 3.0}, 2)
    assert pi().reads_signals()
    assert not pi(signal="loss").reads_signals()


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"experts_k": (0, 2)}, r"experts_k: \[0, 2\]"),
        ({"replay": (0.5, 0.1)}, r"replay: \[0.5, 0.1\]"),
        ({"replay": (0.5, 1.0)}, "below 1"),
        ({"router_temperature": (0.0, 1.0)}, "above 0"),
    ],
)
def test_ranges_that_cannot_be_are_refused(ranges: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        KnobRanges(**ranges)


@pytest.mark.parametrize("kind", [RandomControllerConfig, RampControllerConfig])
def test_a_controller_that_turns_nothing_is_refused(kind: Any) -> None:
    with pytest.raises(ConfigError, match="ranges: empty"):
        kind().build(seed=0)


def test_pi_has_one_knob() -> None:
    with pytest.raises(ConfigError, match="exactly one knob"):
        pi(ranges=KnobRanges(replay=(0, 0.5), experts_k=(1, 2))).build(seed=0)
