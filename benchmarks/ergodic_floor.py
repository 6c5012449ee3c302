"""What the exact predictor pays for not knowing the component, from the matrices beside a run."""

from __future__ import annotations

import functools

import numpy as np
from ergodic_read import Run, Sweep

from nl.core.ergodic import Mixture, Source, bayes_filter, kl
from nl.report.scaling.losses import Floats

DRAWN = 5000
"""Sequences of each component: the error of what three components cost in a window is 0.008 nats,
and falls with their number."""


def price(sweep: Sweep, k: int, names: tuple[str, ...] = ()) -> Floats:
    """(positions,) nats beyond one who knows the component, mean over components.

    Args:
        names: of the components that are asked, those of the K among them; empty: all K.
    """
    run = floor_of(sweep, k)
    losses = run.losses["on"]
    told = prices(run)
    asked = names or losses.trained_on
    places = [place for place, name in enumerate(losses.trained_on) if name in asked]
    found: Floats = told[places][:, losses.context].mean(0)
    return found


def floor_of(sweep: Sweep, k: int) -> Run:
    """Any run on K components: the exact predictor is the same."""
    return next(run for run in sweep.runs if run.k == k)


@functools.cache
def prices(run: Run) -> Floats:
    """(components, symbols) divergence of each component from the exact predictor of all."""
    losses = run.losses["on"]
    sources = tuple(Source(n, np.asarray(run.page["sources"][n])) for n in losses.trained_on)
    mixture = Mixture(sources)
    begin, each = mixture.uniforms
    length = int(losses.context[-1]) + 1
    rng = np.random.default_rng(0)
    found = np.empty((len(sources), length))
    for code, source in enumerate(sources):
        uniform = rng.random((DRAWN, begin + each * length))
        tokens = mixture.sample(uniform, np.full(DRAWN, code)).tokens
        alone = bayes_filter(Mixture((source,)), tokens).predicted
        with np.errstate(divide="ignore"):
            guess = np.log(bayes_filter(mixture, tokens).predicted)
        size = alone.shape[2]
        found[code] = kl(alone, guess[:, :, :size]).mean(0)
    return found
