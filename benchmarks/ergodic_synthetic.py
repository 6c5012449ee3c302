"""The synthetic part of reports/ergodic.md: XE and divergence from exact floors, K, adaptation."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ergodic_read as read
import numpy as np
import study
from ergodic_floor import floor_of, price
from ergodic_read import Sweep, told

from nl.report.dots import Dot, Dots
from nl.report.figures import Figure, Line
from nl.report.scaling import forms, positions
from nl.report.scaling.bootstrap import Estimate, band, estimate
from nl.report.scaling.documents import Table
from nl.report.scaling.effects import (
    difference,
    gain_weights,
    level,
    permutation,
    run_levels,
    slice_weights,
)
from nl.report.scaling.losses import Floats
from nl.report.scaling.power import power

DRAWS = 1000
"""Of bands and of what is shown in tables."""
EARLY = (1, 3)
"""Contexts after which little can be known of the component."""
TAIL = 8
"""Last positions: what is left of not knowing the component, and the end of the gain."""
LEAST = 1e-4
"""Bands on logarithmic axes are cut here."""
BANDS = 4
"""Blocks of one figure that have bands: more would hide one another (tables have all intervals)."""
SHARE = 0.25
"""A reader has adapted when at most this share of the largest price per symbol is left."""


@functools.cache
def tables(sweep: Sweep, block: str, name: str, way: str = "on") -> Table:
    """One column of all runs of a block."""
    return read.table(sweep.of(block), name, way)


def sizes(sweep: Sweep, block: str) -> list[int]:
    """Values of K with runs."""
    return sorted({run.k for run in sweep.of(block)})


@functools.cache
def curve(sweep: Sweep, block: str, name: str, k: int, way: str = "on") -> Estimate:
    """By position, with a band that holds for all of them."""
    return band(tables(sweep, block, name, way), level(k), repeats=DRAWS)


@functools.cache
def total(sweep: Sweep, block: str, name: str, k: int, way: str = "on") -> Estimate:
    """Sum over the positions of a window."""
    mine = tables(sweep, block, name, way)
    return estimate(mine.over(np.ones((len(mine.context), 1))), level(k), repeats=DRAWS)


# Figures


def by_position(sweep: Sweep, page: Path, block: str) -> list[str]:
    """XE_t and KL_t of one block, all K, over the exact floors."""
    context = tables(sweep, block, "xe").context
    x = [float(one + 1) for one in context]
    xe, kl = [], []
    for colour, k in enumerate(sizes(sweep, block)):
        mine = curve(sweep, block, "xe", k)
        exact = mine.value - curve(sweep, block, "bayes_kl", k).value
        ends: dict[str, Any] = {"low": list(mine.low), "high": list(mine.high)}
        xe.append(Line(f"K = {k}", x, list(mine.value), colour=colour, **ends))
        xe.append(Line(f"floor, K = {k}", x, list(exact), colour=colour, faint=True))
        found = curve(sweep, block, "bayes_kl", k)
        ends = {"low": list(np.maximum(found.low, LEAST)), "high": list(found.high)}
        kl.append(Line(f"K = {k}", x, list(found.value), colour=colour, **ends))
    label = "predicted symbol of the window"
    titles = (
        f"{block}: nats per symbol; thin: the exact floor",
        f"{block}: nats beyond the exact predictor, KL(P, q)",
    )
    figures = (
        Figure(f"ergodic_xe_{block}", titles[0], xe, x_label=label, log="x", wide=True),
        Figure(f"ergodic_kl_{block}", titles[1], kl, x_label=label, log="xy", wide=True),
    )
    return [study.save_figure(page, one) for one in figures]


def prices(sweep: Sweep, page: Path, k: int) -> str:
    """What not knowing the component costs by position: blocks, exact predictor, bigram reader."""
    lines = []
    blocks = [block for block in sweep.blocks if k in sizes(sweep, block)]
    x = [float(one + 1) for one in tables(sweep, blocks[0], "xe").context]
    for colour, block in enumerate(blocks):
        found = curve(sweep, block, "own_kl", k)
        ends: dict[str, Any] = {"low": list(np.maximum(found.low, LEAST)), "high": list(found.high)}
        bands: dict[str, Any] = ends if len(blocks) <= BANDS else {}
        lines.append(Line(block, x, list(found.value), colour=colour, **bands))
    exact = list(np.maximum(price(sweep, k), LEAST))
    lines.append(Line("exact predictor", x, exact, ink=True))
    figure = Figure(
        f"ergodic_price_k{k}",
        f"K = {k}: nats per symbol beyond one who knows the component",
        lines,
        levels={"reads one symbol": bigram(sweep, k)},
        x_label="predicted symbol of the window",
        log="xy",
        wide=True,
    )
    return study.save_figure(page, figure)


def bigram(sweep: Sweep, k: int) -> float:
    """Price per symbol of the best reader of a single symbol, who learns nothing in context.

    The sources are chains of order 1 in labellings of one another, so that the entropy of the
    second symbol given the first, by enumeration, is that reader's loss at every later symbol, and
    the same at K = 1 the loss of one who knows the component.
    """
    entropy = floor_of(sweep, k).page["exact"]["entropy"]
    own = floor_of(sweep, 1).page["exact"]["entropy"]
    return float(entropy[1] - own[1])


def differences(sweep: Sweep, page: Path) -> str:
    """dXE(K), paired, of all blocks, with the exact predictor's and the bound of ln K."""
    lines = []
    length = len(tables(sweep, sweep.blocks[0], "xe").context)
    for colour, block in enumerate(sweep.blocks):
        ks = sizes(sweep, block)
        found = [paired(sweep, block, "own_kl", k) for k in ks if k > 1]
        if 1 not in ks or not found:
            continue
        values = [
            [0.0, *(getattr(one, end)[0] for one in found)] for end in ("value", "low", "high")
        ]
        bands: dict[str, Any] = (
            {"low": values[1], "high": values[2]} if len(sweep.blocks) <= BANDS else {}
        )
        lines.append(Line(block, ks_of(ks), values[0], colour=colour, **bands))
    ks = sorted({run.k for run in sweep.runs})
    exact = [float(price(sweep, k, alone(sweep)).mean()) for k in ks]
    bound = [math.log(k) / length for k in ks]
    lines.append(Line("exact predictor", ks_of(ks), exact, ink=True))
    lines.append(Line("ln K / symbols", ks_of(ks), bound, ink=True, colour=4))
    figure = Figure(
        "ergodic_dxe",
        "XE(K) - XE(1) on components with runs of their own, nats per symbol",
        lines,
        x_label="components K",
        wide=True,
    )
    return study.save_figure(page, figure)


def beyond(sweep: Sweep, page: Path) -> str:
    """dXE at the largest K of all blocks, minus what an exact predictor has to lose."""
    k, drawn = max(run.k for run in sweep.runs), []
    exact = float(price(sweep, k, alone(sweep)).mean())
    for block in sweep.blocks:
        mine = sizes(sweep, block)
        if k in mine and 1 in mine and k > 1:
            found = paired(sweep, block, "own_kl", k)
            value, low, high = found.value[0], found.low[0], found.high[0]
            drawn.append(Dot(block, value - exact, span=(value - low, high - value)))
    title = f"XE({k}) - XE(1) beyond the exact predictor's, nats per symbol"
    return study.save_figure(page, Dots("ergodic_beyond", title, drawn, "nats per symbol"))


def alone(sweep: Sweep) -> tuple[str, ...]:
    """Components that have a run of their own."""
    runs = [run.losses["on"] for run in sweep.runs]
    return tuple(dict.fromkeys(one.trained_on[0] for one in runs if len(one.trained_on) == 1))


def ks_of(ks: Sequence[int]) -> list[float]:
    """As the axis has them."""
    return [float(k) for k in ks]


@functools.cache
def paired(sweep: Sweep, block: str, name: str, k: int, way: str = "on") -> Estimate:
    """dXE(K), on the components that have a run of their own."""
    return estimate(tables(sweep, block, name, way).mean(), difference(k), repeats=DRAWS)


# Tables


def rows(sweep: Sweep, block: str) -> list[list[str]]:
    """The table of section 1.7: one line per K."""
    found = []
    mine = tables(sweep, block, "xe")
    last = int(mine.context[-1])
    won = gain_weights(list(mine.context), EARLY, (last - TAIL + 1, last))
    for k in sizes(sweep, block):
        runs = [run for run in sweep.of(block) if run.k == k]
        xe = estimate(mine.mean(), level(k), repeats=DRAWS)
        gain = estimate(mine.over(won), level(k), repeats=DRAWS)
        kl = estimate(tables(sweep, block, "bayes_kl").mean(), level(k), repeats=DRAWS)
        apart = told(paired(sweep, block, "own_kl", k)) if k > 1 else "0"
        found.append(
            [
                *(block, str(k), str(len({run.losses["on"].subset for run in runs}))),
                *(read.seeds_of(xe, runs), f"{runs[0].tokens:,}", f"{runs[0].tokens // k:,}"),
                *(told(xe), told(kl, digits=5), apart),
                *(f"{math.exp(xe.value[0]):.3f}", f"{xe.value[0] / math.log(2):.3f}", told(gain)),
                *fitted(mine, curve(sweep, block, "xe", k)),
            ]
        )
    return found


HEAD = (
    *("block", "K", "subsets", "runs", "tokens seen", "tokens per component", "XE_in [CI]"),
    *("beyond the floor, KL [CI]", "dXE [CI]", "ppl", "bits per symbol", "G [CI]"),
    *("best form by AICc (weight)", "h of the power", "beta [CI]"),
)


def fitted(mine: Table, found: Estimate, first: int = 1) -> list[str]:
    """(best form and weight, h, beta with its interval) of XE over contexts from ``first`` on."""
    points = positions.bins(list(mine.context), first=first)
    y, draws = points.members @ found.value, found.draws @ points.members.T
    se = np.maximum(draws.std(0, ddof=1), 1e-9)
    tried = [positions.fit(points.x, y, se, form) for form in positions.FORMS]
    weights = positions.akaike_weights([one.aicc for one in tried])
    best = max(range(len(tried)), key=lambda n: weights[n])
    text = f"{tried[best].form} ({weights[best]:.2f})"
    chosen = tried[positions.FORMS.index("power")]
    if tried[best].form == "constant" or chosen.a <= 0:
        return [text, "-", "-"]
    _, betas = positions.fit_many(points.x, draws[:400], se)
    edge = f" (at an end: {', '.join(chosen.at_edge)})" if chosen.at_edge else ""
    low, high = np.quantile(betas, (0.025, 0.975))
    if low <= 1.1 * positions.BETA[0] and high >= 0.9 * positions.BETA[1]:
        return [text, "-", "not told: any exponent will do"]
    edge += f" (range ends at {positions.BETA[1]:g})" if high > 0.97 * positions.BETA[1] else ""
    return [text, f"{chosen.h:.4f}", read.span(chosen.beta, low, high, 2) + edge]


def trend_rows(sweep: Sweep) -> list[list[str]]:
    """Forms of K and the test of no trend, per block; levels of runs are nats per symbol."""
    found = []
    for block in sweep.blocks:
        ks, values = run_levels(tables(sweep, block, "own_kl").mean())
        if len(set(ks)) < 3:
            continue  # every form of two parameters is exact on two values
        slope, p = permutation(ks, values)
        tried = forms.compare(ks, values)
        cells = [
            f"{one.weight:.2f}" + ("" if math.isnan(one.left_out) else f", {one.left_out:.4f}")
            for one in tried
        ]
        found.append([block, str(len(ks)), f"{slope:.4f}", f"{p:.4f}", *cells])
    return found


def adaptation_rows(sweep: Sweep) -> list[list[str]]:
    """Who finds out which component a window is of, how far and after how many symbols."""
    found = []
    for k in sorted({run.k for run in sweep.runs} - {1}):
        for block in sweep.blocks:
            if k in sizes(sweep, block):
                found.append(adaptation(sweep, block, k))
        exact = price(sweep, k)
        context = floor_of(sweep, k).losses["on"].context
        late = 1 - float(exact[-TAIL:].mean()) / bigram(sweep, k)
        after = settled(exact[None], SHARE * float(exact.max()), context)[0]
        found.append(
            [str(k), "exact predictor", f"{exact.sum():.3f}", "0", f"{late:.3f}", text_of(after)]
        )
    return found


def adaptation(sweep: Sweep, block: str, k: int) -> list[str]:
    """One line: price of a window, what of it is beyond the exact one, late share, symbols."""
    mine = tables(sweep, block, "own_kl")
    tail = slice_weights(list(mine.context), int(mine.context[-TAIL]), int(mine.context[-1]))
    late = estimate(mine.over(tail[:, None]), level(k), repeats=DRAWS)
    whole = bigram(sweep, k)
    shares = [1 - one / whole for one in (late.value[0], late.high[0], late.low[0])]
    share = read.span(shares[0], shares[1], shares[2], 3)
    found = curve(sweep, block, "own_kl", k)
    threshold = SHARE * float(price(sweep, k).max())
    after = settled(found.value[None], threshold, mine.context)[0]
    drawn = np.sort(settled(found.draws, threshold, mine.context))
    ends = drawn[[round(p * (len(drawn) - 1)) for p in (0.025, 0.975)]]
    return [
        *(str(k), block, told(total(sweep, block, "own_kl", k), digits=3)),
        *(told(total(sweep, block, "bayes_kl", k), digits=3), share),
        f"{text_of(after)} [{text_of(ends[0])}, {text_of(ends[1])}]",
    ]


def adaptation_claims(sweep: Sweep) -> list[str]:
    """Who is nearest to the exact predictor at the largest K, where intervals say so."""
    k = max(run.k for run in sweep.runs)
    blocks = [block for block in sweep.blocks if k in sizes(sweep, block)]
    if k == 1 or not blocks:
        return []
    found = {block: total(sweep, block, "bayes_kl", k) for block in blocks}
    order = sorted(blocks, key=lambda block: found[block].value[0])
    best = found[order[0]]
    near = [block for block in order[1:] if found[block].low[0] <= best.high[0]]
    meets = f"the intervals of {', '.join(near)} meet its own" if near else "no other's meets it"
    return [
        f"At K = {k}, {order[0]} is nearest to the exact predictor, {told(best, digits=3)} nats of "
        f"a window beyond it; {meets}.",
        "",
    ]


def settled(curves: Floats, threshold: float, context: np.ndarray[Any, Any]) -> Floats:
    """(B,) context from which on each curve (B, positions) stays at or below; inf: never."""
    above = curves > threshold
    places = np.where(above.any(1), above.shape[1] - above[:, ::-1].argmax(1), 0)
    known = np.append(np.asarray(context, dtype=float), math.inf)
    found: Floats = known[places]
    return found


def text_of(after: float) -> str:
    """Symbols, or that it does not happen within the window."""
    return "never" if math.isinf(after) else f"{after:.0f}"


def power_rows(sweep: Sweep) -> list[list[str]]:
    """Windows that would show ln K nats per window, by the spread of K = 1 and the largest K."""
    found = []
    for block in sweep.blocks:
        runs = {
            run.k: run for run in sweep.of(block) if run.seed == min(r.seed for r in sweep.runs)
        }
        k = max(runs)
        if 1 not in runs or k == 1:
            continue
        codes = runs[1].losses["on"].subset
        one, other = (runs[n].losses["on"].part(codes) for n in (1, k))
        needed = power(one, other, k)
        found.append(
            [
                *(block, str(k), str(len(one.nll)), f"{needed.effect:.4f}"),
                *(f"{needed.deviation:.3f}", f"{needed.paired_deviation:.3f}"),
                *(f"{needed.unpaired:,}", f"{needed.paired:,}"),
            ]
        )
    return found


def parameters_of(sweep: Sweep) -> str:
    """Parameters by block."""
    found = {run.block: run.parameters for run in sweep.runs}
    return ", ".join(f"{block} {count:,}" for block, count in found.items())
