"""Matrices as pictures, rows and columns in named blocks, with the mean of every block. Floor 1."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from nl.report.figures import INK, SETTINGS, SOFT, matplotlib_ready, svg_text

SHADES = ("#ffffff", "#0072b2", "#00243c")
ACROSS = 4


@dataclass(frozen=True)
class Matrices:
    """Several square matrices over the same blocks, each on a scale of its own.

    Attributes:
        name: file stem.
        titles: of each matrix.
        values: [matrix][row][column], >= 0.
        blocks: name and number of rows of each block, in order.
        label: what rows and columns are.
        value: what the numbers are.
    """

    name: str
    titles: Sequence[str]
    values: Sequence[Sequence[Sequence[float]]]
    blocks: Sequence[tuple[str, int]]
    label: str
    value: str


def matrix_svg(figure: Matrices) -> str:
    """The matrices as SVG text in marker colours, side by side."""
    matplotlib = matplotlib_ready()
    with matplotlib.rc_context({**SETTINGS, "axes.grid": False}):
        return svg_text(_canvas(figure), figure.name)


def _canvas(figure: Matrices, colour: Callable[[str], str] = str) -> Any:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure as Canvas

    across = min(ACROSS, len(figure.values))
    down = -(-len(figure.values) // across)
    canvas = Canvas(figsize=(2.5 * across, 2.7 * down), layout="constrained")
    shades = LinearSegmentedColormap.from_list("shades", SHADES)
    ends = list(accumulate((size for _, size in figure.blocks), initial=0))
    middles = [(a + b - 1) / 2 for a, b in pairwise(ends)]
    names = [name for name, _ in figure.blocks]
    for place, axes in enumerate(canvas.subplots(down, across, squeeze=False).flat):
        if place >= len(figure.values):
            axes.set_visible(False)
            continue
        axes.imshow(figure.values[place], cmap=shades, interpolation="nearest", vmin=0)
        for end in ends[1:-1]:
            for line in (axes.axhline, axes.axvline):
                line(end - 0.5, color=colour(INK), lw=0.6)
        axes.set_xticks(middles, names)
        axes.set_yticks(middles, names)
        axes.tick_params(length=0, labelcolor=colour(SOFT))
        axes.set_title(figure.titles[place], fontsize=9, color=colour(INK))
        if place % across == 0:
            axes.set_ylabel(figure.label)
    return canvas


def block_means(figure: Matrices) -> list[list[list[float]]]:
    """The mean of every block, [matrix][block row][block column]; empty blocks are 0."""
    ends = list(accumulate((size for _, size in figure.blocks), initial=0))
    spans = [slice(a, b) for a, b in pairwise(ends)]

    def mean(rows: Sequence[Sequence[float]], across: slice) -> float:
        found = [value for row in rows for value in row[across]]
        return sum(found) / len(found) if found else 0.0

    return [
        [[mean(matrix[down], across) for across in spans] for down in spans]
        for matrix in figure.values
    ]


def matrix_csv(figure: Matrices) -> str:
    """The means of blocks, one row each: matrix, row, column, mean."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["matrix", "row", "column", f"mean of {figure.value}"])
    names = [name for name, _ in figure.blocks]
    for title, rows in zip(figure.titles, block_means(figure), strict=True):
        for row, values in zip(names, rows, strict=True):
            for column, value in zip(names, values, strict=True):
                writer.writerow([title, row, column, f"{value:.6g}"])
    return out.getvalue()
