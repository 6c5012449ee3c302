"""Heat maps side by side, as SVG or PNG, with the numbers and their intervals as CSV. Floor 1."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nl.report.figures import COLOURS, INK, SETTINGS, SOFT, matplotlib_ready, svg_text

SHADES = ("#ffffff", "#0072b2")
"""Lowest and highest value; between them lightness falls evenly."""
DARK = 0.55
"""Share of the scale above which numbers are written in white."""


@dataclass(frozen=True)
class HeatMap:
    """One grid of values.

    Attributes:
        title: short.
        rows: names from the top down.
        columns: names from the left.
        values: [row][column]; None is drawn hatched, without a ground.
        intervals: (low, high) of every value, where they are known.
        counts: samples behind every value, where they are known.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    intervals: Sequence[Sequence[tuple[float, float] | None]] = ()
    counts: Sequence[Sequence[int]] = ()


@dataclass(frozen=True)
class HeatMaps:
    """Several grids over the same axes and one scale.

    Attributes:
        name: file stem.
        maps: from left to right, at most three in a row.
        row_label, column_label: what the axes are.
        value: what the numbers are.
        low, high: ends of the scale.
        form: how a number is written in its cell.
    """

    name: str
    maps: Sequence[HeatMap]
    row_label: str
    column_label: str
    value: str
    low: float = 0.0
    high: float = 1.0
    form: str = "{:.2f}"


def heat_svg(figure: HeatMaps) -> str:
    """The maps as SVG text in marker colours; ``nl.report.figures.standalone`` finishes it."""
    matplotlib = matplotlib_ready()
    with matplotlib.rc_context({**SETTINGS, "axes.grid": False}):
        return svg_text(_canvas(figure), figure.name)


def save_png(figure: HeatMaps, path: Path) -> None:
    """Write the maps as PNG, black on white."""
    matplotlib = matplotlib_ready()
    fixed = {key: _plain(value) for key, value in SETTINGS.items()}
    with matplotlib.rc_context({**fixed, "axes.grid": False}):
        canvas = _canvas(figure, _plain)
        canvas.savefig(path, dpi=160, facecolor="white", metadata={"Software": None})


def _plain(value: Any) -> Any:
    """A marker colour as the colour of the file; anything else as it is."""
    return COLOURS[value][1] if isinstance(value, str) and value in COLOURS else value


def _same(value: Any) -> Any:
    return value


def _canvas(figure: HeatMaps, colour: Any = _same) -> Any:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure as Canvas

    across = min(3, len(figure.maps))
    down = -(-len(figure.maps) // across)
    letters = max(len(text) for text in (figure.column_label, *(m.title for m in figure.maps)))
    columns = max(len(one.columns) for one in figure.maps)
    rows = max(len(one.rows) for one in figure.maps)
    width = max(0.62 * columns + 0.9, 0.07 * letters + 0.4)  # inches; words go beside words
    size = (1.0 + across * width, down * (0.34 * rows + 1.1))
    canvas = Canvas(figsize=size, layout="constrained")
    shades = LinearSegmentedColormap.from_list("shades", SHADES)
    grid = canvas.subplots(down, across, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place >= len(figure.maps):
            axes.set_visible(False)
            continue
        _draw(axes, figure, figure.maps[place], shades, colour)
        if place % across == 0:
            axes.set_ylabel(figure.row_label)
        axes.set_xlabel(figure.column_label)
    return canvas


def _draw(axes: Any, figure: HeatMaps, chosen: HeatMap, shades: Any, colour: Any) -> None:
    """One grid of rectangles, each with its number."""
    from matplotlib.patches import Rectangle

    span = figure.high - figure.low or 1.0
    for row, values in enumerate(chosen.values):
        for column, value in enumerate(values):
            share = 0.0 if value is None else min(1.0, max(0.0, (value - figure.low) / span))
            place = ((column - 0.5, row - 0.5), 1, 1)
            if value is None:  # hatches have the colour of the edge
                missing = {"edgecolor": colour(SOFT), "facecolor": "none", "linewidth": 0.0}
                axes.add_patch(Rectangle(*place, hatch="//", **missing))
                continue
            box = Rectangle(*place, facecolor=shades(share), edgecolor="white", linewidth=1.0)
            axes.add_patch(box)
            ink = "white" if share > DARK else colour(INK)
            text = figure.form.format(value)
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
    axes.set_xlim(-0.5, len(chosen.columns) - 0.5)
    axes.set_ylim(len(chosen.rows) - 0.5, -0.5)
    axes.set_xticks(range(len(chosen.columns)), chosen.columns)
    axes.set_yticks(range(len(chosen.rows)), chosen.rows)
    axes.tick_params(length=0, labelcolor=colour(SOFT))
    axes.set_title(chosen.title, fontsize=9, color=colour(INK))


def heat_csv(figure: HeatMaps) -> str:
    """The drawn numbers, one row per cell: map, row, column, value, low, high, n."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["map", figure.row_label, figure.column_label, figure.value, "low", "high", "n"]
    )
    for one in figure.maps:
        for r, row in enumerate(one.rows):
            for c, column in enumerate(one.columns):
                value = one.values[r][c]
                ends = one.intervals[r][c] if one.intervals else None
                low, high = ("", "") if ends is None else map(repr, ends)
                count = one.counts[r][c] if one.counts else ""
                number = "" if value is None else repr(value)
                writer.writerow([one.title, row, column, number, low, high, count])
    return out.getvalue()
