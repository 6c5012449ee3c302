"""Dot plots: one value with its interval per row, as SVG and CSV. Floor 1."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass

from nl.report.figures import GRID, INK, SERIES, SETTINGS, SOFT, matplotlib_ready, svg_text


@dataclass(frozen=True)
class Dot:
    """One row: a value and the half width of its interval (nan: none is known)."""

    name: str
    value: float
    half: float = math.nan


@dataclass(frozen=True)
class Dots:
    """What is drawn, the first row on top.

    Attributes:
        name: file stem of its CSV and SVG.
        title: short, with the unit.
        rows: named values.
        x_label: what the values are.
    """

    name: str
    title: str
    rows: list[Dot]
    x_label: str = "value"


def draw_dots(figure: Dots) -> str:
    """The plot as SVG text in marker colours; a line marks zero.

    Intervals that exclude zero are drawn in the first colour below it and in the second above it,
    the others, and values without interval, in grey.
    """
    matplotlib = matplotlib_ready()
    from matplotlib.figure import Figure as Canvas

    settings = {**SETTINGS, "axes.grid.axis": "x", "ytick.labelcolor": INK}
    with matplotlib.rc_context(settings):
        canvas = Canvas(figsize=(8.4, 0.7 + 0.26 * len(figure.rows)), layout="constrained")
        axes = canvas.subplots()
        axes.axvline(0.0, color=GRID, lw=1.4)
        for place, row in enumerate(figure.rows):
            known = not math.isnan(row.half)
            decided = known and abs(row.value) > row.half
            colour = (SERIES[0] if row.value < 0 else SERIES[1]) if decided else SOFT
            half = row.half if known else None
            axes.errorbar(row.value, place, xerr=half, color=colour, fmt="o", markersize=4, lw=1.6)
        axes.set_yticks(range(len(figure.rows)), [row.name for row in figure.rows])
        axes.set_ylim(len(figure.rows) - 0.4, -0.6)
        axes.set_xlabel(figure.x_label)
        return svg_text(canvas, figure.name)


def dots_csv(figure: Dots) -> str:
    """The drawn numbers: row, value, half width (empty where unknown)."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["row", figure.x_label, "half width"])
    for row in figure.rows:
        writer.writerow([row.name, repr(row.value), "" if math.isnan(row.half) else repr(row.half)])
    return out.getvalue()
