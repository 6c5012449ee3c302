"""Fits find what was planted, over positions and over K, and say when they cannot."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nl.config import ConfigError
from nl.report.scaling import forms, positions
from nl.report.scaling.positions import akaike_weights, bins, fit, fit_many, held_out_error


def test_bins_grow_and_hold_every_position() -> None:
    found = bins(range(1, 100))
    assert found.x[:16].tolist() == list(range(1, 17))
    assert len(found.x) < 35
    assert ((found.members > 0).sum(0) == 1).all()
    assert found.members.sum(1) == pytest.approx(1.0)
    assert bins(range(100), first=4).x[0] == 4
    with pytest.raises(ConfigError, match="context: 1 bins from 99 on"):
        bins(range(1, 100), first=99)


@pytest.mark.parametrize(
    ("h", "a", "delta", "beta"), [(2.5, 1.9, 0.7, 0.8), (0.8, 0.3, 3.0, 1.6), (1.0, 4.0, 0.0, 0.4)]
)
def test_a_planted_power_is_found(h: float, a: float, delta: float, beta: float) -> None:
    x = bins(range(1, 129)).x
    y = h + a * (x + delta) ** -beta
    found = fit(x, y, np.full_like(x, 1e-3))
    assert found.chi2 < 1e-3
    assert (found.h, found.a) == pytest.approx((h, a), rel=0.01)
    assert (found.delta, found.beta) == pytest.approx((delta, beta), rel=0.01, abs=0.01)
    assert found.correlation is not None or delta == 0
    assert found(x) == pytest.approx(y, abs=1e-5)
    if delta > 0:
        h_many, beta_many = fit_many(x, y[None], np.full_like(x, 1e-3))
        assert h_many[0] == pytest.approx(h, abs=0.05 * a)
        assert beta_many[0] == pytest.approx(beta, rel=0.1)


def test_noise_is_weighed_and_forms_are_told_apart() -> None:
    x = bins(range(1, 129)).x
    rng = np.random.default_rng(0)
    se = 0.002 + 0.01 / np.sqrt(x)
    curves = {
        "constant": np.full_like(x, 1.2),
        "exponential": 1.2 + 0.5 * np.exp(-x / 6),
        "power": 1.2 + 0.8 * (x + 0.5) ** -0.7,
        "power, cut off": 1.2 + 0.8 * x**-0.3 * np.exp(-x / 25),
    }
    for name, curve in curves.items():
        y = curve + rng.normal(0, se)
        found = {form: fit(x, y, se, form) for form in positions.FORMS}
        best = min(found.values(), key=lambda one: one.aicc)
        assert best.form == name
        assert best.chi2 < 2 * len(x)
        wrong = "constant" if name != "constant" else None
        if wrong:
            assert held_out_error(x, y, se, wrong) > 2 * held_out_error(x, y, se, best.form)
    flat = fit(x, curves["constant"], se)
    assert flat.a * (x[0] + flat.delta) ** -flat.beta < 1e-6


def test_edges_are_named_and_bad_points_refused() -> None:
    x = bins(range(1, 65)).x
    found = fit(x, 1.0 * x**-0.01, np.full_like(x, 1e-3))
    assert "beta" in found.at_edge
    assert "h" in fit(x, 2 * x**-0.5, np.full_like(x, 1e-3)).at_edge
    with pytest.raises(ConfigError, match="standard errors must be positive"):
        fit(x, x, np.zeros_like(x))


def test_akaike_weights() -> None:
    assert akaike_weights([0.0, 2 * math.log(3), math.inf]) == pytest.approx([0.75, 0.25, 0.0])
    assert all(math.isnan(one) for one in akaike_weights([math.inf]))


@pytest.mark.parametrize(
    ("form", "curve"),
    [
        ("a", lambda k: 0.0 * k + 0.5),
        ("a + b ln K", lambda k: 0.1 + 0.2 * np.log(k)),
        ("a + b K^g", lambda k: 0.3 - 0.5 * k**-1.7),
    ],
)
def test_a_planted_form_of_k_is_found(form: str, curve: object) -> None:
    ks = np.repeat([1.0, 2.0, 4.0, 8.0, 16.0], 4)
    y = curve(ks) + np.random.default_rng(1).normal(0, 0.004, len(ks))  # type: ignore[operator]
    found = {one.form: one for one in forms.compare([int(k) for k in ks], list(y))}
    assert max(found.values(), key=lambda one: one.weight).form == form
    assert found[form].weight > 0.45  # type: ignore[index]
    if form == "a + b ln K":
        assert (found[form].a, found[form].b) == pytest.approx((0.1, 0.2), abs=0.005)
        assert found["a"].left_out > 10 * found[form].left_out
    if form == "a + b K^g":
        best = found[form]
        assert (best.a, best.b, best.g) == pytest.approx((0.3, -0.5, -1.7), abs=0.12)
        assert best(np.array([2.0]))[0] == pytest.approx(curve(2.0), abs=0.01)  # type: ignore[operator]


def test_too_few_runs_have_no_aicc() -> None:
    found = {one.form: one for one in forms.compare([1, 1, 2, 4], [0.0, 0.01, 0.1, 0.2])}
    assert math.isinf(found["a + b K^g"].aicc)
    assert math.isnan(found["a + b K^g"].left_out)
    assert found["a + b K^g"].weight == 0
    with pytest.raises(ConfigError, match=r"K: \[2\]; forms need two values"):
        forms.compare([2, 2], [0.0, 0.1])
