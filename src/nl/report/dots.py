"""Dot plots: one value with its interval per row, as SVG and CSV. Floor 1."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass

from nl.report.figures import GRID, INK, SERIES, SETTINGS, SOFT, matplotlib_ready, svg_text


@dataclass(frozen=True)
class Dot:
    """One row: a value and the half width of its interval (nan: none is known).

    ``span`` is an interval whose two sides differ: how far below and above the value it reaches.
    """

    name: str
    value: float
    half: float = math.nan
    span: tuple[float, float] | None = None

    @property
    def sides(self) -> tuple[float, float]:
        """How far the interval reaches below and above the value."""
        return self.span or (self.half, self.half)


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
            below, above = row.sides
            known = not math.isnan(below)
            decided = known and (row.value > below or -row.value > above)
            colour = (SERIES[0] if row.value < 0 else SERIES[1]) if decided else SOFT
            reach = [[below], [above]] if known else None
            axes.errorbar(row.value, place, xerr=reach, color=colour, fmt="o", markersize=4, lw=1.6)
        axes.set_yticks(range(len(figure.rows)), [row.name for row in figure.rows])
        axes.set_ylim(len(figure.rows) - 0.4, -0.6)
        axes.set_xlabel(figure.x_label)
        return svg_text(canvas, figure.name)


def dots_csv(figure: Dots) -> str:
    """The drawn numbers: row, value, half width (empty where unknown), or both sides of it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    uneven = any(row.span for row in figure.rows)
    writer.writerow(["row", figure.x_label, *(("below", "above") if uneven else ("half width",))])
    for row in figure.rows:
        sides = row.sides if uneven else (row.half,)
        writer.writerow(
            [row.name, repr(row.value), *("" if math.isnan(one) else repr(one) for one in sides)]
        )
    return out.getvalue()
