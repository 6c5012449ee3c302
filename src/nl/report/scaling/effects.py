"""What is asked of the cells: XE by K, its difference from K = 1, gains, transfer. Floor 1.

XE_c(K) is the mean over the subsets of size K that hold c; XE(K) its mean over components, and
dXE(K) the mean of XE_c(K) - XE_c(1) over the components that have a run of their own, so that a
component is compared with itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nl.config import require
from nl.report.scaling.bootstrap import Cells, Statistic
from nl.report.scaling.documents import Subset, Table
from nl.report.scaling.losses import Floats


def sizes(table: Table) -> list[int]:
    """Values of K that have runs."""
    return sorted({len(subset) for subset in table.subsets})


def covered(subsets: Sequence[Subset], size: int) -> list[int]:
    """Components in some training of this size."""
    return sorted({code for subset in subsets if len(subset) == size for code in subset})


def baselines(subsets: Sequence[Subset], size: int) -> list[int]:
    """Components that have a run of their own and are in some training of this size."""
    alone = set(covered(subsets, 1))
    return [code for code in covered(subsets, size) if code in alone]


def within(cells: Cells, size: int, code: int) -> Floats:
    """XE_c(K), (B, columns)."""
    rows = [n for n, one in enumerate(cells.subsets) if len(one) == size and code in one]
    found: Floats = cells.values[:, rows, code].mean(1)
    return found


def weighted(cells: Cells, codes: Sequence[int], values: Floats) -> Floats:
    """Mean over components (B, codes, columns) with the weights of each draw."""
    weights = cells.weights[:, list(codes)]
    total = weights.sum(1, keepdims=True)
    equal = np.full_like(weights, 1 / len(codes))
    shares = np.divide(weights, total, out=equal, where=total > 0)
    found: Floats = np.einsum("bc,bcp->bp", shares, values)
    return found


def level(size: int) -> Statistic:
    """XE(K) over the components that are in some training of this size."""

    def statistic(cells: Cells) -> Floats:
        codes = covered(cells.subsets, size)
        return weighted(cells, codes, np.stack([within(cells, size, c) for c in codes], 1))

    return statistic


def difference(size: int, codes: Sequence[int] | None = None) -> Statistic:
    """dXE(K), over ``codes`` or all components that have a run of their own.

    Raises:
        ConfigError: there is none.
    """

    def statistic(cells: Cells) -> Floats:
        known = baselines(cells.subsets, size) if codes is None else list(codes)
        require(bool(known), f"K = {size}: no component of it has a run of its own.")
        parts = [within(cells, size, c) - within(cells, 1, c) for c in known]
        return weighted(cells, known, np.stack(parts, 1))

    return statistic


def outside(size: int) -> Statistic:
    """Mean XE on the components that were not in training."""

    def statistic(cells: Cells) -> Floats:
        count = cells.values.shape[2]
        parts = [
            cells.values[:, n, code]
            for n, one in enumerate(cells.subsets)
            if len(one) == size
            for code in range(count)
            if code not in one
        ]
        found: Floats = np.stack(parts, 1).mean(1)
        return found

    return statistic


def transfer(cells: Cells) -> Floats:
    """XE of the runs of one component on every component: (B, trained * scored), one column."""
    alone = covered(cells.subsets, 1)
    rows = [cells.subsets.index((code,)) for code in alone]
    found: Floats = cells.values[:, rows][:, :, alone, 0]
    return found.reshape(len(found), -1)


def one_cell(subset: Subset, code: int) -> Statistic:
    """XE of one training on one component."""

    def statistic(cells: Cells) -> Floats:
        found: Floats = cells.values[:, cells.subsets.index(subset), code]
        return found

    return statistic


def slice_weights(context: Sequence[int], first: int, last: int) -> Floats:
    """(positions,) of the mean over contexts from ``first`` to ``last``.

    Raises:
        ConfigError: there is no such position.
    """
    chosen = np.array([first <= one <= last for one in context])
    require(bool(chosen.any()), f"context: no position from {first} to {last}.")
    found: Floats = chosen / chosen.sum()
    return found


def gain_weights(context: Sequence[int], early: tuple[int, int], late: tuple[int, int]) -> Floats:
    """(positions, 1) of what is won in context: mean over ``early`` minus mean over ``late``."""
    parts = slice_weights(context, *early) - slice_weights(context, *late)
    return parts[:, None]


def run_levels(table: Table) -> tuple[list[int], list[float]]:
    """(K, level) of every run: what is left when components have been taken out.

    XE of run r on component c of its training is m_c + u_r by least squares; u_r is the level,
    zero on average at the smallest K. One column. Empty where runs do not share components enough
    to be compared.
    """
    means = [
        one[:, :, 0].sum(1) / n.sum() for one, n in zip(table.sums, table.windows, strict=True)
    ]
    runs, codes = len(table.runs), len(table.components)
    pairs = [(row, code) for row, (subset, _) in enumerate(table.runs) for code in subset]
    design = np.zeros((len(pairs), runs + codes))
    for place, (row, code) in enumerate(pairs):
        design[place, [row, runs + code]] = 1.0
    seen = len({code for _, code in pairs})
    y = np.array([means[code][row] for row, code in pairs])
    found, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    if rank < runs + seen - 1:
        return [], []
    ks = [len(subset) for subset, _ in table.runs]
    level = found[:runs]
    level = level - np.mean([one for one, k in zip(level, ks, strict=True) if k == min(ks)])
    return ks, [float(one) for one in level]


def permutation(
    ks: Sequence[int], values: Sequence[float], *, repeats: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Test of no trend: slope over ln K, and the two-sided share of shuffled K with one as steep.

    Values are levels of runs with components taken out (``run_levels``). K is shuffled among runs,
    not among the cells of a component: the losses of one run on several components share its luck,
    and shuffling them one by one finds a trend where there is none in a fifth of all cases.

    Raises:
        ConfigError: fewer than two values of K.
    """
    require(len(set(ks)) >= 2, f"K: {sorted(set(ks))}; a trend needs two values at least.")
    x = np.log(np.asarray(ks, dtype=float))
    y = np.asarray(values, dtype=float)
    x, y = x - x.mean(), y - y.mean()
    slope = float(x @ y / (x @ x))
    rng = np.random.default_rng(seed)
    shuffled = rng.permuted(np.broadcast_to(x, (repeats, len(x))), axis=1) @ y / (x @ x)
    as_steep = int((np.abs(shuffled) >= abs(slope) * (1 - 1e-12)).sum())
    return slope, (as_steep + 1) / (repeats + 1)
