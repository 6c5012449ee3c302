"""Several sources as one: drawn once per sequence, or redrawn with a hazard; sampling. Floor 0.

As a single hidden Markov model: T^(x) is block-diagonal, the start is eta = (w_1 pi_1, ..., w_C
pi_C). With hazard r, before each symbol component and state are drawn again from eta with
probability r: T_r^(x) = (1 - r) T^(x) + r 1 (eta T^(x)). eta stays stationary; r = 0 is the
mixture.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nl.core.ergodic.sources import CLOSE, Floats, Ints, Source, SourceError

MOST_CELLS = 1 << 27
"""Numbers in the dense matrices of a mixture: 1 GiB."""


class Sampled(NamedTuple):
    """Sequences.

    Attributes:
        tokens: (B, T).
        component: (B, T) of each token.
    """

    tokens: Ints
    component: Ints


@dataclass(frozen=True, eq=False)
class Mixture:
    """C sources over one alphabet, with weights.

    Attributes:
        sources: of any alphabets that begin at 0; the mixture has the largest.
        given: weights; empty: equal.
        hazard: r.

    Raises:
        SourceError: no sources, weights that do not fit, a hazard outside [0, 1].
    """

    sources: tuple[Source, ...]
    given: tuple[float, ...] = ()
    hazard: float = 0.0

    def __post_init__(self) -> None:
        count, given = len(self.sources), self.given
        if not count:
            raise SourceError("components: empty; name one at least")
        if given and len(given) != count:
            raise SourceError(f"weights: {len(given)} for {count} components; give one for each")
        if given and (min(given) <= 0 or abs(sum(given) - 1) > CLOSE):
            raise SourceError(f"weights: {list(given)}; must be > 0 and add up to 1")
        if not 0 <= self.hazard <= 1:
            raise SourceError(f"hazard: {self.hazard}; must be in [0, 1]")
        cells = self.alphabet * count * max(s.states for s in self.sources) ** 2
        if cells > MOST_CELLS:
            raise SourceError(f"components: {cells} matrix entries; at most {MOST_CELLS}")

    @property
    def alphabet(self) -> int:
        """V."""
        return max(source.alphabet for source in self.sources)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the sources."""
        return tuple(source.name for source in self.sources)

    @functools.cached_property
    def weights(self) -> Floats:
        """(C,)."""
        count = len(self.sources)
        return np.asarray(self.given or np.full(count, 1 / count), dtype=np.float64)

    @functools.cached_property
    def matrices(self) -> Floats:
        """(C, V, S, S), S of the largest source, zeros beyond."""
        size = max(source.states for source in self.sources)
        found = np.zeros((len(self.sources), self.alphabet, size, size))
        for c, source in enumerate(self.sources):
            found[c, : source.alphabet, : source.states, : source.states] = source.matrices
        return found

    @functools.cached_property
    def start(self) -> Floats:
        """pi (C, S), zeros beyond."""
        found = np.zeros((len(self.sources), self.matrices.shape[2]))
        for c, source in enumerate(self.sources):
            found[c, : source.states] = source.stationary
        return found

    @functools.cached_property
    def owner(self) -> Ints:
        """(N,) the component of each state of the joint model."""
        return np.repeat(np.arange(len(self.sources)), [s.states for s in self.sources])

    @functools.cached_property
    def eta(self) -> Floats:
        """(N,) start of the joint model."""
        parts = zip(self.weights, self.sources, strict=True)
        return np.concatenate([weight * source.stationary for weight, source in parts])

    def joint(self) -> Floats:
        """(V, N, N) of the joint model, the hazard in it.

        Raises:
            SourceError: too large to be written out.
        """
        size = len(self.owner)
        if self.alphabet * size * size > MOST_CELLS:
            raise SourceError(f"components: {size} states together; too many for dense matrices")
        found = np.zeros((self.alphabet, size, size))
        at = 0
        for source in self.sources:
            here = slice(at, at + source.states)
            found[: source.alphabet, here, here] = source.matrices
            at += source.states
        again = np.einsum("s,xst->xt", self.eta, found)
        return np.asarray((1 - self.hazard) * found + self.hazard * again[:, None, :])

    def alone(self, component: int) -> Mixture:
        """One component by itself, in the alphabet of all."""
        source = self.sources[component]
        whole = source.relabelled(np.arange(source.alphabet), self.alphabet, source.name)
        return Mixture((whole,))

    @property
    def uniforms(self) -> tuple[int, int]:
        """Uniform numbers that a sequence takes: at its begin, and per token."""
        return (2, 3 if self.hazard else 1)

    def sample(self, uniform: Floats, component: Ints | None = None) -> Sampled:
        """Sequences from uniform numbers.

        Args:
            uniform: (B, 2 + T) in [0, 1); with a hazard (B, 2 + 3 T).
            component: (B,) in which each sequence begins; None: drawn.
        """
        begin, each = self.uniforms
        length = (uniform.shape[1] - begin) // each
        if component is None:
            component = _drawn(np.cumsum(self.weights)[None], uniform[:, 0])
        edges = self._edges
        first = np.searchsorted(self.owner, np.arange(len(self.sources)))
        state = first[component] + _drawn(edges.start[component], uniform[:, 1])
        tokens = np.empty((len(uniform), length), dtype=np.int64)
        owners = np.empty_like(tokens)
        for t in range(length):
            drawn = uniform[:, begin + each * t : begin + each * (t + 1)]
            if self.hazard:
                redrawn = _drawn(np.cumsum(self.eta)[None], drawn[:, 1])
                state = np.where(drawn[:, 0] < self.hazard, redrawn, state)
            owners[:, t] = self.owner[state]
            edge = _drawn(edges.cumulative[state], drawn[:, -1])
            tokens[:, t] = edges.symbol[state, edge]
            state = edges.after[state, edge]
        return Sampled(tokens, owners)

    @functools.cached_property
    def _edges(self) -> _Edges:
        parts: list[tuple[Floats, Ints, Ints]] = []
        at = 0
        for source in self.sources:
            for state in range(source.states):
                symbol, after = np.nonzero(source.matrices[:, state])
                parts.append((source.matrices[symbol, state, after], symbol, after + at))
            at += source.states
        most = max(len(symbol) for _, symbol, _ in parts)
        cumulative = np.full((len(parts), most), np.inf)
        symbols = np.zeros((len(parts), most), dtype=np.int64)
        afters = np.zeros_like(symbols)
        for row, (probability, symbol, after) in enumerate(parts):
            # The last edge takes what rounding leaves of 1.
            cumulative[row, : len(symbol) - 1] = np.cumsum(probability)[:-1]
            symbols[row, : len(symbol)] = symbol
            afters[row, : len(symbol)] = after
        start = np.cumsum(self.start, axis=1)
        for c, source in enumerate(self.sources):
            start[c, source.states - 1 :] = np.inf
        return _Edges(cumulative, symbols, afters, start)


class _Edges(NamedTuple):
    """Ways out of every joint state, (N, D), and where each component begins, (C, S) summed up."""

    cumulative: Floats
    symbol: Ints
    after: Ints
    start: Floats


def _drawn(cumulative: Floats, uniform: Floats) -> Ints:
    """Which piece of (B or 1, D) each number falls into."""
    found = (uniform[:, None] >= cumulative).sum(1)
    return np.asarray(np.minimum(found, cumulative.shape[1] - 1), dtype=np.int64)
