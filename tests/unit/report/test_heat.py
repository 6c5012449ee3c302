"""Heat maps: every number in the CSV, equal bytes for equal numbers, gaps, needle files."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from nl.config import ConfigError
from nl.report.figures import COLOURS, SOFT, Figure, standalone, themed
from nl.report.heat import HeatMap, HeatMaps, _canvas, heat_csv, heat_svg, save_png
from nl.report.needle_maps import needle_maps, read_details

pytest.importorskip("matplotlib")


def figure(maps: int = 2) -> HeatMaps:
    one = HeatMap(
        title="memory writing",
        rows=["0", "0.5"],
        columns=["64", "128", "256"],
        values=[[0.0, 0.25, 1.0], [None, 0.5, 0.125]],
        intervals=[[(0.0, 0.1), (0.1, 0.4), (0.9, 1.0)], [None, (0.4, 0.6), (0.0, 0.3)]],
        counts=[[10, 10, 10], [0, 10, 8]],
    )
    return HeatMaps("maps", [one] * maps, "depth", "length", "share")


def test_the_csv_holds_every_cell() -> None:
    rows = list(csv.DictReader(io.StringIO(heat_csv(figure(1)))))
    assert [row["share"] for row in rows] == ["0.0", "0.25", "1.0", "", "0.5", "0.125"]
    assert [row["n"] for row in rows] == ["10", "10", "10", "0", "10", "8"]
    assert rows[1] | {} == {
        "map": "memory writing",
        "depth": "0",
        "length": "128",
        "share": "0.25",
        "low": "0.1",
        "high": "0.4",
        "n": "10",
    }
    assert (rows[3]["low"], rows[3]["high"]) == ("", "")


def test_the_picture_shows_every_number_and_repeats_its_bytes(tmp_path: Path) -> None:
    svg = standalone(heat_svg(figure()))
    for text in ("memory writing", "0.25", "1.00", "0.12", "128", "depth", "length"):
        assert svg.count(f">{text}<") >= (1 if text in ("depth",) else 2), text
    assert standalone(heat_svg(figure())) == svg
    assert "#010101" not in svg
    save_png(figure(4), tmp_path / "a.png")
    save_png(figure(4), tmp_path / "b.png")
    data = (tmp_path / "a.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert data == (tmp_path / "b.png").read_bytes()


def test_words_of_narrow_maps_stay_apart_and_inside() -> None:
    one = HeatMap("passkey, memory context", ["0.5"], ["55"], [[1.0]])
    label = "tokens read before the answer"
    drawn = _canvas(HeatMaps("maps", [one] * 3, "depth", label, "share"))
    drawn.canvas.draw()
    for words in ([a.xaxis.label for a in drawn.axes], [a.title for a in drawn.axes]):
        ends = [x for text in words for x in text.get_window_extent().intervalx]
        assert ends == sorted(ends)
        assert 0 <= ends[0] < ends[-1] <= drawn.bbox.width


def test_a_missing_cell_is_hatched_in_a_colour_that_both_themes_have() -> None:
    svg = heat_svg(figure(1))
    pattern = svg[svg.index("<pattern") : svg.index("</pattern>")]
    assert SOFT in pattern
    assert COLOURS[SOFT][0] in themed(svg, Figure("maps", "maps", []))
    assert COLOURS[SOFT][1] in standalone(svg)[svg.index("<pattern") :]
    whole = HeatMap("t", ["a"], ["b"], [[0.5]])
    assert "<pattern" not in heat_svg(HeatMaps("maps", [whole], "depth", "length", "share"))


def details(**changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "task": "single",
        "haystack": "noise",
        "lengths": [64, 128],
        "depths": [0.0, 0.5, 1.0],
        "samples": 4,
        "chance": 0.5,
        "memorize": {"off": {"choice_accuracy": [[0.0, 0.25, 0.5], [0.75, 1.0, 0.0]]}},
        "intervals": {"off": {"choice_accuracy": [[[0, 1]] * 3, [[0, 1], [0, 1], None]]}},
    }
    return plain | changes


def test_needle_files_are_turned_to_depth_by_length(tmp_path: Path) -> None:
    (tmp_path / "niah").mkdir()
    (tmp_path / "niah" / "needle_noise.json").write_text(json.dumps(details()))
    (tmp_path / "niah.json").write_text(json.dumps({"suite": "niah", "rows": []}))
    for path in (tmp_path / "niah.json", tmp_path / "niah" / "needle_noise.json"):
        drawn = needle_maps([("run", read_details(path))], None, "niah")
        (only,) = drawn.maps
        assert only.title == "run, memory off"
        assert (list(only.rows), list(only.columns)) == (["0", "0.5", "1"], ["64", "128"])
        assert only.values == [[0.0, 0.75], [0.25, 1.0], [0.5, 0.0]]
        assert only.intervals[2] == [(0, 1), None]
        assert drawn.value == "choice accuracy"
    with pytest.raises(ConfigError, match="--metric: exact_match; run has choice_accuracy"):
        needle_maps([("run", details())], "exact_match", "niah")


def test_a_result_has_its_own_grid_among_those_of_other_tasks(tmp_path: Path) -> None:
    (tmp_path / "niah").mkdir()
    for name, lengths in (("noise", [64]), ("multikey-noise", [128])):
        file = tmp_path / "niah" / f"needle_{name}.json"
        file.write_text(json.dumps(details(lengths=lengths)))
    result = tmp_path / "niah.json"
    result.write_text(json.dumps({"rows": [{"task": "multikey-noise/128/0.5"}]}))
    assert read_details(result)["lengths"] == [128]
    result.write_text(json.dumps({"rows": []}))
    with pytest.raises(ConfigError, match=r"needle_multikey-noise.json, .*needle_noise.json: name"):
        read_details(result)


def test_cells_of_recall_become_a_grid(tmp_path: Path) -> None:
    cells = [
        {"memorize": m, "length": n, "depth": d, "n": 9, "accuracy": d / n, "low": 0.0, "high": 1.0}
        for m in ("off", "context")
        for n in (2, 4)
        for d in (0.0, 1.0)
    ]
    path = tmp_path / "recall.json"
    path.write_text(json.dumps({"cells": cells, "chance": 0.1}))
    drawn = needle_maps([("m", read_details(path))], None, "recall")
    assert [one.title for one in drawn.maps] == ["m, memory off", "m, memory context"]
    assert drawn.maps[0].values == [[0.0, 0.0], [0.5, 0.25]]
    assert drawn.maps[0].counts == [[9, 9], [9, 9]]


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": []}'])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"not readable JSON|no grid of lengths and depths"):
        read_details(path)
