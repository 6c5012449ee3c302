"""Stationary sources of symbols as labelled matrices; a library of them. Floor 0.

A source has for every symbol x a matrix T^(x) with (T^(x))_{ss'} = P(emit x, go to s' | s). Their
sum T is stochastic and irreducible; pi T = pi is solved, not iterated, and a sequence begins in it:
P(x_1 ... x_n) = pi T^(x_1) ... T^(x_n) 1.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
MOST_STATES = 4096
CLOSE = 1e-9
"""How far from 1 the sum of a row of probabilities may be."""


class SourceError(ValueError):
    """Matrices, names or weights that mean no source; the text says why."""


@dataclass(frozen=True, eq=False)
class Source:
    """An irreducible hidden Markov source of V symbols with S states.

    Attributes:
        name: how it was asked for.
        matrices: (V, S, S), see the module.

    Raises:
        SourceError: not stochastic, or not irreducible.
    """

    name: str
    matrices: Floats

    def __post_init__(self) -> None:
        found = np.asarray(self.matrices, dtype=np.float64)
        object.__setattr__(self, "matrices", found)
        square = found.ndim == 3 and found.shape[1] == found.shape[2] and found.size > 0
        if not square:
            raise SourceError(f"{self.name}: matrices {found.shape}; must be (V, S, S)")
        if found.shape[1] > MOST_STATES:
            raise SourceError(f"{self.name}: {found.shape[1]} states; at most {MOST_STATES}")
        if not np.isfinite(found).all() or (found < 0).any():
            raise SourceError(f"{self.name}: not stochastic, entries must be finite and >= 0")
        sums = self.transitions.sum(1)
        worst = int(np.abs(sums - 1).argmax())
        if abs(sums[worst] - 1) > CLOSE:
            raise SourceError(
                f"{self.name}: not stochastic, row {worst} of the summed matrices adds up to "
                f"{sums[worst]:.6g} instead of 1"
            )
        lost = np.argwhere(~reachable(self.transitions > 0))
        if len(lost):
            raise SourceError(
                f"{self.name}: reducible, state {lost[0][1]} is never reached from {lost[0][0]}; a "
                "component must be irreducible: make each closed class a component of its own"
            )

    @property
    def alphabet(self) -> int:
        """V."""
        return len(self.matrices)

    @property
    def states(self) -> int:
        """S."""
        return int(self.matrices.shape[1])

    @property
    def transitions(self) -> Floats:
        """T (S, S), summed over symbols."""
        return np.asarray(self.matrices.sum(0))

    @functools.cached_property
    def stationary(self) -> Floats:
        """pi (S,)."""
        return stationary(self.transitions)

    @functools.cached_property
    def emission(self) -> Floats:
        """P(x | s) as (S, V)."""
        return np.asarray(self.matrices.sum(2).T)

    @property
    def unifilar(self) -> bool:
        """Whether state and symbol tell the next state."""
        return bool(((self.matrices > 0).sum(2) <= 1).all())

    def relabelled(self, symbols: Ints, size: int, name: str) -> Source:
        """The source with symbol x called ``symbols[x]``, in an alphabet of ``size``."""
        found = np.zeros((size, self.states, self.states))
        found[symbols] = self.matrices
        return Source(name, found)


def stationary(transitions: Floats) -> Floats:
    """The solution of pi T = pi, sum pi = 1, of an irreducible T (S, S)."""
    size = len(transitions)
    system = np.vstack([transitions.T - np.eye(size), np.ones(size)])
    right = np.append(np.zeros(size), 1.0)
    found = np.linalg.lstsq(system, right, rcond=None)[0]
    found = np.maximum(found, 0)
    return np.asarray(found / found.sum())


def reachable(edges: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which state can be reached from which, in any number of steps."""
    found = edges | np.eye(len(edges), dtype=bool)
    for _ in range(max(1, math.ceil(math.log2(len(edges) + 1)))):
        found = (found.astype(np.float32) @ found.astype(np.float32)) > 0
    return np.asarray(found)


def mess3(move: float, sure: float) -> Source:
    """Mess3: three hidden states that are left with probability 2 ``move``.

    The state that is entered emits its own symbol with probability ``sure``, each other one with
    (1 - sure) / 2 (Marzen and Crutchfield 2017).
    """
    _within("mess3 x", move, 0, 0.5)
    _within("mess3 a", sure, 0, 1)
    go = np.full((3, 3), move) + np.eye(3) * (1 - 3 * move)
    emit = np.full((3, 3), (1 - sure) / 2) + np.eye(3) * (sure - (1 - sure) / 2)
    return Source(f"mess3:{move:g}:{sure:g}", np.einsum("st,xt->xst", go, emit))


def coin(heads: float) -> Source:
    """Independent bits; symbol 1 has probability ``heads``."""
    _within("coin p", heads, 0, 1)
    return Source(f"coin:{heads:g}", np.array([1 - heads, heads]).reshape(2, 1, 1))


def chain(rows: Floats, name: str = "chain") -> Source:
    """A Markov chain of order m: ``rows`` (V^m, V), the context's newest symbol is its last digit.

    Raises:
        SourceError: the number of rows is no power of the number of symbols.
    """
    contexts, symbols = rows.shape
    fits = contexts == 1 or (symbols > 1 and symbols ** _log(contexts, symbols) == contexts)
    if not fits:
        raise SourceError(f"{name}: {contexts} rows of {symbols} symbols; must be V^m rows of V")
    found = np.zeros((symbols, contexts, contexts))
    context = np.arange(contexts)
    for symbol in range(symbols):
        found[symbol, context, (context * symbols + symbol) % contexts] = rows[:, symbol]
    return Source(name, found)


def dirichlet_chain(symbols: int, order: int, alpha: float, seed: int) -> Source:
    """A Markov chain whose rows are drawn from Dirichlet(alpha, ..., alpha)."""
    _counted("chain V", symbols, 2)
    _counted("chain m", order, 0)
    _positive("chain alpha", alpha)
    if symbols**order > MOST_STATES:
        raise SourceError(f"chain: {symbols}^{order} contexts; at most {MOST_STATES}")
    rng = _rng("chain", symbols, order, seed)
    rows = rng.dirichlet(np.full(symbols, alpha), size=symbols**order)
    return chain(rows, f"chain:{symbols}:{order}:{alpha:g}:{seed}")


def _by_edges(name: str, symbols: int, edges: list[tuple[int, int, int, float]]) -> Source:
    """A source of (state, symbol, next state, probability)."""
    states = 1 + max(edge[0] for edge in edges)
    found = np.zeros((symbols, states, states))
    for state, symbol, after, probability in edges:
        found[symbol, state, after] += probability
    return Source(name, found)


def z1r() -> Source:
    """0, then 1, then a fair bit, for ever; h = ln 2 / 3."""
    return _by_edges("z1r", 2, [(0, 0, 1, 1), (1, 1, 2, 1), (2, 0, 0, 0.5), (2, 1, 0, 0.5)])


def golden() -> Source:
    """The golden mean process: no two zeros in a row; h = 2/3 ln 2."""
    return _by_edges("golden", 2, [(0, 1, 0, 0.5), (0, 0, 1, 0.5), (1, 1, 0, 1)])


def even() -> Source:
    """The even process: ones come in runs of even length; h = 2/3 ln 2."""
    return _by_edges("even", 2, [(0, 0, 0, 0.5), (0, 1, 1, 0.5), (1, 1, 0, 1)])


def rrxor() -> Source:
    """Two fair bits, then their exclusive or; h = 2/3 ln 2."""
    edges = [(0, bit, 1 + bit, 0.5) for bit in (0, 1)]
    edges += [(1 + one, bit, 3 + (one ^ bit), 0.5) for one in (0, 1) for bit in (0, 1)]
    edges += [(3 + bit, bit, 0, 1.0) for bit in (0, 1)]
    return _by_edges("rrxor", 2, edges)


def random_hmm(symbols: int, states: int, seed: int) -> Source:
    """A hidden Markov source with P(x, s' | s) drawn from a flat Dirichlet: no state is certain."""
    _counted("hmm V", symbols, 2)
    _counted("hmm S", states, 1)
    drawn = _rng("hmm", symbols, states, seed).dirichlet(np.ones(symbols * states), size=states)
    found = drawn.reshape(states, symbols, states).transpose(1, 0, 2)
    return Source(f"hmm:{symbols}:{states}:{seed}", found)


def random_unifilar(symbols: int, states: int, seed: int) -> Source:
    """A unifilar source: state and symbol tell the next state; rows are flat Dirichlet."""
    _counted("unifilar V", symbols, 2)
    _counted("unifilar S", states, 1)
    rng = _rng("unifilar", symbols, states, seed)
    name = f"unifilar:{symbols}:{states}:{seed}"
    for _ in range(1000):  # most draws are irreducible
        rows = rng.dirichlet(np.ones(symbols), size=states)
        after = rng.integers(states, size=(states, symbols))
        found = np.zeros((symbols, states, states))
        for state in range(states):
            found[np.arange(symbols), state, after[state]] = rows[state]
        if reachable(found.sum(0) > 0).all():
            return Source(name, found)
    raise SourceError(f"{name}: no irreducible draw; take fewer states or more symbols")


def _log(value: int, base: int) -> int:
    return round(math.log(value) / math.log(base))


def _rng(*key: str | int) -> np.random.Generator:
    words = [
        word if isinstance(word, int) else int.from_bytes(word.encode(), "big") for word in key
    ]
    return np.random.default_rng(words)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise SourceError(f"{name}: {value:g}; must be {low:g} to {high:g}")


def _counted(name: str, value: int, least: int) -> None:
    if value < least:
        raise SourceError(f"{name}: {value}; must be >= {least}")


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise SourceError(f"{name}: {value:g}; must be > 0")
