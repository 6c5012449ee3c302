"""Cross-entropy of the optimal predictor at each position, in three ways; rates. Floor 0.

L_t = H(X_t | X_1 ... X_t-1) of the mixture, in nats.

    enumerated  all V^t prefixes: exact, short
    merged      distinct beliefs with their probabilities: exact to rounding, long where few
    sampled     the entropy of the prediction, averaged over sampled sequences: unbiased, with
                errors about a third of those of the sampled loss (Rao and Blackwell)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nl.core.ergodic.filter import bayes_filter, entropy
from nl.core.ergodic.mixture import Mixture
from nl.core.ergodic.sources import Floats, Source, SourceError, reachable, stationary

MOST_CELLS = 50_000_000
"""Numbers in the largest array of an enumeration: 400 MB."""
MERGED = 1e-10
"""Beliefs closer than this are one."""


class Blocks(NamedTuple):
    """What all prefixes of 1 ... T symbols say; C components.

    Attributes:
        entropy: (T,) L_t of the mixture.
        own: (C, T) L_t^c of each component by itself.
        cross: (C, T) E_{P_c}[-ln p(x_t | x_<t)] of the mixture on sequences of c.
        doubt: (T,) E[H(omega)] after t symbols; ln C - doubt is I(C; X_1 ... X_t) at even weights.
    """

    entropy: Floats
    own: Floats
    cross: Floats
    doubt: Floats

    @property
    def price(self) -> Floats:
        """(C, T) what not knowing the component costs on it; sums to at most -ln w_c."""
        return np.asarray(self.cross - self.own)


class Sampling(NamedTuple):
    """An estimate of L_t.

    Attributes:
        values, stderr: (T,) from the entropy of predictions.
        plain, plain_stderr: (T,) from -ln p of what was drawn.
    """

    values: Floats
    stderr: Floats
    plain: Floats
    plain_stderr: Floats


def longest(mixture: Mixture, cells: int = MOST_CELLS) -> int:
    """The longest prefixes that ``enumerated`` can take."""
    size, length = len(mixture.owner), 0
    while mixture.alphabet ** (length + 1) * size <= cells and length < 64:
        length += 1
    return length


def enumerated(mixture: Mixture, length: int, cells: int = MOST_CELLS) -> Blocks:
    """Every prefix: unnormalised forward vectors, multiplied out.

    Raises:
        SourceError: too many prefixes.
    """
    most = longest(mixture, cells)
    if length > most:
        raise SourceError(
            f"length: {length}; {mixture.alphabet} symbols and {len(mixture.owner)} states allow "
            f"{most} within {cells} numbers: use merged or sampled"
        )
    if mixture.hazard and len(mixture.sources) > 1:
        raise SourceError("hazard: sequences have no one component; use merged or entropies")
    matrices, owner = mixture.joint(), mixture.owner
    member = (owner[:, None] == np.arange(len(mixture.sources))).astype(float)
    forward = mixture.eta[None]
    blocks: list[tuple[float, Floats, Floats, float]] = [
        (0.0, np.zeros(member.shape[1]), np.zeros(member.shape[1]), 0.0)
    ]
    for _ in range(length):
        forward = np.concatenate([forward @ matrix for matrix in matrices])
        forward = forward[forward.sum(1) > 0]
        joint = forward @ member  # (prefixes, C)
        whole = joint.sum(1)
        inside = joint / mixture.weights
        own = entropy(inside.T)
        cross = -(inside * np.log(whole)[:, None]).sum(0)
        doubt = float(entropy(joint / whole[:, None]) @ whole)
        blocks.append((float(entropy(whole)), own, cross, doubt))
    wholes, owns, crosses, doubts = (np.array(part) for part in zip(*blocks, strict=True))
    return Blocks(np.diff(wholes), np.diff(owns, axis=0).T, np.diff(crosses, axis=0).T, doubts[1:])


def entropies(mixture: Mixture, length: int, cells: int = MOST_CELLS) -> Floats:
    """L_t (T,) by enumeration, with or without a hazard.

    Raises:
        SourceError: too many prefixes.
    """
    if length > longest(mixture, cells):
        raise SourceError(f"length: {length}; at most {longest(mixture, cells)} can be enumerated")
    return _from(mixture.joint(), mixture.eta, length)


def _from(matrices: Floats, start: Floats, length: int) -> Floats:
    """H(X_t | X_<t) (T,) of the model that begins in ``start``."""
    forward, found = start[None], [0.0]
    for _ in range(length):
        forward = np.concatenate([forward @ matrix for matrix in matrices])
        forward = forward[forward.sum(1) > 0]
        found.append(float(entropy(forward.sum(1))))
    return np.diff(found)


def merged(mixture: Mixture, length: int, most: int = 100_000) -> Floats:
    """L_t (T,) from distinct beliefs over components and states.

    Raises:
        SourceError: more than ``most`` beliefs, with the length that went well.
    """
    matrices = mixture.joint()
    beliefs: Floats = mixture.eta[None]
    weight: Floats = np.ones(1)
    found = np.empty(length)
    emission = matrices.sum(2).T  # (N, V)
    for t in range(length):
        predicted = beliefs @ emission
        found[t] = entropy(predicted) @ weight
        if t + 1 == length:
            break
        moved = np.concatenate([beliefs @ matrix for matrix in matrices])
        chance = moved.sum(1)
        alive = chance > 0
        weights = (np.tile(weight, len(matrices)) * chance)[alive]
        moved = moved[alive] / chance[alive, None]
        keys = np.round(moved / MERGED).astype(np.int64)
        _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        beliefs, weight = (
            moved[first],
            np.asarray(np.bincount(inverse.reshape(-1), weights), dtype=np.float64),
        )
        if len(beliefs) > most:
            raise SourceError(f"length: {length}; {len(beliefs)} beliefs after {t + 1} symbols, "
                              f"more than {most}: use sampled")  # fmt: skip
    return found


def sampled(mixture: Mixture, length: int, rows: int, seed: int, batch: int = 4096) -> Sampling:
    """L_t by sampled sequences, as many per component as its weight asks, two at least."""
    rng = np.random.default_rng(seed)
    begin, each = mixture.uniforms
    counts = np.maximum(2, np.round(mixture.weights * rows).astype(int))
    means, squares = np.zeros((2, length)), np.zeros((2, length))
    for component, (weight, count) in enumerate(zip(mixture.weights, counts, strict=True)):
        parts = []
        for at in range(0, count, batch):
            size = min(batch, count - at)
            drawn = rng.random((size, begin + each * length))
            tokens = mixture.sample(drawn, np.full(size, component)).tokens
            told = bayes_filter(mixture, tokens)
            parts.append(np.stack([told.entropy, told.nll]))
        values = np.concatenate(parts, axis=1)
        means += weight * values.mean(1)
        squares += weight**2 * values.var(1, ddof=1) / count
    errors = np.sqrt(squares)
    return Sampling(means[0], errors[0], means[1], errors[1])


def entropy_rate(source: Source) -> float:
    """h of a unifilar source, exactly.

    Raises:
        SourceError: it is not unifilar; ``rate_bounds`` brackets it.
    """
    if not source.unifilar:
        raise SourceError(f"{source.name}: not unifilar, no closed rate; use rate_bounds")
    return float(source.stationary @ entropy(source.emission))


def rate_bounds(source: Source, length: int, cells: int = MOST_CELLS) -> tuple[float, float]:
    """H(X_t | X_<t, S_1) <= h <= H(X_t | X_<t) at t = ``length``.

    Raises:
        SourceError: too many prefixes.
    """
    mixture = Mixture((source,))
    if length > longest(mixture, cells):
        raise SourceError(f"length: {length}; at most {longest(mixture, cells)} can be enumerated")
    starts = np.eye(source.states)
    lower = sum(
        weight * _from(source.matrices, start, length)[-1]
        for weight, start in zip(source.stationary, starts, strict=True)
    )
    return float(lower), float(_from(source.matrices, mixture.eta, length)[-1])


def kl_rate(true: Source, other: Source) -> float:
    """Nats per symbol by which ``other`` predicts ``true`` worse than it does itself.

    Both are followed along the same symbols; infinite where ``other`` excludes one of them.

    Raises:
        SourceError: one is not unifilar, or symbols do not tell the state of ``other``.
    """
    if not (true.unifilar and other.unifilar) or true.alphabet > other.alphabet:
        raise SourceError(f"{true.name}, {other.name}: only of unifilar sources of one alphabet")
    p, q = true.emission, other.emission[:, : true.alphabet]
    go, come = true.matrices.argmax(2), other.matrices.argmax(2)  # (V, S) next states
    size, count = true.states, other.states
    pairs = np.zeros((size * count, size * count))
    for symbol in range(true.alphabet):
        after = go[symbol][:, None] * count + come[symbol]
        pairs[np.arange(size * count), after.reshape(-1)] += np.repeat(p[:, symbol], count)
    reached = reachable(pairs > 0)
    recurrent = (reached <= reached.T).all(1)
    places = np.flatnonzero(recurrent)
    if not reached[np.ix_(places, places)].all() or len(np.unique(places // count)) < len(places):
        raise SourceError(f"{true.name}, {other.name}: symbols do not tell the state of the second")
    weight = np.zeros(size * count)
    weight[places] = stationary(pairs[np.ix_(places, places)])
    first, second = np.divmod(np.arange(size * count), count)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p[first] > 0, p[first] * (np.log(p[first]) - np.log(q[second])), 0.0)
    return float(weight[places] @ terms[places].sum(1))
