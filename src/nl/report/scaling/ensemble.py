"""The Bayes ensemble of experts, and the loss of a source alone, from stored losses. Floor 1."""

from __future__ import annotations

import numpy as np

from nl.config import require
from nl.report.scaling.losses import Floats


def mixture_nll(experts: Floats, weights: Floats | None = None) -> Floats:
    """-ln p of the mixture that infers in context which expert is right.

    q(x | past) = sum_c omega_c(past) q_c(x | past), omega by Bayes' rule from the experts' own
    losses; with exact experts it is the optimal predictor of the mixture.

    Args:
        experts: (experts, windows, positions), -ln q_c of the same tokens.
        weights: (experts,), prior; equal where it is not given.

    Returns:
        (windows, positions).

    Raises:
        ConfigError: no expert, or weights that are no distribution.
    """
    require(experts.ndim == 3 and len(experts) > 0, f"experts: shape {experts.shape}; give some.")
    count = len(experts)
    prior = np.full(count, 1 / count) if weights is None else np.asarray(weights, dtype=float)
    fine = prior.shape == (count,) and bool((prior > 0).all()) and abs(prior.sum() - 1) < 1e-9
    require(fine, f"weights: {prior.tolist()}; {count} positive numbers that add to 1.")
    # The posterior is carried in place of ever longer sums: digits are not lost in long windows.
    found = np.empty(experts.shape[1:])
    posterior = np.broadcast_to(np.log(prior)[:, None], experts.shape[:2])
    for position in range(experts.shape[2]):
        joint = posterior - experts[:, :, position]
        total = np.logaddexp.reduce(joint, axis=0)
        found[:, position] = -total
        posterior = joint - total
    return found


def alone_nll(mixture: Floats, posterior: Floats, prior: float, *, before: bool) -> Floats:
    """-ln p of the true component alone, from the mixture's exact filter.

    Bayes' rule backwards: p_c(x) = p(x) omega_c(after) / omega_c(before).

    Args:
        mixture: (windows, positions), -ln p of the exact mixture.
        posterior: (windows, positions), of the true component.
        prior: of the component, before anything was read.
        before: whether ``posterior`` is given the context of a position (else its token too). The
            last position has no posterior after it then and is nan.
    """
    logs = np.log(posterior)
    start = np.full((len(logs), 1), np.log(prior))
    if before:
        after = np.concatenate([logs[:, 1:], np.full((len(logs), 1), np.nan)], axis=1)
    else:
        logs, after = np.concatenate([start, logs[:, :-1]], axis=1), logs
    found: Floats = mixture - (after - logs)
    return found
