"""Numbers as a reader sees them."""

from __future__ import annotations

import math
import re

import pytest

from nl.report.figures import (
    LONGEST,
    SETTINGS,
    Figure,
    Line,
    _canvas,
    draw,
    figure_csv,
    smooth,
    thin,
)
from nl.report.numbers import count, duration, figure, with_error


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.14159, "3.142"),
        (0.5, "0.5000"),
        (2.0, "2"),
        (4095.9999, "4096"),
        (12, "12"),
        (1e-5, "1e-05"),
        (2.5e7, "2.5e+07"),
        (math.inf, "inf"),
        (None, "-"),
        ("x", "-"),
        (True, "-"),
    ],
)
def test_figure(value: object, text: str) -> None:
    assert figure(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(999, "999"), (1234, "1.23k"), (1.3e9, "1.3B"), (7.6e8, "760M"), (None, "-")],
)
def test_count(value: object, text: str) -> None:
    assert count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.21, "4.2 s"), (65, "1 min 05 s"), (3720, "1 h 02 min"), (None, "-")],
)
def test_duration(seconds: object, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (3.28123, 0.0214, "3.281 +- 0.021"),
        (26.5812, 0.6, "26.58 +- 0.60"),
        (1234.5, 37.0, "1234 +- 37"),
        (0.275, None, "0.2750"),
        (0.5, 0.0, "0.5000"),
        (2.7e8, 1.0e16, "2.7e+08 +- 1e+16"),
        (None, 0.1, "-"),
    ],
)
def test_with_error(value: object, error: object, text: str) -> None:
    assert with_error(value, error) == text


def test_smoothing_is_a_running_mean_that_keeps_lines_and_ends() -> None:
    line = [2.0 * i for i in range(500)]
    assert smooth(line) == pytest.approx(line)
    bumpy = [(-1.0) ** i for i in range(500)]
    assert max(map(abs, smooth(bumpy)[20:-20])) < 0.1


def test_thinning_keeps_the_ends() -> None:
    values = [float(i) for i in range(5 * LONGEST + 3)]
    assert len(thin(values)) == LONGEST
    assert thin(values)[0] == values[0]
    assert thin(values)[-1] == values[-1]


def test_marks_are_drawn_and_in_the_csv() -> None:
    pytest.importorskip("matplotlib")
    lines = [Line("replay", [0.0, 40.0, 80.0], [0.1, 0.2, 0.3])]
    plain, marked = (Figure("knob", "Replay", lines, marks=marks) for marks in ((), (40.0,)))
    assert "(mark),40," in figure_csv(marked).splitlines()
    assert "(mark)" not in figure_csv(plain)
    assert draw(marked).count("<path") == draw(plain).count("<path") + 1


@pytest.mark.parametrize("name", ["c", "chunk 128", "a name that fills a row by itself, nearly"])
def test_a_legend_stays_on_its_canvas(name: str) -> None:
    pytest.importorskip("matplotlib")
    lines = [Line(f"{name} {i}", [0.0, 1.0], [0.0, i], colour=i) for i in range(5)]
    svg = draw(Figure("knob", "Replay", lines))
    width = float(re.findall(r'viewBox="0 0 ([\d.]+)', svg)[0])
    places = re.findall(r'font-size: ([\d.]+)px[^>]* x="([\d.]+)"[^>]*>' + name, svg)
    assert len(places) == len(lines)
    assert all(float(x) + 0.5 * float(size) * len(name) < width for size, x in places)


@pytest.mark.parametrize("count", [2, 5, 13, 24])
@pytest.mark.parametrize("wide", [True, False])
def test_a_legend_leaves_the_axes_their_height(count: int, wide: bool) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    lines = [Line(f"runs/hope_attention_seed{i}_rate_0.003", [0.0], [0.0]) for i in range(count)]
    with matplotlib.rc_context(SETTINGS):
        canvas = _canvas(Figure("knob", "Replay", lines, wide=wide), lambda colour: colour)
        canvas.draw_without_rendering()
        height = canvas.axes[0].get_window_extent().height
        assert height > 0.55 * (3.4 if wide else 2.3) * canvas.dpi
        assert canvas.legends[0].get_window_extent().y1 <= canvas.bbox.height
