"""What theory says before a run, and what it warns of."""

from __future__ import annotations

import functools
import logging
import math
from typing import Any

import pytest

import nl.assembly  # noqa: F401 - registers the parts
from nl.config.hydra import compose, run_config
from nl.data.group_forecast import forecast, warn_of_standstill

SHIPPED = ("a5", "c10", "c10_k3", "c3xc3", "c4xc4", "d3", "octahedral")


@functools.cache
def run(experiment: str, *overrides: str) -> Any:
    return run_config(compose("pilot_smoke", [f"experiment=groups/{experiment}", *overrides]))


def test_growth_and_escapes() -> None:
    known = forecast(run("c10"))
    assert known is not None
    assert known.growth is not None
    assert known.escapes is not None
    assert [step.names[0] for step in known.stairs] == ["1b", "2a"]
    assert known.growth == pytest.approx([0.0245, 0.0174], abs=1e-4)
    # Runs have half of the amplitude of these at steps 440 and 600, give or take 10.
    assert known.escapes == pytest.approx([440, 600], rel=0.2)
    assert known.fitting == pytest.approx(6.847, abs=1e-3)


def test_plain_descent_is_slower_and_a_factor_of_the_output_counts() -> None:
    scaled, plain = forecast(run("d3")), forecast(run("d3", "optim.exponent=0", "optim.lr=0.02"))
    assert scaled is not None
    assert plain is not None
    assert scaled.growth is not None
    assert plain.growth is not None
    size = math.sqrt(2) * 0.001
    expected = math.log1p(math.expm1(scaled.growth[0]) * size * 0.02 / 0.0089)
    assert plain.growth[0] == pytest.approx(expected)
    assert plain.escapes is not None
    assert scaled.escapes is not None
    assert plain.escapes[0] > 100 * scaled.escapes[0]
    twice = forecast(run("d3", "model.output_scale=2"))
    assert twice is not None
    assert twice.growth is not None
    assert math.expm1(twice.growth[0]) == pytest.approx(2 * math.expm1(scaled.growth[0]))


def test_nothing_is_said_where_theory_is_silent() -> None:
    known = forecast(run("c5"))
    assert known is not None
    assert known.growth is None
    assert known.stairs[0].before == pytest.approx(0.16)
    changed = ("model.activation=relu", "optim.exponent=0")
    silent = forecast(run("d3", *changed))
    assert silent is not None
    assert silent.growth is None
    quaternions = ("stream.group_name=Q8", "objective.spectrum=Q8", "model.size=8")
    assert forecast(run("c10", *quaternions)) is None
    assert forecast(run_config(compose("pilot_smoke", ["experiment=recall/pairs8"]))) is None


@pytest.mark.parametrize("experiment", SHIPPED)
def test_shipped_experiments_are_expected_to_learn(
    experiment: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "nl"):
        warn_of_standstill(run(experiment))
    assert not caplog.records
    known = forecast(run(experiment))
    assert known is not None
    assert known.escapes is not None
    assert known.escapes[-1] < run(experiment).train.steps


@pytest.mark.parametrize(
    ("experiment", "overrides", "message"),
    [
        # the earlier system's rates: 0.01 for one-hot C10, 0.01 with templates ten times larger
        ("c10_k3", ("optim.lr=0.01",), "expected at about step 2[0-9]{5} .* past half of the run"),
        ("d3", ("optim.lr=8.9",), "optim.lr: 8.9; .*2a.* grows by .* above 0.15 runs diverge"),
        ("octahedral", ("train.steps=1000",), "2a is expected after the end .* stay at 12.5"),
        ("c10", ("train.steps=600",), "train.steps: 600; the first stair .1b. .*optim.lr=6.8"),
    ],
)
def test_what_goes_wrong_is_said_first(
    experiment: str, overrides: tuple[str, ...], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    import re

    with caplog.at_level(logging.WARNING, "nl"):
        warn_of_standstill(run(experiment, *overrides))
    (record,) = caplog.records
    assert re.search(message, record.getMessage())
