"""Matrices in blocks: means, numbers as CSV, a small picture."""

from __future__ import annotations

import csv

import pytest

from nl.report.figures import standalone
from nl.report.heat import HeatMap, HeatMaps, heat_svg
from nl.report.matrix import Matrices, block_means, matrix_csv, matrix_svg

FIGURE = Matrices(
    "mix",
    ("step 1", "step 9"),
    ([[1.0, 3.0, 5.0], [1.0, 3.0, 7.0], [2.0, 4.0, 6.0]], [[0.0] * 3] * 3),
    (("2a", 2), ("2b", 1), ("none", 0)),
    "neurons",
    "|W|",
)


def test_means_of_blocks() -> None:
    first, second = block_means(FIGURE)
    assert first == [[2.0, 6.0, 0.0], [3.0, 6.0, 0.0], [0.0, 0.0, 0.0]]
    assert second == [[0.0] * 3] * 3
    rows = list(csv.reader(matrix_csv(FIGURE).splitlines()))
    assert rows[0] == ["matrix", "row", "column", "mean of |W|"]
    assert ["step 1", "2b", "2a", "3"] in rows
    assert len(rows) == 1 + 2 * 9


def test_the_picture_is_small_and_repeatable() -> None:
    pytest.importorskip("matplotlib")
    text = matrix_svg(FIGURE)
    assert text == matrix_svg(FIGURE)
    assert text.count("<image") == 2
    assert "step 9" in text
    assert len(standalone(text)) < 60_000


def test_cells_of_a_heat_map_are_written_as_asked() -> None:
    pytest.importorskip("matplotlib")
    grid = HeatMap("steps", ("C5",), ("10", "20"), ((120.0, None),))
    text = heat_svg(HeatMaps("h", (grid,), "group", "neurons", "steps", 0, 200, form="{:.0f}"))
    assert ">120<" in text
    assert "120.00" not in text
