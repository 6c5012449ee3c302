"""The part of reports/ergodic.md on real text: all subsets, transfer, the ensemble of experts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ergodic_read as read
import numpy as np
import study
from ergodic_read import Run, Sweep, told
from ergodic_synthetic import DRAWS, fitted

from nl.report.figures import Figure, Line, standalone
from nl.report.heat import HeatMap, HeatMaps, heat_csv, heat_svg
from nl.report.scaling import forms, positions
from nl.report.scaling.bootstrap import Estimate, band, estimate
from nl.report.scaling.documents import Table, fold
from nl.report.scaling.effects import (
    baselines,
    covered,
    difference,
    gain_weights,
    level,
    outside,
    permutation,
    run_levels,
    transfer,
)
from nl.report.scaling.ensemble import mixture_nll
from nl.report.scaling.losses import Floats, Losses
from nl.report.scaling.power import power

EARLY, LATE = (5, 14), (90, 99)
HEAD = (
    *("K", "subsets", "runs", "tokens seen", "tokens per component", "XE_in [CI]", "dXE [CI]"),
    *("XE_out [CI]", "ppl", "bits per byte", "G [CI]", "best form by AICc (weight)"),
    *("h of the power", "beta [CI]"),
)


def subsets_missing(sweep: Sweep) -> list[str]:
    """Subsets of the components of the files that no run was trained on."""
    losses = sweep.runs[0].losses["on"]
    known = {run.losses["on"].subset for run in sweep.runs}
    codes = sorted({code for subset in known for code in subset})
    every = [one for k in range(1, len(codes) + 1) for one in itertools.combinations(codes, k)]
    return ["+".join(losses.components[c] for c in one) for one in every if one not in known]


def rows(sweep: Sweep, block: str) -> list[list[str]]:
    """The table of section 1.7: one line per K."""
    runs = sweep.of(block)
    whole = read.table(runs)
    mine = whole.mean()
    found = []
    for k in sorted({run.k for run in runs}):
        some = [run for run in runs if run.k == k]
        xe = estimate(mine, level(k), repeats=DRAWS)
        apart = "0"
        if k > 1:
            known = bool(baselines(mine.subsets, k))
            apart = told(estimate(mine, difference(k), repeats=DRAWS)) if known else "-"
        out = "-"
        if any(len(one) == k and len(one) < len(mine.components) for one in mine.subsets):
            out = told(estimate(mine, outside(k), repeats=DRAWS))
        gain = "-"
        if whole.context[-1] >= LATE[1]:
            won = gain_weights(list(whole.context), EARLY, LATE)
            gain = told(estimate(whole.over(won), level(k), repeats=DRAWS))
        found.append(
            [
                *(
                    str(k),
                    str(len({run.losses["on"].subset for run in some})),
                    read.seeds_of(xe, some),
                ),
                *(f"{some[0].tokens:,}", f"{some[0].tokens // k:,}", told(xe), apart, out),
                *(f"{math.exp(xe.value[0]):.1f}", bits(mine, some, k), gain),
                *fitted(whole, band(whole, level(k), repeats=DRAWS), first=4),
            ]
        )
    return found


def bits(mine: Table, runs: Sequence[Run], k: int) -> str:
    """Bits per byte, the mean over components of those in training."""
    losses = runs[0].losses["on"]
    if "bytes" not in losses.counted:
        return "-"
    size = losses.counted["bytes"]
    found = []
    for code in covered(mine.subsets, k):
        rows_of = [n for n, (one, _) in enumerate(mine.runs) if len(one) == k and code in one]
        here = losses.component == code
        nats = float(mine.sums[code][rows_of, :, 0].sum(1).mean()) * losses.nll.shape[1]
        found.append(nats / math.log(2) / float(size[here].sum()))
    return f"{np.mean(found):.3f}"


def transfer_map(sweep: Sweep, page: Path, block: str) -> str:
    """XE of every run of one component on every component, with intervals over documents."""
    mine = read.table(sweep.of(block)).mean()
    alone = covered(mine.subsets, 1)
    found = estimate(mine, transfer, repeats=DRAWS)
    shape = (len(alone), len(alone))
    value, low, high = (one.reshape(shape) for one in (found.value, found.low, found.high))
    names = [mine.components[code] for code in alone]
    cells = [
        [(float(low[r, c]), float(high[r, c])) for c in range(shape[1])] for r in range(shape[0])
    ]
    counts = [[int(mine.windows[code].sum()) for code in alone]] * len(alone)
    columns = [name.replace("multiprocessing", "multi-\nprocessing") for name in names]
    grid = HeatMap("", names, columns, [[float(v) for v in row] for row in value], cells, counts)
    ends = (math.floor(value.min() * 10) / 10, math.ceil(value.max() * 10) / 10)
    figure = HeatMaps("ergodic_transfer", [grid], "trained on", "scored on", "XE", *ends)
    (page.parent / "ergodic_transfer.csv").write_text(heat_csv(figure))
    (page.parent / "ergodic_transfer.svg").write_text(standalone(heat_svg(figure)))
    return "![Nats per token of one component's model on every component](ergodic_transfer.svg)"


def curves(sweep: Sweep, page: Path, block: str) -> list[str]:
    """XE by position for every K, and its difference from K = 1."""
    whole = read.table(sweep.of(block))
    points = positions.bins(list(whole.context), ratio=1.2)
    mine = whole.over(points.members.T)
    x = [float(one) for one in points.x]
    ks = sorted({len(one) for one in mine.subsets})
    lines, gaps = [], []
    for colour, k in enumerate(ks):
        found = band(mine, level(k), repeats=DRAWS)
        wide = k in (ks[0], ks[-1])
        ends: dict[str, Any] = {"low": list(found.low), "high": list(found.high)} if wide else {}
        lines.append(Line(f"K = {k}", x, list(found.value), colour=colour, **ends))
        if k in (ks[1:2] + ks[-1:]) and baselines(mine.subsets, k):
            apart = band(mine, difference(k), repeats=DRAWS)
            ends = {"low": list(apart.low), "high": list(apart.high)}
            gaps.append(Line(f"K = {k}", x, list(apart.value), colour=colour, **ends))
    label = "tokens of context (bins beyond 16; bands of the first and last K)"
    title = "nats per token on components in training"
    shown = [Figure("ergodic_real_xe", title, lines, x_label=label, log="x", wide=True)]
    if gaps:
        title = "XE(K) - XE(1) by position, paired by component and document"
        label = "tokens of context (bins beyond 16)"
        shown.append(Figure("ergodic_real_dxe", title, gaps, x_label=label, log="x", wide=True))
    return [study.save_figure(page, one) for one in shown]


def experts(runs: Sequence[Run]) -> dict[int, Floats]:
    """Losses of the runs of one component, of the first seed that there is."""
    found: dict[int, Floats] = {}
    for run in sorted(runs, key=lambda one: one.seed):
        if run.k == 1:
            found.setdefault(run.losses["on"].subset[0], run.losses["on"].nll)
    return found


@dataclass(frozen=True)
class Ensemble:
    """The Bayes ensemble of K experts beside the run on all K.

    Attributes:
        k, runs: components, and the runs that were compared.
        level: XE of the ensemble.
        price: nats of a window that it loses against the right expert.
        shared: XE of the run minus that of the ensemble.
    """

    k: int
    runs: int
    level: Estimate
    price: Estimate
    shared: Estimate


def ensembles(runs: Sequence[Run]) -> list[Ensemble]:
    """What not knowing the component costs, and what sharing one network, for every K."""
    alone = experts(runs)
    found = []
    for k in sorted({run.k for run in runs} - {1}):
        some = [run for run in runs if run.k == k and set(run.losses["on"].subset) <= set(alone)]
        if not some:
            continue
        price, shared, levels = [], [], []
        for run in some:
            losses = run.losses["on"]
            codes = losses.subset
            mixed = mixture_nll(np.stack([alone[code] for code in codes]))
            own = np.full_like(mixed, np.nan)
            for code in codes:
                mine = losses.component == code
                own[mine] = alone[code][mine]
            price.append(replace(losses, nll=(mixed - own) * mixed.shape[1]))
            shared.append(replace(losses, nll=losses.nll - mixed))
            levels.append(replace(losses, nll=mixed))
        parts = [of_level(one, k) for one in (levels, price, shared)]
        found.append(Ensemble(k, len(some), *parts))
    return found


def ensemble_row(one: Ensemble) -> list[str]:
    """As a line of the table."""
    cells = [told(one.level), told(one.price), f"{math.log(one.k):.3f}", told(one.shared)]
    return [str(one.k), str(one.runs), *cells]


def ensemble_claims(found: Sequence[Ensemble]) -> list[str]:
    """What the intervals say, over documents."""
    costly = [str(one.k) for one in found if one.shared.low[0] > 0]
    helpful = [str(one.k) for one in found if one.price.high[0] < 0]
    paid = [str(one.k) for one in found if one.price.low[0] > 0]
    lines = []
    if costly:
        lines.append(
            f"At K = {', '.join(costly)} one network on 1/K of each text loses more than the "
            "ensemble of its experts."
        )
    if paid:
        lines.append(f"Not knowing the component costs something at K = {', '.join(paid)}.")
    if helpful:
        lines.append(
            f"At K = {', '.join(helpful)} the ensemble is better than the right expert alone: "
            "experts of so little text are no exact sources, and help one another."
        )
    return [" ".join(lines), ""] if lines else []


def of_level(losses: Sequence[Losses], k: int) -> Estimate:
    """Mean over components in training."""
    return estimate(fold(losses).mean(), level(k), repeats=DRAWS)


def trend(sweep: Sweep, block: str) -> tuple[list[list[str]], str]:
    """Forms of K over runs, and the sentence on the test of no trend."""
    ks, values = run_levels(read.table(sweep.of(block)).mean())
    if len(set(ks)) < 3:
        return [], "Fewer than three values of K that share components: no trend is fitted."
    slope, p = permutation(ks, values)
    table = []
    for one in forms.compare(ks, values):
        parameters = [f"{v:.4f}" if not math.isnan(v) else "-" for v in (one.a, one.b, one.g)]
        left = "-" if math.isnan(one.left_out) else f"{one.left_out:.4f}"
        table.append([one.form, *parameters, f"{one.weight:.2f}", left])
    return table, (
        f"Slope of the level of a run (components taken out) over ln K: {slope:.4f} nats per "
        f"token; p = {p:.4f} (10,000 shufflings of K among runs: subsets, not seeds, are its unit)."
    )


def power_row(runs: Sequence[Run]) -> list[str] | None:
    """Windows that would show ln K nats in a window."""
    alone = experts(runs)
    last = max(runs, key=lambda run: run.k)
    codes = [code for code in last.losses["on"].subset if code in alone]
    if last.k == 1 or not codes:
        return None
    full = last.losses["on"].part(codes)
    own = np.empty_like(full.nll)
    for code in codes:
        own[full.component == code] = alone[code][last.losses["on"].component == code]
    needed = power(replace(full, nll=own), full, last.k)
    return [
        *(str(last.k), str(len(full.nll)), f"{needed.effect:.4f}", f"{needed.deviation:.3f}"),
        *(f"{needed.paired_deviation:.3f}", f"{needed.unpaired:,}", f"{needed.paired:,}"),
    ]


def control(sweep: Sweep, block: str) -> list[str]:
    """dXE of runs whose documents have permuted labels, with what it says."""
    mine = read.table(sweep.of(block)).mean()
    lines, off = [], []
    for k in sorted({run.k for run in sweep.of(block)} - {1}):
        if not baselines(mine.subsets, k):
            continue
        apart = estimate(mine, difference(k), repeats=DRAWS)
        runs = [run for run in sweep.of(block) if run.k == k]
        lines.append([str(k), read.seeds_of(apart, runs), told(apart), read.sign_of(apart)])
        off += [] if read.sign_of(apart) == "undecided" else [str(k)]
    if not lines:
        return ["No K has runs of its components alone.", ""]
    seed = sweep.runs[0].losses["on"].more["label_seed"]
    verdict = f"K = {', '.join(off)} is not what no effect gives" if off else "every one meets zero"
    return [
        f"`stream.labels=permuted`, `stream.label_seed={seed}`: documents keep their text and get "
        "the labels of others, in training and here, so that components differ in nothing.",
        *study.table(["K", "runs", "dXE [CI]", "of zero"], lines),
        f"Of these intervals {verdict}. They are over documents alone: another permutation or seed "
        "may fall elsewhere. With the labels of the data the same sets rise or fall as the table "
        "of the study says; what these lack of that is of components.",
        "",
    ]
