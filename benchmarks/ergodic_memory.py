"""Memories on and off: windows of one component, and windows in which components change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ergodic_read as read
import numpy as np
import study
from ergodic_read import Run, Sweep, told

from nl.report.figures import Figure, Line
from nl.report.scaling.bootstrap import Estimate, band, estimate
from nl.report.scaling.effects import level
from nl.report.scaling.losses import Floats

DRAWS = 1000
LEAST = 1e-4
"""Bands on logarithmic axes are cut here."""
FEWEST = 50
"""Symbols so long after a change that are there at least; fewer are not shown."""
SINCE = 24
"""Symbols since a change that are told apart."""


def ways_of(sweep: Sweep, block: str) -> list[str]:
    """Ways of writing that a block has; one for those without memories."""
    runs = sweep.of(block)
    return [way for way in read.WAYS if all(way in run.losses for run in runs)]


def rows(sweep: Sweep, k: int, name: str) -> list[list[str]]:
    """Nats of a window by way of writing, and how much less they are with memories written."""
    found = []
    for block in sweep.blocks:
        runs = [run for run in sweep.of(block) if run.k == k]
        for way in ways_of(sweep, block) if runs else ():
            mine = read.table(runs, name, way)
            ones = np.ones((len(mine.context), 1))
            shown = estimate(mine.over(ones), level(mine_k(mine)), repeats=DRAWS)
            gap = "-" if way == "on" else told(worth(runs, name, way), digits=3)
            found.append([block, way, read.seeds_of(shown, runs), told(shown, digits=3), gap])
    return found


def worth(runs: Sequence[Run], name: str, way: str) -> Estimate:
    """Nats of a window that are lost where memories are not written."""
    apart = read.contrast(runs, name, way, "on")
    whole = apart.over(np.ones((len(apart.context), 1)))
    return estimate(whole, level(mine_k(whole)), repeats=DRAWS)


def claims(sweep: Sweep, k: int, name: str) -> list[str]:
    """Which blocks lose with frozen memories, where intervals say so."""
    sides: dict[str, list[str]] = {"above": [], "below": [], "undecided": []}
    for block in sweep.blocks:
        runs = [run for run in sweep.of(block) if run.k == k]
        if runs and "frozen" in ways_of(sweep, block):
            sides[read.sign_of(worth(runs, name, "frozen"))].append(block)
    words = {"above": "Worse with frozen memories", "below": "better", "undecided": "not decided"}
    text = "; ".join(f"{words[one]}: {', '.join(sides[one])}" for one in sides if sides[one])
    return [f"{text}.", ""] if text else []


def mine_k(table: object) -> int:
    """K of a table with runs of one size."""
    return len(table.subsets[0])  # type: ignore[attr-defined]


def by_position(sweep: Sweep, page: Path, k: int) -> list[str]:
    """KL_t of the blocks with memories, on and frozen."""
    shown = []
    for block in sweep.blocks:
        ways = ways_of(sweep, block)
        runs = [run for run in sweep.of(block) if run.k == k]
        if len(ways) < 2 or not runs:
            continue
        lines = []
        for colour, way in enumerate(ways):
            mine = read.table(runs, "bayes_kl", way)
            found = band(mine, level(mine_k(mine)), repeats=DRAWS)
            ends: dict[str, Any] = {
                "low": list(np.maximum(found.low, LEAST)),
                "high": list(found.high),
            }
            x = [float(one + 1) for one in mine.context]
            lines.append(Line(f"memories {way}", x, list(found.value), colour=colour, **ends))
        figure = Figure(
            f"ergodic_switching_{block}",
            f"{block}, switching: nats beyond the exact predictor",
            lines,
            x_label="predicted symbol of the window",
            log="xy",
            wide=True,
        )
        shown.append(study.save_figure(page, figure))
    return shown


def since_change(sweep: Sweep, page: Path) -> str:
    """KL by the symbols since a component changed, every block with memories on."""
    lines = []
    for colour, block in enumerate(sweep.blocks):
        value, low, high = after_change(sweep.of(block), "on")
        x = [float(n) for n in range(len(value))]
        ends: dict[str, Any] = {"low": list(low), "high": list(high)}
        lines.append(Line(block, x, list(value), colour=colour, **ends))
    figure = Figure(
        "ergodic_since_change",
        "Switching: nats beyond the exact predictor by symbols since a change",
        lines,
        x_label="symbols since the component changed",
        wide=True,
    )
    return study.save_figure(page, figure)


def after_change(runs: Sequence[Run], way: str) -> tuple[Floats, Floats, Floats]:
    """(mean, low, high) by symbols since a change; intervals of each point, seeds and windows."""
    since = distance(runs[0].losses[way].counted["component_at"])
    here = since[:, :, None] == np.arange(SINCE)
    here = here[:, :, : int((here.sum((0, 1)) >= FEWEST).sum())]
    counts = here.sum(1).astype(float)
    sums = np.stack([np.einsum("np,nps->ns", r.losses[way].exact["bayes_kl"], here) for r in runs])
    rng = np.random.default_rng(0)
    size = len(counts)
    windows = rng.multinomial(size, np.full(size, 1 / size), DRAWS).astype(float)
    seeds = rng.multinomial(len(runs), np.full(len(runs), 1 / len(runs)), DRAWS) / len(runs)
    means = np.einsum("bn,rns->brs", windows, sums) / (windows @ counts)[:, None]
    drawn = np.einsum("br,brs->bs", seeds, means)
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    return sums.mean(0).sum(0) / counts.sum(0), low, high


def distance(component: np.ndarray) -> np.ndarray:
    """(windows, positions) symbols since the component last changed; -1 before the first time."""
    found = np.full(component.shape, -1)
    for place in range(1, component.shape[1]):
        changed = component[:, place] != component[:, place - 1]
        before = found[:, place - 1]
        found[:, place] = np.where(changed, 0, np.where(before >= 0, before + 1, -1))
    return found
