"""Curves as SVG that follows the page's light or dark theme, with their numbers as CSV. Floor 1.

A figure is drawn with marker colours; on the page each becomes a CSS variable of the page, in the
file beside the CSV it becomes a fixed colour. Equal numbers give equal bytes.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nl.config import ConfigError

LONGEST = 2000
"""Points drawn per line at most; longer lines are thinned evenly, first and last point kept."""
# Marker colour -> (CSS variable, colour in the standalone file). Lines: Okabe and Ito's palette.
INK, SOFT, GRID = "#010101", "#020202", "#030303"
SERIES = ("#110101", "#110202", "#110303", "#110404", "#110505", "#110606")
COLOURS = {
    INK: ("--ink", "#1c2024"),
    SOFT: ("--soft", "#5c6670"),
    GRID: ("--rule", "#dfe3e8"),
    SERIES[0]: ("--s1", "#0072b2"),
    SERIES[1]: ("--s2", "#d55e00"),
    SERIES[2]: ("--s3", "#009e73"),
    SERIES[3]: ("--s4", "#aa4499"),
    SERIES[4]: ("--s5", "#b8860b"),
    SERIES[5]: ("--s6", "#3f8fb5"),
}
AXES: tuple[Literal["x", "y"], ...] = ("x", "y")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
MARKS = ("o", "s")
"""Of the first lines, and of those whose colours come again."""


@dataclass(frozen=True)
class Line:
    """One curve: its name, points and how heavily it is drawn."""

    name: str
    x: list[float]
    y: list[float]
    faint: bool = False
    """Drawn thin and pale, without a name: raw values behind a smoothed curve."""
    colour: int = 0
    """Index into the palette; the dash pattern changes with it too."""
    ink: bool = False
    """In the colour of the text: a limit rather than one of those compared."""
    low: list[float] | None = None
    """Lower edge of a band around the curve, with ``high``."""
    high: list[float] | None = None
    """Upper edge of the band."""


@dataclass(frozen=True)
class Figure:
    """What is drawn.

    Attributes:
        name: file stem of its CSV and SVG.
        title: short, with the unit.
        lines: curves over ``x_label``.
        levels: named horizontal lines (a baseline).
        alt: one sentence that says what the curve shows, for readers who do not see it.
        log: the axes that are logarithmic: "", "x", "y" or "xy".
        from_zero: begin the y axis at zero, where a flat curve is to be seen as flat.
        shaded: a range of x that is set off (what was trained on).
        marks: values of x where something begins (a task), as thin upright lines.
    """

    name: str
    title: str
    lines: list[Line]
    levels: dict[str, float] = field(default_factory=dict)
    x_label: str = "step"
    alt: str = ""
    wide: bool = False
    log: str = ""
    from_zero: bool = False
    shaded: tuple[float, float] | None = None
    marks: tuple[float, ...] = ()


def matplotlib_ready() -> Any:
    """Matplotlib with the settings that make its SVG small and repeatable.

    Raises:
        ConfigError: the viz extra is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError(
            "report: matplotlib is missing; install the viz extra: uv sync --extra viz, or"
            " pip install 'nl[viz]'."
        ) from error
    return matplotlib


SETTINGS: dict[str, Any] = {
    "svg.hashsalt": "nl",
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.linewidth": 1.0,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "ytick.major.size": 0,
    "path.simplify": True,
    "path.simplify_threshold": 0.3,
}


def draw(figure: Figure) -> str:
    """The figure as SVG text in marker colours; ``themed`` or ``standalone`` finish it."""
    matplotlib = matplotlib_ready()
    with matplotlib.rc_context(SETTINGS):
        return svg_text(_canvas(figure, _same), figure.name)


def save_png(figure: Figure, path: Path) -> None:
    """Write the figure as PNG: fixed colours on white paper."""
    matplotlib = matplotlib_ready()
    fixed = {key: plain(value) for key, value in SETTINGS.items()}
    with matplotlib.rc_context(fixed):
        canvas = _canvas(figure, plain)
        canvas.axes[0].set_ylabel(figure.title)
        canvas.savefig(path, dpi=160, facecolor="white", metadata={"Software": None})


def plain(value: Any) -> Any:
    """A marker colour as the fixed colour of a file; anything else as it is."""
    return COLOURS[value][1] if isinstance(value, str) and value in COLOURS else value


def _same(value: Any) -> Any:
    return value


def _canvas(figure: Figure, colour: Callable[[Any], Any]) -> Any:
    from matplotlib.figure import Figure as Canvas

    size = (8.4, 3.4) if figure.wide else (3.9, 2.3)
    canvas = Canvas(figsize=size, layout="constrained")
    axes = canvas.subplots()
    axes.set_xlabel(figure.x_label)
    axes.margins(x=0.01)
    for axis in AXES:
        if axis in figure.log:
            axes.set(**{f"{axis}scale": "log"})
        else:
            axes.locator_params(axis=axis, nbins=6 if figure.wide else 4)
    if figure.shaded is not None:
        axes.axvspan(*figure.shaded, color=colour(GRID), alpha=0.6, lw=0)
    for mark in figure.marks:
        axes.axvline(mark, color=colour(GRID), lw=0.8)
    for line in figure.lines:
        draw_line(axes, line, colour(INK if line.ink else SERIES[line.colour % len(SERIES)]))
    if figure.from_zero:
        axes.set_ylim(bottom=0)
    for name, value in figure.levels.items():
        tone = colour(level_colour(name, figure))
        axes.axhline(value, color=tone, lw=1.1, ls=DASHES[2], label=name)
    entries = sum(not line.faint for line in figure.lines) + len(figure.levels)
    if entries > 1:
        _legend(canvas, min(4, entries))
    return canvas


def _legend(canvas: Any, columns: int) -> None:
    """A legend above the axes, in as many columns as the canvas has room for.

    The canvas grows by what it takes beyond two rows: the axes keep their height.
    """
    for count in range(columns, 0, -1):
        legend = canvas.legend(
            loc="outside upper left", ncols=count, frameon=False, handlelength=2.4
        )
        place = legend.get_window_extent()
        if count == 1 or place.width <= canvas.bbox.width:
            break
        legend.remove()
    rows = -(-len(legend.get_texts()) // count)
    width, height = canvas.get_size_inches()
    more = place.height * max(0, rows - 2) / rows / canvas.dpi
    canvas.set_size_inches(width, height + more)


def svg_text(canvas: Any, name: str) -> str:
    """A drawn canvas as SVG in marker colours."""
    buffer = io.StringIO()
    plain = {"Date": None, "Creator": None}
    canvas.savefig(buffer, format="svg", transparent=True, metadata=plain)
    return clean(buffer.getvalue(), name)


def level_colour(name: str, figure: Figure) -> str:
    """The colour of the curve that a level belongs to (``unigram val``), else that of the text."""
    for line in figure.lines:
        if name.endswith(f" {line.name}"):
            return SERIES[line.colour % len(SERIES)]
    return SOFT


def draw_line(axes: Any, line: Line, colour: str) -> None:
    """One curve; a single point is drawn as a dot so that it can be seen."""
    x, y = thin(line.x), thin(line.y)
    dash = DASHES[line.colour // 2 % len(DASHES)] if not line.faint else "-"
    mark = MARKS[line.colour // len(SERIES) % len(MARKS)]
    if line.low is not None and line.high is not None:
        low, high = thin(line.low), thin(line.high)
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(
        x,
        y,
        color=colour,
        linewidth=0.8 if line.faint else 1.8,
        alpha=0.3 if line.faint else 1.0,
        linestyle=dash,
        marker=mark if len(x) <= 24 and not line.faint else None,
        markersize=4,
        label="_" + line.name if line.faint else line.name,
        solid_capstyle="round",
    )


def thin(values: list[float]) -> list[float]:
    """At most ``LONGEST`` values, evenly spaced, the last one kept."""
    if len(values) <= LONGEST:
        return values
    last = len(values) - 1
    return [values[round(i * last / (LONGEST - 1))] for i in range(LONGEST)]


def smooth(values: list[float]) -> list[float]:
    """A centred running mean over about a fortieth of the curve."""
    half = max(1, len(values) // 80)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    out = []
    for i in range(len(values)):
        reach = min(half, i, len(values) - 1 - i)
        out.append((sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1))
    return out


def clean(svg: str, name: str) -> str:
    """Without XML head, metadata and comments; ids are the figure's own, so none repeats."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([0-9.]+)px [^;\"]*", r"font-size: \1px", svg)
    return re.sub(r' (width|height)="[0-9.]+pt"', "", svg, count=2)


def themed(svg: str, figure: Figure) -> str:
    """For the page: colours are the page's variables, the picture has a name and a sentence."""
    for marker, (variable, _) in COLOURS.items():
        svg = svg.replace(marker, f"var({variable})")
    label = f"{figure.title}. {figure.alt}".replace("&", "and").replace('"', "'").replace("<", "")
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def standalone(svg: str) -> str:
    """For a file: fixed colours on white paper."""
    for marker, (_, colour) in COLOURS.items():
        svg = svg.replace(marker, colour)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + svg.replace(
        "<svg", '<svg style="background: #fff; font-family: sans-serif"', 1
    )


def figure_csv(figure: Figure) -> str:
    """The drawn numbers, one row per point: line, x, y; levels as rows without x.

    The edges of a band are lines of their own, marks rows without a value.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["line", figure.x_label, "value"])
    for line in figure.lines:
        name = f"{line.name} (raw)" if line.faint else line.name
        drawn = {name: line.y, f"{name} (low)": line.low, f"{name} (high)": line.high}
        for label, values in drawn.items():
            pairs = zip(thin(line.x), thin(values), strict=True) if values is not None else ()
            writer.writerows([label, f"{x:g}", repr(y)] for x, y in pairs)
    writer.writerows([name, "", repr(value)] for name, value in figure.levels.items())
    writer.writerows(["(mark)", f"{mark:g}", ""] for mark in figure.marks)
    return out.getvalue()
