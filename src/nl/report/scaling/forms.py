"""How loss depends on K: a, a + b ln K, a + b K^g; by AICc and by leaving a K out. Floor 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nl.config import require
from nl.report.scaling.losses import Floats
from nl.report.scaling.positions import akaike_weights

Form = Literal["a", "a + b ln K", "a + b K^g"]
FORMS: tuple[Form, ...] = ("a", "a + b ln K", "a + b K^g")
COUNTS: dict[Form, int] = {"a": 1, "a + b ln K": 2, "a + b K^g": 3}
POWERS = (-4.0, 4.0)
FLAT = 0.01
"""Powers closer to zero are not told from the logarithm."""


@dataclass(frozen=True)
class KForm:
    """A fitted form.

    Attributes:
        form: which.
        a, b, g: parameters; nan where the form has none.
        rss: sum of squared residuals.
        aicc: with the variance as one more parameter; infinite where runs are too few.
        weight: Akaike's, among the forms fitted together.
        left_out: root mean square error of the mean at values of K that a fit did not see; nan
            where fewer than two values would be left beside the parameters.
    """

    form: Form
    a: float
    b: float
    g: float
    rss: float
    aicc: float
    weight: float
    left_out: float

    def __call__(self, k: Floats) -> Floats:
        """The curve."""
        return predict(self.form, (self.a, self.b, self.g), np.asarray(k, dtype=float))


def compare(ks: Sequence[int], values: Sequence[float]) -> list[KForm]:
    """Every form, fitted to runs by least squares.

    Raises:
        ConfigError: fewer than two values of K.
    """
    k, y = np.asarray(ks, dtype=float), np.asarray(values, dtype=float)
    require(len(k) == len(y), f"K: {len(k)} of them, {len(y)} values.")
    require(len(set(ks)) >= 2, f"K: {sorted(set(ks))}; forms need two values at least.")
    n = len(k)
    found = []
    for form in FORMS:
        parameters = least_squares(form, k, y)
        rss = float(((y - predict(form, parameters, k)) ** 2).sum())
        count = COUNTS[form] + 1
        few = n <= count + 1 or len(set(ks)) < COUNTS[form]
        more = math.inf if few else 2 * count * (count + 1) / (n - count - 1)
        aicc = n * math.log(max(rss / n, 1e-300)) + 2 * count + more
        found.append((form, parameters, rss, aicc, left_out(form, k, y)))
    shares = akaike_weights([aicc for *_, aicc, _ in found])
    return [
        KForm(form, *parameters, rss, aicc, share, error)
        for (form, parameters, rss, aicc, error), share in zip(found, shares, strict=True)
    ]


def least_squares(form: Form, k: Floats, y: Floats) -> tuple[float, float, float]:
    """(a, b, g); g by a grid that shrinks, a and b are linear."""
    if form == "a":
        return float(y.mean()), math.nan, math.nan
    if form == "a + b ln K":
        return (*_line(np.log(k), y)[:2], math.nan)
    low, high = POWERS
    for _ in range(30):
        powers = [one for one in np.linspace(low, high, 41) if abs(one) >= FLAT]
        g = min(powers, key=lambda one: _line(k**one, y)[2])
        half = (high - low) / 8
        low, high = max(POWERS[0], g - half), min(POWERS[1], g + half)
        if half < 1e-6:
            break
    a, b, _ = _line(k**g, y)
    return a, b, float(g)


def predict(form: Form, parameters: tuple[float, float, float], k: Floats) -> Floats:
    """The curve of some parameters."""
    a, b, g = parameters
    if form == "a":
        return np.full_like(k, a)
    found: Floats = a + b * (np.log(k) if form == "a + b ln K" else k**g)
    return found


def left_out(form: Form, k: Floats, y: Floats) -> float:
    """Root mean square over K of (mean of its runs - what a fit without them says)."""
    known = sorted(set(k.tolist()))
    if len(known) - 1 < COUNTS[form]:
        return math.nan
    errors = []
    for one in known:
        out = k == one
        parameters = least_squares(form, k[~out], y[~out])
        errors.append(float(y[out].mean() - predict(form, parameters, np.array([one]))[0]))
    return math.sqrt(sum(error**2 for error in errors) / len(errors))


def _line(x: Floats, y: Floats) -> tuple[float, float, float]:
    """Intercept, slope and sum of squared residuals of a straight line."""
    centred = x - x.mean()
    below = float(centred @ centred)
    slope = float(centred @ y) / below if below > 0 else 0.0
    a = float(y.mean() - slope * x.mean())
    return a, slope, float(((y - a - slope * x) ** 2).sum())
