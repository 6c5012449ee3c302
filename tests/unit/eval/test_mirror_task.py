"""scripts/data/mirror_task.py saves what the harness reads, and says what it could not reach."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "data" / "mirror_task.py"
ROW = {"goal": "tie it", "sol1": "caf\u00e9", "sol2": "two\nlines", "label": 1}


def mirror(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return int(stop.value.code or 0)


def test_saves_the_scored_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def load(*what: Any, split: str) -> Any:
        asked.append((*what, split))
        return datasets.Dataset.from_list([ROW, ROW | {"label": 0}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert mirror(monkeypatch, "--tasks", "piqa", "--output-dir", tmp_path) == 0
    assert asked == [("baber/piqa", None, "validation")]
    lines = (tmp_path / "piqa" / "validation.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [ROW, ROW | {"label": 0}]
    assert "2 rows of baber/piqa" in capsys.readouterr().out
    assert mirror(monkeypatch, "--tasks", "boolq", "--output-dir", tmp_path) == 2
    assert "has no column 'passage'" in capsys.readouterr().err
    assert not (tmp_path / "boolq").exists()


def test_what_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mirror(monkeypatch, "--tasks", "piqa", "--output-dir", tmp_path) == 2
    error = capsys.readouterr().err
    assert "error: baber/piqa: split validation is neither cached nor reachable" in error
    assert error.count("\n") == 1
    assert mirror(monkeypatch, "--tasks", "piqua", "--output-dir", tmp_path) == 2
    assert "Did you mean 'piqa'" in capsys.readouterr().err
