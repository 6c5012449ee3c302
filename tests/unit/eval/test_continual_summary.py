"""Metrics beside joint and fresh training, intervals over seeds: numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nl.config import ConfigError
from nl.eval.continual_metrics import LossMatrix
from nl.eval.continual_summary import (
    ALL_BETTER,
    UNITS,
    fresh_losses,
    interval,
    joint_metrics,
    paired,
    sequential_metrics,
)

LOG2, LOG4, LOG8, LOG16 = (math.log(n) for n in (2, 4, 8, 16))


def table() -> LossMatrix:
    """Two segments; row init, after a, after b, in powers of two."""
    values = np.array([[LOG16, LOG16], [LOG2, LOG8], [LOG4, LOG4]])
    return LossMatrix(("a", "b"), ("a", "b"), values)


def test_every_metric_of_a_small_table() -> None:
    found = sequential_metrics(table(), joint=[LOG2, LOG2], fresh=[LOG2, LOG2])
    assert found == pytest.approx(
        {
            "average_loss": LOG4,
            "backward_transfer": LOG2 - LOG4,
            "forgetting": LOG4 - LOG2,
            "forward_transfer": LOG16 - LOG8,
            "plasticity_loss": (LOG2 + LOG4) / 2,
            "anytime_loss": (LOG2 + LOG4) / 2,
            "average_ppl_geometric": 4.0,
            "average_ppl_arithmetic": 4.0,
            "forgetting_ppl_ratio": 2.0,
            "anytime_ppl_geometric": math.exp((LOG2 + LOG4) / 2),
            "intransigence": ((LOG2 - LOG2) + (LOG4 - LOG2)) / 2,
            "joint_gap": LOG2,
            "plasticity_gap": (0 + (LOG4 - LOG2)) / 2,
        }
    )
    assert set(found) == set(ALL_BETTER) == set(UNITS)
    assert UNITS["average_ppl_arithmetic"] == "ppl"
    assert UNITS["forgetting_ppl_ratio"] == "ratio"


def test_the_two_means_of_perplexities_differ() -> None:
    found = joint_metrics([LOG2, LOG8])
    assert found["average_ppl_geometric"] == pytest.approx(4.0)
    assert found["average_ppl_arithmetic"] == pytest.approx(5.0)


def test_without_references_their_metrics_are_not_defined() -> None:
    found = sequential_metrics(table())
    missing = {name for name, value in found.items() if value is None}
    assert missing == {"intransigence", "joint_gap", "plasticity_gap"}


def test_fresh_models_give_the_loss_of_each_segments_first_phase() -> None:
    values = np.array([[9.0, 9.0], [1.0, 8.0], [7.0, 2.0], [1.5, 8.5]])
    matrix = LossMatrix(("a", "b"), ("a", "b", "a"), values)
    assert fresh_losses(matrix) == [1.0, 2.0]
    untrained = LossMatrix(("a", "b"), ("a",), values[:2])
    assert fresh_losses(untrained) == [1.0, None]


def test_intervals_by_hand() -> None:
    one = interval([1.0, 2.0, 3.0])
    assert (one.mean, one.std, one.n) == (2.0, 1.0, 3)
    assert one.half == pytest.approx(4.303 / math.sqrt(3))
    assert one.as_data()["low"] == pytest.approx(2.0 - 4.303 / math.sqrt(3))
    assert one.text(2) == "2.00 +- 2.48"
    single = interval([5.0])
    assert single.mean == 5.0
    assert math.isnan(single.half)
    assert single.text() == "5.000"
    with pytest.raises(ConfigError, match="no finished run"):
        interval([])


def test_differences_are_taken_seed_by_seed() -> None:
    found = paired({0: 1.0, 1: 3.0, 7: 9.0}, {0: 0.5, 1: 2.5, 2: 4.0})
    assert found is not None
    assert (found.mean, found.std, found.n) == (0.5, 0.0, 2)
    assert paired({0: 1.0}, {1: 1.0}) is None
