"""Pictures of forgetting: R as heat maps, losses over phases, accuracies over tasks. Floor 1.

Each picture is a PNG with the numbers that it shows as CSV beside it.
"""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nl.config import ConfigError, writing
from nl.report.figures import COLOURS, DASHES, SERIES, matplotlib_ready

Numbers = list[list[float]]


@dataclass(frozen=True)
class Panel:
    """One heat map: rows are moments, columns what is measured; nan is not measured."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Numbers
    trajectory: bool = True
    """Rows are one model at different times, not a fresh model each."""


def read_record(path: Path, key: str) -> dict[str, Any]:
    """The JSON of an evaluation that holds ``key``.

    Raises:
        ConfigError: no such file, no JSON, or the file of another evaluation.
    """
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({error}).") from error
    if not isinstance(record, dict) or key not in record:
        raise ConfigError(f"{path}: has no {key!r}; give what the evaluation script wrote.")
    return record


def forgetting_panels(record: dict[str, Any], mode: str) -> list[Panel]:
    """R of a file of ``scripts/eval/continual.py``; of a plan the mean over seeds of each row.

    Raises:
        ConfigError: the mode was not measured.
    """
    if "runs" not in record:
        found = _mode(record["memorize"], mode)
        names = tuple(found["rows"]), tuple(found["segments"])
        return [Panel(f"memorize {mode}", *names, _numbers(found["nats_per_token"]))]
    names = tuple(record["rows"]), tuple(record["segments"])
    groups: dict[tuple[str, str, bool], list[Numbers]] = {}
    for run in record["runs"]:
        values = _numbers(_mode(run["memorize"], mode)["nats_per_token"])
        key = run["model"], run["method"], run["order"] != "scratch"
        groups.setdefault(key, []).append(values)
    return [
        Panel(f"{model}, {method}, n={len(found)}", *names, _mean(found), trajectory)
        for (model, method, trajectory), found in groups.items()
    ]


def _mode(measured: dict[str, Any], mode: str) -> Any:
    if mode not in measured:
        raise ConfigError(f"--memorize: {mode}; the file has {', '.join(measured)}.")
    return measured[mode]


def _numbers(rows: Sequence[Sequence[float | None]]) -> Numbers:
    return [[math.nan if value is None else float(value) for value in row] for row in rows]


def _mean(tables: list[Numbers]) -> Numbers:
    rows = zip(*tables, strict=True)
    return [[statistics.fmean(cells) for cells in zip(*row, strict=True)] for row in rows]


def draw_panels(path: Path, panels: Sequence[Panel], unit: str, *, best: str = "low") -> None:
    """Heat maps on one colour scale, numbers in the cells; PNG at ``path``.

    Args:
        path: of the picture.
        panels: what is drawn.
        unit: of the numbers, for the colour bar.
        best: whether ``low`` or ``high`` numbers are good, and bright.
    """
    matplotlib_ready()
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    size = 0.9 + max(2.6, 0.85 * len(panels[0].columns))
    tall = 0.9 + 0.42 * len(panels[0].rows)
    canvas = Figure(figsize=(size * columns + 0.8, tall * rows + 0.2), layout="constrained")
    axes = canvas.subplots(rows, columns, squeeze=False)
    known = [v for p in panels for row in p.values for v in row if not math.isnan(v)]
    scale = {"vmin": min(known), "vmax": max(known)}
    colours = "viridis_r" if best == "low" else "viridis"
    for axis, panel in zip(axes.flat, panels, strict=False):
        image = axis.imshow(panel.values, cmap=colours, aspect="auto", **scale)
        axis.set_title(panel.title, fontsize=9)
        axis.set_xticks(range(len(panel.columns)), panel.columns, fontsize=8)
        axis.set_yticks(range(len(panel.rows)), panel.rows, fontsize=8)
        middle = (scale["vmin"] + scale["vmax"]) / 2
        for i, row in enumerate(panel.values):
            for j, value in enumerate(row):
                if not math.isnan(value):
                    bright = (value < middle) == (best == "low")
                    ink = "black" if bright else "white"
                    axis.text(j, i, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=8)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    canvas.colorbar(image, ax=axes, label=unit, shrink=0.8)
    save(path, canvas)


def draw_curves(path: Path, panels: Sequence[Panel], unit: str) -> None:
    """One axis per column: its number over the rows, a line per panel; PNG at ``path``."""
    matplotlib_ready()
    from matplotlib.figure import Figure

    names = panels[0].columns
    canvas = Figure(figsize=(3.4 * len(names) + 0.6, 3.6), layout="constrained")
    axes = canvas.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for j, (axis, name) in enumerate(zip(axes, names, strict=True)):
        for number, panel in enumerate(panels):
            x = range(len(panel.rows))
            style = {
                "color": COLOURS[SERIES[number % len(SERIES)]][1],
                "linestyle": DASHES[number // len(SERIES) % len(DASHES)],
            }
            values = [row[j] for row in panel.values]
            axis.plot(x, values, marker="o", markersize=3.5, lw=1.5, label=panel.title, **style)
        axis.set_xticks(range(len(panels[0].rows)), panels[0].rows, fontsize=8)
        axis.set_title(name, fontsize=9)
        axis.grid(visible=True, axis="y", alpha=0.4)
    axes[0].set_ylabel(unit)
    handles, labels = axes[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    save(path, canvas)


def draw_bars(path: Path, groups: dict[str, list[dict[str, float]]], unit: str) -> None:
    """Bars with intervals, a group per entry of a list, and a line where guessing is; PNG."""
    matplotlib_ready()
    from matplotlib.figure import Figure

    count = max(len(bars) for bars in groups.values())
    canvas = Figure(figsize=(2.2 + 1.1 * count, 3.2), layout="constrained")
    axis = canvas.subplots()
    width = 0.8 / len(groups)
    for number, (name, bars) in enumerate(groups.items()):
        x = [i + (number - (len(groups) - 1) / 2) * width for i in range(len(bars))]
        errors = [
            [bar["value"] - bar["low"] for bar in bars],
            [bar["high"] - bar["value"] for bar in bars],
        ]
        colour = COLOURS[SERIES[number % len(SERIES)]][1]
        heights = [bar["value"] for bar in bars]
        axis.bar(x, heights, width, yerr=errors, color=colour, label=name, capsize=2)
        for i, bar in enumerate(bars):
            label = "chance" if number == i == 0 else "_"
            axis.hlines(bar["chance"], i - 0.45, i + 0.45, color="black", ls=":", label=label)
    axis.set_xticks(range(count), [f"task {i + 1}" for i in range(count)])
    axis.set_ylabel(unit)
    axis.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 1.16))
    save(path, canvas)


def save(path: Path, canvas: Any) -> None:
    """Write the PNG; equal numbers give equal bytes.

    Raises:
        ConfigError: not a PNG, or the folder cannot be written.
    """
    if path.suffix != ".png":
        raise ConfigError(f"--output: {path}; must end in .png.")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        canvas.savefig(path, dpi=130, metadata={"Software": None})


def write_panels(path: Path, panels: Sequence[Panel], unit: str) -> None:
    """The numbers of heat maps as CSV: panel, row, column, value."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["panel", "row", "column", unit])
        for panel in panels:
            for row, values in zip(panel.rows, panel.values, strict=True):
                for column, value in zip(panel.columns, values, strict=True):
                    known = "" if math.isnan(value) else repr(value)
                    writer.writerow([panel.title, row, column, known])


def plot_forgetting(source: Path, target: Path, mode: str) -> list[Path]:
    """Heat maps at ``target``, curves and CSV beside it; what was written.

    Fresh models (scratch) are no trajectory: they are in the heat maps alone.

    Raises:
        ConfigError: the source is no result of ``scripts/eval/continual.py``, or lacks the mode.
    """
    record = read_record(source, "better")
    panels = forgetting_panels(record, mode)
    if not panels:
        raise ConfigError(f"{source}: holds no finished run.")
    unit = "nats per token"
    curves, table = target.with_suffix(".curves.png"), target.with_suffix(".csv")
    draw_panels(target, panels, unit)
    draw_curves(curves, [panel for panel in panels if panel.trajectory] or panels, unit)
    write_panels(table, panels, "nats_per_token")
    return [target, curves, table]


def plot_classes(source: Path, target: Path) -> list[Path]:
    """Accuracies as heat maps at ``target``, bars of the last row and CSV beside it.

    Raises:
        ConfigError: the source is no result of ``scripts/eval/continual_classification.py``.
    """
    record = read_record(source, "task_aware")
    count = len(record["tasks"])
    rows = tuple(f"after {i + 1}" for i in range(count))
    columns = tuple(f"task {i + 1}" for i in range(count))
    panels, groups = [], {}
    for mode, found in record["memorize"].items():
        panels.append(Panel(f"memorize {mode}", rows, columns, _numbers(found["accuracy"])))
        last = (found[key][-1] for key in ("accuracy", "low", "high", "chance"))
        names = ("value", "low", "high", "chance")
        groups[mode] = [dict(zip(names, cell, strict=True)) for cell in zip(*last, strict=True)]
    bars, table = target.with_suffix(".bars.png"), target.with_suffix(".csv")
    draw_panels(target, panels, "accuracy", best="high")
    draw_bars(bars, groups, "accuracy after the last task")
    write_panels(table, panels, "accuracy")
    return [target, bars, table]
