"""Metrics of R against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nl.config import ConfigError
from nl.eval.continual_metrics import BETTER, LossMatrix, all_metrics

NAN = float("nan")


def test_three_segments_once_each() -> None:
    matrix = LossMatrix(
        ("a", "b", "c"),
        ("a", "b", "c"),
        np.array([[5.0, 5.0, 6.0], [2.0, 4.5, 5.0], [3.0, 2.5, 4.0], [2.5, 3.5, 1.0]]),
    )
    assert all_metrics(matrix) == pytest.approx(
        {
            "average_loss": (2.5 + 3.5 + 1.0) / 3,
            "backward_transfer": ((2.0 - 2.5) + (2.5 - 3.5)) / 2,
            "forgetting": ((2.5 - 2.0) + (3.5 - 2.5)) / 2,
            "forward_transfer": ((5.0 - 4.5) + (6.0 - 4.0)) / 2,
            "plasticity_loss": (2.0 + 2.5 + 1.0) / 3,
            "anytime_loss": (2.0 + (3.0 + 2.5) / 2 + (2.5 + 3.5 + 1.0) / 3) / 3,
        }
    )
    assert set(BETTER) == set(all_metrics(matrix))


def test_a_segment_that_comes_back() -> None:
    matrix = LossMatrix(
        ("prose", "code"),
        ("prose", "code", "prose"),
        np.array([[6.0, 7.0], [3.0, 5.0], [4.0, 2.0], [2.5, 3.0]]),
    )
    assert all_metrics(matrix) == pytest.approx(
        {
            "average_loss": 2.75,
            "backward_transfer": 2.0 - 3.0,  # only code was last trained before the end
            "forgetting": ((2.5 - 3.0) + (3.0 - 2.0)) / 2,  # prose improved on its second visit
            "forward_transfer": 7.0 - 5.0,
            "plasticity_loss": (3.0 + 2.0) / 2,
            "anytime_loss": (3.0 + (4.0 + 2.0) / 2 + (2.5 + 3.0) / 2) / 3,
        }
    )


def test_forgetting_takes_the_best_value_before_the_end() -> None:
    values = np.array([[9.0, 9.0, 9.0], [3.0, 9.0, 9.0], [1.0, 2.0, 9.0], [4.0, 2.0, 1.0]])
    metrics = all_metrics(LossMatrix(("a", "b", "c"), ("a", "b", "c"), values))
    assert metrics["forgetting"] == pytest.approx((3.0 + 0.0) / 2)
    assert metrics["backward_transfer"] == pytest.approx((-1.0 + 0.0) / 2)


def test_without_the_initial_row() -> None:
    values = np.array([[NAN, NAN], [2.0, 4.0], [3.0, 1.0]])
    metrics = all_metrics(LossMatrix(("a", "b"), ("a", "b"), values))
    # b is learned in the second phase: its reference is the row before training
    assert metrics["forward_transfer"] is None
    assert metrics["backward_transfer"] == -1.0


def test_one_phase_has_no_transfer() -> None:
    metrics = all_metrics(LossMatrix(("a",), ("a",), np.array([[3.0], [1.0]])))
    assert metrics["average_loss"] == metrics["plasticity_loss"] == 1.0
    assert [metrics[k] for k in ("backward_transfer", "forgetting", "forward_transfer")] == [
        None,
        None,
        None,
    ]


def test_a_loss_that_is_not_finite_is_not_averaged_away() -> None:
    values = np.array([[3.0, 3.0], [1.0, 2.0], [math.inf, 1.0]])
    metrics = all_metrics(LossMatrix(("a", "b"), ("a", "b"), values))
    assert metrics["average_loss"] is None
    assert metrics["forgetting"] is None
    assert metrics["plasticity_loss"] == 1.0


@pytest.mark.parametrize(
    ("segments", "phases", "shape", "word"),
    [
        (("a",), (), (1, 1), "phases: empty"),
        (("a", "a"), ("a",), (2, 2), "segments"),
        (("a",), ("b",), (2, 1), "'b'"),
        (("a",), ("a",), (3, 1), "shape"),
    ],
)
def test_refusals(
    segments: tuple[str, ...], phases: tuple[str, ...], shape: tuple[int, int], word: str
) -> None:
    with pytest.raises(ConfigError, match=word):
        LossMatrix(segments, phases, np.zeros(shape))
