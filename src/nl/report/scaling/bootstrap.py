"""Hierarchical paired cluster bootstrap: seeds within a subset, documents within a component.

A draw of documents is one draw for all runs, so that what is hard for all cancels in differences.
Three things keep intervals honest with few seeds. Weights are rescaled by sqrt(n / (n - 1)) about
their mean (Rao and Wu, 1988): with three seeds the plain bootstrap finds two thirds of their
variance. What a run does on a document (their interaction) is found three times by resampling both
(Owen, 2007), so that draws of seeds alone and of documents alone are added, and what both hold is
taken off. Intervals are percentile and BCa (Efron, 1987), stretched by Student's quantile over the
normal one at Satterthwaite's degrees of freedom. Floor 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

import numpy as np

from nl.config import require
from nl.report.scaling.documents import Subset, Table
from nl.report.scaling.losses import Floats
from nl.run.student import NORMAL, t_95

REPEATS = 2000
"""Draws."""
LEAST_SEEDS = 3
"""With fewer runs per subset an interval is of documents alone."""
CHUNK = 4_000_000
"""Numbers per array that are held at once."""
Scope = Literal["seeds and documents", "documents"]


@dataclass(frozen=True)
class Draws:
    """Weights of B draws.

    Attributes:
        seeds: (B, runs), adding to 1 within a subset.
        documents: per component (B, documents).
        components: (B, components), of means over components.
    """

    seeds: Floats
    documents: tuple[Floats, ...]
    components: Floats

    def part(self, rows: slice) -> Draws:
        """Some of the draws."""
        documents = tuple(one[rows] for one in self.documents)
        return Draws(self.seeds[rows], documents, self.components[rows])


@dataclass(frozen=True)
class Cells:
    """XE of every training on every component, of B draws.

    Attributes:
        values: (B, subsets, components, columns).
        subsets: what was trained on.
        weights: (B, components), of means over components.
    """

    values: Floats
    subsets: tuple[Subset, ...]
    weights: Floats


Statistic = Callable[[Cells], Floats]
"""Cells of B draws to (B, numbers)."""


@dataclass(frozen=True)
class Estimate:
    """Numbers with 95 % intervals; every array is (numbers,).

    Attributes:
        value: on the data as they are.
        low, high: percentile interval.
        bca_low, bca_high: BCa interval; nan where it was not asked for.
        se: standard deviation of the draws.
        freedom: Satterthwaite's degrees of freedom.
        shares: by source (``documents``, ``seeds``) its share of the variance.
        scope: what varied; ``documents``: fewer than three seeds, no statement beyond these runs.
        draws: (B, numbers).
    """

    value: Floats
    low: Floats
    high: Floats
    bca_low: Floats
    bca_high: Floats
    se: Floats
    freedom: Floats
    shares: dict[str, Floats]
    scope: Scope
    draws: Floats

    def clear(self, at: int = 0) -> bool:
        """Whether zero lies outside the percentile interval."""
        return bool(self.low[at] > 0 or self.high[at] < 0)


def scope_of(table: Table) -> Scope:
    """What may vary: seeds too where every subset has three runs or more."""
    return "seeds and documents" if table.least_seeds() >= LEAST_SEEDS else "documents"


def estimate(
    table: Table,
    statistic: Statistic,
    *,
    repeats: int = REPEATS,
    seed: int = 0,
    random_components: bool = False,
) -> Estimate:
    """Value, percentile and BCa intervals of some numbers.

    Args:
        random_components: resample components too; without it they are these and no others.
    """
    scope = scope_of(table)
    drawn = draw(table, repeats, np.random.default_rng(seed), scope, random_components)
    spread = spreads(table, drawn, statistic)
    groups = jackknife(table, statistic, scope, documents=True)
    stretch = stretches(freedom_of(spread, [one for _, one in groups]))
    low, high = _stretched(spread, stretch, *np.quantile(spread.draws, (0.025, 0.975), axis=0))
    bca_low, bca_high = _stretched(spread, stretch, *_bca(spread, groups))
    return _made(spread, groups, scope, (low, high, bca_low, bca_high))


def band(table: Table, statistic: Statistic, *, repeats: int = REPEATS, seed: int = 0) -> Estimate:
    """Intervals that hold for all numbers at once: max-t over the numbers (positions).

    ``low`` and ``high`` are the band; BCa ends are nan.
    """
    scope = scope_of(table)
    drawn = draw(table, repeats, np.random.default_rng(seed), scope)
    spread = spreads(table, drawn, statistic)
    safe = np.where(spread.se > 0, spread.se, 1.0)
    largest = (np.abs(spread.draws - spread.value) / safe).max(1)
    groups = jackknife(table, statistic, scope, documents=False)
    stretch = stretches(freedom_of(spread, [one for _, one in groups]))
    half = float(np.quantile(largest, 0.95)) * stretch * spread.se
    none = np.full_like(half, math.nan)
    ends = (spread.value - half, spread.value + half, none, none)
    return _made(spread, groups, scope, ends)


@dataclass(frozen=True)
class Spread:
    """Draws whose variance is that of the estimate.

    Attributes:
        value, se: (numbers,).
        draws: (B, numbers), about ``value``.
        seeds: (numbers,), share of the variance that seeds have.
    """

    value: Floats
    draws: Floats
    se: Floats
    seeds: Floats


def spreads(table: Table, drawn: Draws, statistic: Statistic) -> Spread:
    """Draws of seeds and of documents added, scaled to the variance without what both hold."""
    base = plain(table, len(drawn.seeds))
    value = evaluate(table, plain(table), statistic)[0]
    documents = evaluate(table, replace(drawn, seeds=base.seeds), statistic) - value
    if np.array_equal(drawn.seeds, base.seeds):
        se = documents.std(0, ddof=1)
        return Spread(value, value + documents, se, np.zeros_like(value))
    seeds = evaluate(table, replace(base, seeds=drawn.seeds), statistic) - value
    both = evaluate(table, drawn, statistic) - value
    found = [one.var(0, ddof=1) for one in (seeds, documents, both - seeds - documents)]
    tiny = np.finfo(float).tiny
    whole = np.maximum(found[0] + found[1] - found[2], np.maximum(found[0], found[1]))
    scale = np.sqrt(whole / np.maximum(found[0] + found[1], tiny))
    share = found[0] / np.maximum(found[0] + found[1], tiny)
    return Spread(value, value + scale * (seeds + documents), np.sqrt(whole), share)


def freedom_of(spread: Spread, groups: Sequence[Floats]) -> Floats:
    """Satterthwaite's degrees of freedom, a group having one less than its members."""
    below = np.zeros_like(spread.value)
    for left_out in groups:
        below += _variance(left_out) ** 2 / (len(left_out) - 1)
    found: Floats = spread.se**4 / np.maximum(below, np.finfo(float).tiny)
    return found


def _stretched(spread: Spread, stretch: Floats, *ends: Floats) -> tuple[Floats, Floats]:
    low, high = (spread.value + stretch * (end - spread.value) for end in ends)
    return low, high


def _made(
    spread: Spread,
    groups: Sequence[tuple[str, Floats]],
    scope: Scope,
    ends: tuple[Floats, Floats, Floats, Floats],
) -> Estimate:
    return Estimate(
        spread.value,
        *ends,
        se=spread.se,
        freedom=freedom_of(spread, [one for _, one in groups]),
        shares={"seeds": spread.seeds, "documents": 1 - spread.seeds},
        scope=scope,
        draws=spread.draws,
    )


def stretches(freedom: Floats) -> Floats:
    """Student's quantile over the normal one."""
    return np.array([t_95(max(1, int(min(one, 1e6)))) / NORMAL for one in freedom])


# Draws


def plain(table: Table, repeats: int = 1) -> Draws:
    """The data as they are."""
    seeds = np.zeros((repeats, len(table.runs)))
    for subset in table.subsets:
        rows = table.seeds(subset)
        seeds[:, rows] = 1 / len(rows)
    documents = tuple(np.ones((repeats, len(one))) for one in table.windows)
    size = len(table.components)
    return Draws(seeds, documents, np.full((repeats, size), 1 / size))


def draw(
    table: Table,
    repeats: int,
    rng: np.random.Generator,
    scope: Scope,
    random_components: bool = False,
) -> Draws:
    """Weights of resampled seeds and documents."""
    require(repeats >= 1, f"repeats: {repeats}; must be >= 1.")
    drawn = plain(table, repeats)
    for one in drawn.documents:
        one[:] = _weights(rng, repeats, one.shape[1])
    if scope == "seeds and documents":
        for subset in table.subsets:
            rows = table.seeds(subset)
            drawn.seeds[:, rows] = _weights(rng, repeats, len(rows)) / len(rows)
    if random_components:
        size = len(table.components)
        drawn.components[:] = rng.multinomial(size, np.full(size, 1 / size), repeats) / size
    return drawn


def _weights(rng: np.random.Generator, repeats: int, size: int) -> Floats:
    """Rescaled multiplicities, mean 1."""
    if size < 2:
        return np.ones((repeats, size))
    counts = rng.multinomial(size, np.full(size, 1 / size), repeats).astype(np.float64)
    found: Floats = 1 + np.float64(math.sqrt(size / (size - 1))) * (counts - 1)
    return found


# Evaluation


def evaluate(table: Table, draws: Draws, statistic: Statistic) -> Floats:
    """The statistic of every draw, (B, numbers)."""
    count = len(draws.seeds)
    each = max(1, len(table.runs) * len(table.components) * len(table.context))
    step = max(1, CHUNK // each)
    found = []
    for first in range(0, count, step):
        part = draws.part(slice(first, first + step))
        found.append(statistic(cells(table, part)))
    return np.concatenate(found)


def cells(table: Table, draws: Draws) -> Cells:
    """Weighted means over documents, then over the seeds of every subset."""
    count, columns = len(draws.seeds), len(table.context)
    values = np.empty((count, len(table.subsets), len(table.components), columns))
    groups = [table.seeds(subset) for subset in table.subsets]
    for code, (sums, windows) in enumerate(zip(table.sums, table.windows, strict=True)):
        weights = draws.documents[code]
        flat = sums.transpose(1, 0, 2).reshape(sums.shape[1], -1)
        means = (weights @ flat) / (weights @ windows)[:, None]
        means = means.reshape(count, len(table.runs), columns)
        for place, rows in enumerate(groups):
            values[:, place, code] = np.einsum("br,brp->bp", draws.seeds[:, rows], means[:, rows])
    return Cells(values, table.subsets, draws.components)


# Influence


def jackknife(
    table: Table, statistic: Statistic, scope: Scope, *, documents: bool
) -> list[tuple[str, Floats]]:
    """Per group (seeds of a subset, documents of a component) the numbers without each member.

    Returns:
        (``seeds`` or ``documents``, (members, numbers)) per group of two members or more.
    """
    found = []
    for kind, draws in _left_out(table, scope, documents):
        found.append((kind, evaluate(table, draws, statistic)))
    return found


def _left_out(table: Table, scope: Scope, documents: bool) -> Iterator[tuple[str, Draws]]:
    if scope == "seeds and documents":
        for subset in table.subsets:
            rows = table.seeds(subset)
            draws = plain(table, len(rows))
            draws.seeds[:, rows] = (1 - np.eye(len(rows))) / (len(rows) - 1)
            yield "seeds", draws
    if not documents:
        return
    for code, windows in enumerate(table.windows):
        draws = plain(table, len(windows))
        draws.documents[code][:] = 1 - np.eye(len(windows))
        yield "documents", draws


def _variance(left_out: Floats) -> Floats:
    """The jackknife's variance of a group."""
    size = len(left_out)
    found: Floats = ((left_out - left_out.mean(0)) ** 2).sum(0) * (size - 1) / size
    return found


def _bca(spread: Spread, groups: Sequence[tuple[str, Floats]]) -> Floats:
    """Ends (2, numbers) of the BCa interval; the acceleration adds over groups."""
    normal = NormalDist()
    above, below = np.zeros_like(spread.value), np.zeros_like(spread.value)
    for _, left_out in groups:
        size = len(left_out)
        influence = (size - 1) / size * (left_out.mean(0) - left_out)  # of the mean of the group
        above += (influence**3).sum(0)
        below += (influence**2).sum(0)
    ends = np.empty((2, len(spread.value)))
    for n, one in enumerate(spread.value):
        column = spread.draws[:, n]
        share = float(((column < one) + 0.5 * (column == one)).mean())
        bias = normal.inv_cdf(min(max(share, 1e-6), 1 - 1e-6))
        speed = above[n] / (6 * below[n] ** 1.5) if below[n] > 0 else 0.0
        for side, z in enumerate((-NORMAL, NORMAL)):
            moved = bias + (bias + z) / (1 - speed * (bias + z))
            ends[side, n] = np.quantile(column, normal.cdf(moved))
    return ends
