"""Means by place, by posterior, since a switch; when a model has adapted. Floor 6."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from nl.eval.floor_read import Told, Truth
from nl.eval.probe_read import Floats, Ints
from nl.eval.rows import ratio_and_stderr

POSTERIORS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
"""Bounds of the bins of the exact posterior of the true component."""
SINCE = 33
"""Symbols since a switch that are told apart; the last stands for more."""
RESAMPLES = 200
"""Draws of the bootstrap over windows."""
LEAST = 1e-6
"""Nats below which components cannot be said to differ."""


class Stratum(NamedTuple):
    """Windows of one component.

    Attributes:
        name: of it.
        weight: in the mixture.
        rows: numbers of its windows.
    """

    name: str
    weight: float
    rows: Ints


def curve(values: Floats, strata: Sequence[Stratum]) -> dict[str, Any]:
    """Mean over windows of (N, P), weighted over strata: over all places, and at each.

    Standard errors are those of a mean with windows as the sampling unit.
    """
    places, spread = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    mean = variance = 0.0
    known = True
    for stratum in strata:
        mine, weight = values[stratum.rows], stratum.weight
        count = len(mine)
        places += weight * mine.mean(0)
        mean += weight * float(mine.mean())
        known = known and count > 1
        if count > 1:
            spread += weight**2 * mine.var(0, ddof=1) / count
            variance += weight**2 * float(mine.mean(1).var(ddof=1)) / count
    return {
        "mean": mean,
        "stderr": variance**0.5 if known else None,
        "at": places.tolist(),
        "stderr_at": np.sqrt(spread).tolist() if known else None,
    }


def mean_of(values: Floats, here: Any) -> dict[str, Any]:
    """Mean over some places of windows (N, P), windows as the sampling unit."""
    over = np.where(here, values, 0.0).sum(1).tolist()
    mean, error = ratio_and_stderr(over, here.sum(1).astype(float).tolist())
    return {"mean": mean, "stderr": error, "n": int(here.sum())}


def by_posterior(truth: Truth, told: Told) -> list[dict[str, Any]]:
    """Excess and divergence where the exact predictor is so sure of the true component."""
    trained = truth.trained
    sure, found = truth.posterior[trained], []
    excess = (told.nll - truth.nll)[trained]
    for low, high in itertools.pairwise(POSTERIORS):
        here = (sure >= low) & ((sure < high) | (high == POSTERIORS[-1]))
        if here.any():
            rows = here.any(1)
            parts = {"kl": told.kl[trained][rows], "excess": excess[rows]}
            found.append(
                {"low": low, "high": high, "n": int(here.sum())}
                | {name: mean_of(values, here[rows]) for name, values in parts.items()}
            )
    return found


def since_change(truth: Truth, told: Told) -> list[dict[str, Any]]:
    """Excess and divergence by the symbols since the last switch, of windows that had one."""
    component = truth.component
    count = np.full(component.shape, -1)
    for place in range(1, component.shape[1]):
        changed = component[:, place] != component[:, place - 1]
        before = count[:, place - 1]
        count[:, place] = np.where(changed, 0, np.where(before >= 0, before + 1, -1))
    count = np.minimum(count, SINCE - 1)
    found = []
    for since in range(SINCE):
        here = count == since
        if here.any():
            rows = here.any(1)
            parts = {"xe": told.nll, "bayes_xe": truth.nll, "kl": told.kl}
            parts |= {"excess": told.nll - truth.nll, "posterior": truth.posterior}
            found.append(
                {"since": since, "or_more": since == SINCE - 1, "n": int(here.sum())}
                | {name: mean_of(values[rows], here[rows]) for name, values in parts.items()}
            )
    return found


def adapted(model: Floats, best: Floats, share: float, context: Sequence[int]) -> dict[str, Any]:
    """When what is lost for not knowing the component has become small, for good.

    Args:
        model: (N, P) divergence of the model from who knows the component.
        best: (N, P) that of the exact predictor.
        share: of the largest mean of ``best`` over places.
        context: (P,) symbols seen at each place.

    Returns:
        ``threshold`` in nats, and for ``model`` and ``bayes`` the number of symbols after which the
        mean over windows stays at or below it, with 95 % intervals (windows drawn again; the bound
        is None where that is not within the window); None where it never does, or where components
        do not differ.
    """
    threshold = share * float(best.mean(0).max())
    if threshold < LEAST:
        return {"threshold": None, "model": None, "bayes": None}
    found: dict[str, Any] = {"threshold": threshold, "share": share}
    rng = np.random.default_rng(0)
    n = len(model)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n
    for name, values in (("model", model), ("bayes", best)):
        found[name] = _when(values.mean(0)[None], threshold, context)[0]
        drawn = _when(weights @ values, threshold, context)
        order = sorted(np.inf if one is None else one for one in drawn)
        ends = (order[round(0.025 * (len(order) - 1))], order[round(0.975 * (len(order) - 1))])
        found[f"{name}_interval"] = [None if np.isinf(end) else end for end in ends]
    return found


def _when(curves: Floats, threshold: float, context: Sequence[int]) -> list[int | None]:
    """The first place of each curve (R, P) from which on it is at or below the threshold."""
    above = curves > threshold
    places = above.shape[1] - above[:, ::-1].argmax(1)
    places = np.where(above.any(1), places, 0)
    return [int(context[p]) if p < len(context) else None for p in places.tolist()]
