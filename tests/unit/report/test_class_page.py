"""The page of a run of a classifier: curves, errors, attention, parameters, raw files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nl.report import write_report
from nl.report.examples import area, written
from nl.report.weights import MOST_NUMBERS, newest_weights, read_weights, sparkline


@pytest.fixture
def run(tmp_path: Path, boards: Any) -> Path:
    found: Path = boards.class_run(tmp_path / "run")
    return found


def test_everything_a_classifier_left_is_shown(run: Path, tmp_path: Path) -> None:
    page = write_report(run, tmp_path / "elsewhere" / "deep")
    html = page.read_text()
    assert page == tmp_path / "elsewhere" / "deep" / "report.html"
    assert not (run / "report.html").exists(), "nothing is written beside the run"
    for words in ("test: 3 wrong, 2 of them different", "test: examples by class", "ROC: true"):
        assert words in html
    assert "near" in html, "kinds have their names"
    assert 'href="../../run/config.yaml"' in html
    assert 'href="../../run/artifacts/evals/classification/test.json"' in html
    assert (page.parent / "artifacts/report/roc.csv").is_file()
    start = html.index('id="data">') + len('id="data">')
    data = json.loads(html[start : html.index("</script>", start)])
    assert data["weights"] == {"w": [[2, 2], [3.0, 4.0, 0.0, 0.0]]}
    assert [row["text"] for row in data["examples"]][:2] == ["1 + 2 = 4", "1 + 1 = 2"]
    assert data["attention"]["examples"][0]["steps"] == ["mark", "1"]


def test_examples_as_people_read_them() -> None:
    tokens = [*"0123456789", "+", "="]
    assert written({"input": [1, 2, 10, 3, 8, 11, 5, 0]}, tokens) == "12 + 38 = 50"
    assert written({"input": [0, 1]}, ["a", "b"]) == "a b"
    assert written({"input": [[1.0, 0.25], [-2.0, 0.5]]}, None) == "+1.25 -1.50"
    assert written({"input": None}, None) == "None"
    assert area([[0, 0], [0.5, 1], [1, 1]]) == pytest.approx(0.75)


def test_weights_without_torch(run: Path, boards: Any, tmp_path: Path) -> None:
    path = newest_weights(run)
    assert path is not None
    (weight,) = read_weights(path)
    assert (weight.shape, weight.count, weight.facts["norm"]) == ((2, 2), 4, 5.0)
    assert weight.facts["largest"] == 4.0
    assert sum(weight.bins) == 4
    assert "<rect" in sparkline(weight.bins)
    many = [0.5] * (MOST_NUMBERS + 1)
    big = {"big": ((len(many),), many), "bad": ((2,), [float("nan"), 1.0])}
    path.write_bytes(boards.safetensors(big))
    first, second = read_weights(path)
    assert first.values is None
    assert first.facts["std"] == 0.0
    assert second.facts["not finite"] == 1
    path.write_bytes(path.read_bytes()[:20])
    assert read_weights(path) == []
    path.unlink()
    assert newest_weights(run) is None


def test_other_types(tmp_path: Path) -> None:
    values = np.asarray([1.0, -2.5, 0.0])
    kinds = {"F16": values.astype("<f2"), "F64": values.astype("<f8")}
    kinds["BF16"] = np.asarray([0x3F80, 0xC020, 0], dtype="<u2")
    for kind, data in kinds.items():
        told = {"w": {"dtype": kind, "shape": [3], "data_offsets": [0, data.nbytes]}}
        header = json.dumps(told).encode()
        path = tmp_path / "w.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header + data.tobytes())
        (weight,) = read_weights(path)
        assert weight.values == [1.0, -2.5, 0.0], kind


def test_broken_and_unfinished_runs_have_pages(run: Path) -> None:
    (run / "status.json").write_text(json.dumps({"state": "running", "step": 2, "total_steps": 9}))
    (run / "artifacts/evals/classification/test.json").write_text("{half")
    (run / "checkpoints/step_000002/model.safetensors").write_bytes(b"short")
    html = write_report(run).read_text()
    assert "2 of 9" in html
    assert "classification/test.json cannot be read" in html
    assert 'id="examples"' in html, "the other split is still shown"
    assert 'id="weights"' not in html
