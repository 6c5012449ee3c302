"""How loss falls along the context: h + A (i + delta)^-beta, with its rivals. Floor 1.

h and A are linear once delta and beta are known, so that fits are a search over these two (and
over tau for the form that is cut off): a coarse grid of starts, then a grid around each of the best
ones that shrinks. Equal numbers give equal fits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nl.config import require
from nl.report.scaling.losses import Floats

Form = Literal["constant", "power", "power, cut off", "exponential"]
FORMS: tuple[Form, ...] = ("constant", "exponential", "power", "power, cut off")
COUNTS: dict[Form, int] = {"constant": 1, "exponential": 3, "power": 4, "power, cut off": 5}
"""Parameters of each form."""
DELTA = (0.0, 30.0)
BETA = (0.05, 6.0)
TAU = (1.0, 1000.0)
LINEAR_TO = 16
"""Up to this context every position is a point; beyond, bins grow by a factor."""
STARTS = 4
"""Best starts that are refined."""


@dataclass(frozen=True)
class Bins:
    """Points of a fit.

    Attributes:
        x: mean context of each bin.
        members: (bins, positions), weights adding to 1 per bin.
    """

    x: Floats
    members: Floats


@dataclass(frozen=True)
class Fit:
    """A fitted form.

    Attributes:
        form: which.
        h, a, delta, beta, tau: parameters; nan where the form has none.
        chi2: sum of squared residuals over squared standard errors.
        aicc: of ``chi2`` (errors are known), infinite where points are too few.
        correlation: of (h, a, delta, beta) by the curvature at the fit; None where it is flat.
        at_edge: parameters at an end of their range, of which nothing more is known.
    """

    form: Form
    h: float
    a: float
    delta: float
    beta: float
    tau: float
    chi2: float
    aicc: float
    correlation: Floats | None
    at_edge: tuple[str, ...]

    def __call__(self, x: Floats) -> Floats:
        """The curve."""
        if self.form == "constant":
            return np.full_like(x, self.h)
        return self.h + self.a * shape(self.form, x, self.delta, self.beta, self.tau)


def bins(context: Sequence[int], *, first: int = 1, ratio: float = 1.15) -> Bins:
    """Single positions up to context 16, then bins whose width grows, so that the tail is few.

    Args:
        first: positions of less context are left out (the first token has none to fit).
    """
    known = np.asarray(context)
    edges = [float(n) for n in range(first, max(LINEAR_TO, first) + 2)]
    while edges[-1] <= known.max():
        edges.append(max(edges[-1] + 1, math.floor(edges[-1] * ratio)))
    xs, members = [], []
    for low, high in itertools.pairwise(edges):
        inside = (known >= low) & (known < high)
        if inside.any():
            xs.append(float(known[inside].mean()))
            members.append(inside / inside.sum())
    require(len(xs) >= 2, f"context: {len(xs)} bins from {first} on; a fit needs two at least.")
    return Bins(np.array(xs), np.stack(members))


def shape(form: Form, x: Floats, delta: float, beta: float, tau: float) -> Floats:
    """The part that is multiplied by A."""
    if form == "exponential":
        return np.exp(-x / tau)
    found: Floats = (x + delta) ** -beta
    return found * np.exp(-x / tau) if form == "power, cut off" else found


def fit(x: Floats, y: Floats, se: Floats, form: Form = "power") -> Fit:
    """Weighted least squares with weights 1 / se^2, from many starts.

    Raises:
        ConfigError: arrays of different length, fewer than two points, or errors that are not
            positive.
    """
    require(len(x) == len(y) == len(se) >= 2, f"fit: {len(x)}, {len(y)}, {len(se)} points.")
    require(bool((se > 0).all()), "fit: standard errors must be positive.")
    weights = 1 / se**2
    if form == "constant":
        level = float(np.average(y, weights=weights))
        return _made(form, x, y, weights, (level, 0.0, math.nan, math.nan, math.nan))
    coarse = _grid(form, ((0.0, 1.0),) * 3, (9, 25, 13))
    chi2 = linear(_shapes(form, x, coarse), y[None], weights)[2]
    best = np.argsort(chi2[0], kind="stable")[:STARTS]
    tops = [_refine(form, x, y, weights, coarse[one]) for one in best]
    place, _ = min(tops, key=lambda pair: pair[1])
    h, a, _ = linear(_shapes(form, x, place[None]), y[None], weights)
    delta, beta, tau = (float(one) for one in _scaled(place[None])[0])
    used = {"exponential": (math.nan, math.nan, tau), "power": (delta, beta, math.nan)}
    return _made(
        form, x, y, weights, (float(h[0, 0]), float(a[0, 0]), *used.get(form, (delta, beta, tau)))
    )


def fit_many(x: Floats, ys: Floats, se: Floats) -> tuple[Floats, Floats]:
    """h and beta of the power form for many curves (B, points) at once, on one fine grid."""
    grid = _grid("power", ((0.0, 1.0),) * 3, (25, 97, 1))
    h, _, chi2 = linear(_shapes("power", x, grid), ys, 1 / se**2)
    best = chi2.argmin(1)
    return h[np.arange(len(ys)), best], _scaled(grid[best])[:, 1]


def linear(shapes: Floats, ys: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Best h >= 0 and A >= 0 for every shape (G, points) and curve (B, points): each (B, G)."""
    total = weights.sum()
    g_mean = shapes @ weights / total
    y_mean = ys @ weights / total
    centred = shapes - g_mean[:, None]
    gg = (centred**2) @ weights
    gy = (ys - y_mean[:, None]) * weights @ centred.T
    yy = ((ys - y_mean[:, None]) ** 2) @ weights
    a = np.maximum(gy / np.maximum(gg, 1e-300), 0.0)
    h = y_mean[:, None] - a * g_mean
    chi2 = yy[:, None] - 2 * a * gy + a**2 * gg
    raw = (shapes**2) @ weights
    alone = np.maximum((ys * weights) @ shapes.T / np.maximum(raw, 1e-300), 0.0)
    without = ((ys**2) @ weights)[:, None] - alone**2 * raw
    below = h < 0
    return np.where(below, 0.0, h), np.where(below, alone, a), np.where(below, without, chi2)


# Search: places in the unit cube of (delta, beta, tau)


def _scaled(places: Floats) -> Floats:
    """(places, 3) of the unit cube as delta, beta, tau."""
    delta = (1 + DELTA[1]) ** places[:, 0] - 1 + DELTA[0]
    beta = BETA[0] * (BETA[1] / BETA[0]) ** places[:, 1]
    tau = TAU[0] * (TAU[1] / TAU[0]) ** places[:, 2]
    return np.stack([delta, beta, tau], 1)


def _grid(form: Form, box: Sequence[tuple[float, float]], sizes: Sequence[int]) -> Floats:
    """Places of a box; dimensions that the form does not have are one point."""
    used = {"power": (True, True, False), "exponential": (False, False, True)}
    has = used.get(form, (True, True, True))
    axes = [
        np.linspace(low, high, size) if one and size > 1 else np.array([(low + high) / 2])
        for one, (low, high), size in zip(has, box, sizes, strict=True)
    ]
    return np.stack([one.ravel() for one in np.meshgrid(*axes, indexing="ij")], 1)


def _shapes(form: Form, x: Floats, places: Floats) -> Floats:
    delta, beta, tau = (column[:, None] for column in _scaled(places).T)
    if form == "exponential":
        return np.asarray(np.exp(-x / tau))
    found: Floats = np.exp(-beta * np.log(x + delta))
    return found * np.exp(-x / tau) if form == "power, cut off" else found


def _refine(
    form: Form, x: Floats, y: Floats, weights: Floats, start: Floats
) -> tuple[Floats, float]:
    """Grids around the best place; they shrink when it lies inside."""
    centre, half, value = start, 0.1, math.inf
    for _ in range(60):
        box = [(max(0.0, one - half), min(1.0, one + half)) for one in centre]
        places = _grid(form, box, (5, 5, 5))
        chi2 = linear(_shapes(form, x, places), y[None], weights)[2][0]
        best = int(chi2.argmin())
        moved = float(np.abs(places[best] - centre).max())
        if chi2[best] < value:
            centre, value = places[best], float(chi2[best])
        if moved < 0.9 * half:
            half *= 0.5
        if half < 1e-7:
            break
    return centre, value


def _made(form: Form, x: Floats, y: Floats, weights: Floats, found: tuple[float, ...]) -> Fit:
    h, a, delta, beta, tau = found
    curve = np.full_like(x, h) if form == "constant" else h + a * shape(form, x, delta, beta, tau)
    chi2 = float((weights * (y - curve) ** 2).sum())
    n, k = len(x), COUNTS[form]
    aicc = chi2 + 2 * k + 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else math.inf
    ranges = {"delta": (delta, DELTA), "beta": (beta, BETA), "tau": (tau, TAU)}
    edge = [name for name, (one, ends) in ranges.items() if _at_end(one, ends)]
    edge += ["h"] if h < 1e-6 * (h + a) else []
    correlation = _correlation(x, weights, found) if form == "power" else None
    return Fit(form, h, a, delta, beta, tau, chi2, aicc, correlation, tuple(edge))


def _at_end(value: float, ends: tuple[float, float]) -> bool:
    return not math.isnan(value) and any(abs(value - one) < 1e-3 * (1 + abs(one)) for one in ends)


def _correlation(x: Floats, weights: Floats, found: tuple[float, ...]) -> Floats | None:
    """Of (h, a, delta, beta), from the curvature of the sum of squares."""
    _, a, delta, beta, _ = found
    if a <= 0 or delta + x.min() <= 0:
        return None
    g = (x + delta) ** -beta
    jacobian = np.stack(
        [np.ones_like(x), g, -a * beta * g / (x + delta), -a * g * np.log(x + delta)]
    )
    information = (jacobian * weights) @ jacobian.T
    scale = np.sqrt(np.diag(information))
    if not (scale > 0).all():
        return None
    normed = information / np.outer(scale, scale)
    if np.linalg.cond(normed) > 1e14:
        return None
    covariance = np.linalg.inv(normed)
    spread = np.sqrt(np.diag(covariance))
    return np.asarray(covariance / np.outer(spread, spread))


def held_out_error(x: Floats, y: Floats, se: Floats, form: Form, *, every: int = 3) -> float:
    """Root mean square of residuals over errors at points that the fit did not see.

    Points are left out by thirds (every third one), so that each is predicted once.
    """
    total, count = 0.0, 0
    for first in range(every):
        out = np.arange(len(x)) % every == first
        if (~out).sum() < 2 or not out.any():
            continue
        found = fit(x[~out], y[~out], se[~out], form)
        total += float((((y[out] - found(x[out])) / se[out]) ** 2).sum())
        count += int(out.sum())
    return math.sqrt(total / count) if count else math.nan


def akaike_weights(values: Sequence[float]) -> list[float]:
    """Shares of exp(-AICc / 2); forms without a finite one get none."""
    finite = [one for one in values if math.isfinite(one)]
    if not finite:
        return [math.nan] * len(values)
    raw = [math.exp(-(one - min(finite)) / 2) if math.isfinite(one) else 0.0 for one in values]
    return [one / sum(raw) for one in raw]
