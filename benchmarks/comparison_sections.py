"""Sections of the page of the learning comparison: position, time, learning while read."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from pathlib import Path

import comparison_dynamic as dynamic
import comparison_positions as positions
import study
from comparison_rows import BLOCKS, HEAD_PERIOD, HOPE, LONGER, LONGER_BLOCKS, REFERENCE
from comparison_runs import Found

from nl.report import figures
from nl.report.dots import Dot, Dots
from nl.report.figures import Figure


def better(differences: list[float]) -> str:
    """How many seeds are below zero, and whether the interval is."""
    mean, half = study.student(differences)
    wins = f"{sum(d < 0 for d in differences)} of {len(differences)}"
    if math.isnan(half):
        return f"{wins}, one seed"
    if abs(mean) <= half:
        return f"{wins}, not decided"
    return f"{wins}, {'better' if mean < 0 else 'worse'}"


def cpu_seconds(found: Found, label: str) -> str:
    """Median CPU time of a row's runs."""
    timed = [r.cpu_seconds for r in found.results(label).values()]
    median = study.median([seconds for seconds in timed if not math.isnan(seconds)])
    return "-" if median is None else f"{median:.0f}"


def positions_section(found: Found, page: Path) -> list[str]:
    """Where in a window a block wins."""
    pairs = [(block, REFERENCE) for block in BLOCKS[1:]]
    pairs += [(f"{block}-frozen", REFERENCE) for block in HOPE]
    body = positions.table({pair: found.by_position(*pair) for pair in pairs})
    if not body:
        return []
    lines = []
    for number, block in enumerate(BLOCKS):
        gaps = found.by_position(block, REFERENCE)
        if gaps and block != REFERENCE:
            mean = [statistics.fmean(column) for column in zip(*gaps, strict=True)]
            x = [positions.BUCKET * (i + 0.5) for i in range(len(mean))]
            lines.append(figures.Line(block, x, mean, colour=number))
    title = "Validation loss minus the transformer's, by position in the window"
    levels = {"transformer": 0.0}
    figure = Figure("comparison_positions", title, lines, levels, "position", "Mean.", True)
    text = (
        "Validation loss minus the transformer's, by position in windows of 256 tokens. Every "
        "memory is written for the first time after token 31: before it a block has no context "
        "but what its attention or convolution sees."
    )
    shown = [study.save_figure(page, figure)] if lines else []
    return ["", "## By position", "", text, *body, *shown]


def longer_section(found: Found) -> list[str]:
    """Blocks cost more per token than the transformer: what it learns in more steps."""
    body = []
    for block in LONGER_BLOCKS:
        for label in (block, f"{block}-longer", f"{block}-head", f"{block}-head-longer"):
            if not (results := found.results(label)):
                continue
            cells = [study.interval(list(found.values(label, "val/loss").values()))]
            cells += [f"{next(iter(results.values())).tokens:,}"]
            body.append([label, str(len(results)), *cells, cpu_seconds(found, label)])
    pairs = [(block, f"{REFERENCE}-longer") for block in HOPE]
    pairs += [(f"{block}-longer", f"{REFERENCE}-longer") for block in LONGER_BLOCKS[1:]]
    pairs += [(f"{block}-head-longer", f"{block}-longer") for block in LONGER_BLOCKS]
    pairs += [(f"{block}-head", f"{REFERENCE}-longer") for block in LONGER_BLOCKS]
    gaps = [
        [f"{label} - {other}", study.interval(found.paired(label, other)), better(between)]
        for label, other in pairs
        if (between := found.paired(label, other))
    ]
    if not gaps:
        return []
    text = (
        f"Rows are equal in tokens, not in time. `longer` trains {LONGER} steps, nearly all of the "
        "corpus' prose, with the schedule stretched to them."
    )
    lines = study.table(["model", "seeds", "val/loss", "tokens", "CPU s"], body)
    lines += study.table(["difference", "val/loss", "seeds below zero"], gaps)
    return ["", "## More steps", "", text, *lines]


def head_section(found: Found, page: Path) -> list[str]:
    """Blocks whose head learns while it reads."""
    there = [block for block in BLOCKS if found.results(f"{block}-head")]
    if not there:
        return []
    body, drawn = [], []
    for block in there:
        label = f"{block}-head"
        losses = list(found.values(label, "val/loss").values())
        cells = [block, str(len(losses)), study.interval(losses)]
        for other in (block, f"{REFERENCE}-head"):
            gaps = found.paired(label, other) if label != other else []
            cells.append(f"{study.interval(gaps)} ({better(gaps)})" if gaps else "-")
        body.append([*cells, cpu_seconds(found, label), cpu_seconds(found, block)])
        if gaps := found.paired(label, REFERENCE):
            drawn.append(Dot(f"{label} ({len(gaps)})", *study.student(gaps)))
        if block != REFERENCE and (gaps := found.paired(block, REFERENCE)):
            drawn.append(Dot(f"{block} ({len(gaps)})", *study.student(gaps)))
    text = (
        f"`-head`: the head is a memory, too (`model.head_memory.period={HEAD_PERIOD}`), trained "
        "and validated so; what it has learned begins anew with every window."
    )
    head = ["model", "seeds", "val/loss", "minus without", f"minus {REFERENCE}-head"]
    head += ["CPU s", "CPU s without"]
    title = "Validation loss minus that of the transformer without a head memory"
    figure = Dots("comparison_head", title, drawn, "difference of validation loss, nats")
    shown = [study.save_figure(page, figure)] if drawn else []
    return ["", "## A head that learns", "", text, *study.table(head, body), *shown]


def dynamic_section(found: Found, page: Path) -> list[str]:
    """All parameters learn while they are read, as the levels of HOPE blocks do anyway."""
    tables = [
        dynamic.table(way, {b: list(found.dynamic(b, way).values()) for b in BLOCKS})
        for way in dynamic.WAYS
    ]
    if not any(tables):
        return []
    text = (
        "HOPE blocks learn while they read, in validation too. Any model can: dynamic evaluation "
        f"(`--dynamic`; arXiv 1709.07432), after every {dynamic.EVERY} tokens one step on their "
        "loss, fresh for every window. Scaled steps divide each gradient by its root mean square "
        f"over training text plus {dynamic.DAMPING:g} times the mean of those; the head is the "
        "embedding, too. Validation loss by step size; 0 is as above. The best of a row was chosen "
        "on the windows that it is measured on."
    )
    figure = dynamic_dots(found)
    shown = [study.save_figure(page, figure)] if figure.rows else []
    lines = [line for table in tables for line in table]
    return ["", "## Dynamic evaluation", "", text, *lines, *dynamic_gaps(found), *shown]


def dynamic_pairs(found: Found) -> Iterator[tuple[str, str, float, list[list[float]]]]:
    """HOPE blocks minus the transformer that learns while it is read, at its best.

    Block, way, the transformer's rate, and differences by seed: of the block as it is, and of the
    block that learns in the same way at its own best rate.
    """
    for way, told in dynamic.WAYS.items():
        if (base := found.best(REFERENCE, way)) is None:
            continue
        for block in HOPE:
            mine = found.values(block, "val/loss"), (found.best(block, way) or (0.0, {}))[1]
            gaps = [[m[s] - base[1][s] for s in sorted(m.keys() & base[1].keys())] for m in mine]
            if gaps[0]:
                yield block, told.told, base[0], gaps


def dynamic_gaps(found: Found) -> list[str]:
    """The same as a table."""
    body = [
        [block, told, f"{rate:g}"]
        + [f"{study.interval(gap)} ({better(gap)})" if gap else "-" for gap in gaps]
        for block, told, rate, gaps in dynamic_pairs(found)
    ]
    head = ["block", f"the {REFERENCE} learns by", "at its best rate"]
    return study.table([*head, "block as it is", "block that learns so too"], body) if body else []


def dynamic_dots(found: Found) -> Dots:
    """Every block and way at its best minus the transformer as it is."""
    base = found.values(REFERENCE, "val/loss")
    drawn = []
    for block in BLOCKS:
        ways = {told.told: found.best(block, way) for way, told in dynamic.WAYS.items()}
        if not any(ways.values()):
            continue
        losses = {"as it is": found.values(block, "val/loss")} if block != REFERENCE else {}
        losses |= {told: best[1] for told, best in ways.items() if best is not None}
        for told, mine in losses.items():
            if gaps := [mine[seed] - base[seed] for seed in sorted(mine.keys() & base.keys())]:
                drawn.append(Dot(f"{block}: {told} ({len(gaps)})", *study.student(gaps)))
    title = "Learning while read, minus the transformer as it is"
    return Dots("comparison_dynamic", title, drawn, "difference of validation loss, nats")
