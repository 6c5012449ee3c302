"""The exact predictor of a mixture: what each component says, which one it is. Floor 0.

Without hazard, per sequence: belief b_c over the states of c and log weight l_c; with omega =
softmax(l) the prediction is p(x) = sum_c omega_c b_c T_c^(x) 1, and after x_t l_c grows by the log
of what c gave x_t and b_c becomes b_c T_c^(x_t), normalised. A component that excludes x_t has
weight 0 from then on. With a hazard one belief over components and states is kept and drawn towards
eta before each symbol. Everything in float64, nats.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nl.core.ergodic.mixture import Mixture
from nl.core.ergodic.sources import Floats, Ints, SourceError


class Filtered(NamedTuple):
    """The optimal predictor on B sequences of T symbols over V, C components.

    Attributes:
        predicted: (B, T, V), before the symbol is seen.
        posterior: (B, T, C) of the component, before the symbol is seen.
        nll: (B, T) of the symbol that came.
        entropy: (B, T) of the prediction.
    """

    predicted: Floats
    posterior: Floats
    nll: Floats
    entropy: Floats


def bayes_filter(mixture: Mixture, tokens: Ints) -> Filtered:
    """Predict sequences (B, T) of symbols.

    Raises:
        SourceError: a symbol outside the alphabet, or a sequence that no component can emit.
    """
    _check(mixture, tokens)
    predicted, posterior = (_redrawn if mixture.hazard else _separate)(mixture, tokens)
    return _filled(predicted, posterior, tokens)


def _separate(mixture: Mixture, tokens: Ints) -> tuple[Floats, Floats]:
    """Without hazard: beliefs (C, B, S) per component, log weights (B, C)."""
    rows, length = tokens.shape
    matrices = mixture.matrices
    emission = matrices.sum(3).transpose(0, 2, 1)  # (C, S, V)
    belief = np.repeat(mixture.start[:, None], rows, axis=1)
    weight = np.repeat(np.log(mixture.weights)[None], rows, axis=0)
    predicted = np.empty((rows, length, mixture.alphabet))
    posterior = np.empty((rows, length, len(mixture.sources)))
    each = np.arange(rows)
    for t in range(length):
        symbol = tokens[:, t]
        omega = np.exp(weight - weight.max(1, keepdims=True))
        omega /= omega.sum(1, keepdims=True)
        given = belief @ emission  # (C, B, V)
        posterior[:, t] = omega
        predicted[:, t] = np.einsum("bc,cbv->bv", omega, given)
        said = given[:, each, symbol]  # (C, B)
        alive = said > 0
        with np.errstate(divide="ignore"):
            weight = weight + np.log(said).T
        _some(np.isfinite(weight).any(1), t)
        moved = _moved(matrices, belief, symbol) / np.where(alive, said, 1)[..., None]
        belief = np.where(alive[..., None], moved, belief)
    return predicted, posterior


def _redrawn(mixture: Mixture, tokens: Ints) -> tuple[Floats, Floats]:
    """With a hazard: one belief (C, B, S) over components and states."""
    rows, length = tokens.shape
    matrices, hazard = mixture.matrices, mixture.hazard
    emission = matrices.sum(3).transpose(0, 2, 1)
    eta = (mixture.weights[:, None] * mixture.start)[:, None]  # (C, 1, S)
    belief = np.repeat(eta, rows, axis=1)
    predicted = np.empty((rows, length, mixture.alphabet))
    posterior = np.empty((rows, length, len(mixture.sources)))
    each = np.arange(rows)
    for t in range(length):
        symbol = tokens[:, t]
        belief = (1 - hazard) * belief + hazard * eta
        posterior[:, t] = belief.sum(2).T
        predicted[:, t] = (belief @ emission).sum(0)
        said = predicted[each, t, symbol]
        _some(said > 0, t)
        belief = _moved(matrices, belief, symbol) / said[None, :, None]
    return predicted, posterior


def _moved(matrices: Floats, belief: Floats, symbol: Ints) -> Floats:
    """Beliefs (C, B, S) times the matrix of each row's symbol (B,)."""
    found = np.empty_like(belief)
    for x in np.unique(symbol):
        mine = symbol == x
        found[:, mine] = belief[:, mine] @ matrices[:, x]
    return found


def bayes_filter_reference(mixture: Mixture, sequence: Ints) -> Filtered:
    """The same of one sequence (T,) from its definition: ratios of P(x_1 ... x_n), one by one.

    For short sequences: nothing is normalised on the way.
    """
    _check(mixture, sequence[None])
    matrices, owner = mixture.joint(), mixture.owner
    count, length = len(mixture.sources), len(sequence)
    predicted, posterior = np.empty((length, mixture.alphabet)), np.empty((length, count))
    for t in range(length):
        forward = mixture.eta
        for symbol in sequence[:t]:
            forward = forward @ matrices[symbol]
        prefix = forward.sum()
        for x in range(mixture.alphabet):
            predicted[t, x] = (forward @ matrices[x]).sum() / prefix
        stayed = (1 - mixture.hazard) * forward + mixture.hazard * prefix * mixture.eta
        for c in range(count):
            posterior[t, c] = stayed[owner == c].sum() / prefix
    return _filled(predicted[None], posterior[None], sequence[None])


def kl(truth: Floats, log_guess: Floats) -> Floats:
    """sum_x p(x) (ln p(x) - ln q(x)) over the last axis; every value is >= 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(truth > 0, truth * (np.log(truth) - log_guess), 0.0)
    return np.asarray(terms.sum(-1))


def entropy(probability: Floats) -> Floats:
    """-sum p ln p over the last axis, 0 ln 0 = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(probability > 0, probability * np.log(probability), 0.0)
    return np.asarray(-terms.sum(-1))


def _filled(predicted: Floats, posterior: Floats, tokens: Ints) -> Filtered:
    seen = np.take_along_axis(predicted, tokens[..., None], 2)[..., 0]
    with np.errstate(divide="ignore"):
        return Filtered(predicted, posterior, -np.log(seen), entropy(predicted))


def _check(mixture: Mixture, tokens: Ints) -> None:
    outside = (tokens < 0) | (tokens >= mixture.alphabet)
    if outside.any():
        found = int(tokens[outside][0])
        raise SourceError(f"tokens: {found}; the alphabet is 0 to {mixture.alphabet - 1}")


def _some(possible: Floats, t: int) -> None:
    if not possible.all():
        row = int(np.argmin(possible))
        raise SourceError(f"tokens: no component can emit row {row} up to token {t}")
