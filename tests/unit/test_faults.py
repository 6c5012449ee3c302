"""The fault campaign counts what it sees: a few quick rows, and a planted failure."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def faults(tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, as the script finds its neighbours; parts are registered once per process."""
    monkeypatch.setitem(sys.modules, "tiny", tiny)
    for folder in ("benchmarks", "tests/resume"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    return importlib.import_module("faults")


def test_quick_rows_of_the_campaign(tmp_path: Path) -> None:
    output = tmp_path / "page"
    command = [sys.executable, str(ROOT / "benchmarks" / "faults.py"), "--share", "0.1"]
    command += ["--rows", "5", "6", "24", "22", "31", "32", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    rows = json.loads(output.with_suffix(".json").read_text())["rows"]
    assert [(r["row"], r["trials"], r["passed"]) for r in rows] == [
        (5, 3, 3),
        (6, 50, 50),
        (22, 0, 0),
        (24, 5, 5),
        (31, 0, 0),
        (32, 1, 1),
    ]
    text = output.with_suffix(".md").read_text()
    assert (
        "| 6 | one bit flipped | named, previous checkpoint taken | 500 | 50 | 50 | < 0.06 |"
        in text
    )
    assert "Row 22: " in text
    assert text.endswith("## Failures\n\nNone.\n")


def test_a_failure_is_counted_and_shown(
    faults: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {99: faults.Row("planted", 4, "none", lambda ground, n: ["", "broke", "", ""][:n])}
    monkeypatch.setattr(faults, "ROWS", rows)
    ground = type("Ground", (), {"share": 1.0})()
    result = faults.measure(99, ground)
    assert (result.trials, result.passed, result.bound) == (4, 3, "failed")
    assert "- Row 99: broke" in faults.page([result], 1.0, 0)


def test_rows_of_an_earlier_call_stay(faults: ModuleType, tmp_path: Path) -> None:
    def result(row: int, passed: int) -> Any:
        return faults.Result(row, "fault", "must", 4, 4, passed, 0.1, "")

    for share, results in ((1.0, [result(2, 3), result(5, 4)]), (1.0, [result(2, 4)])):
        faults.write(tmp_path / "page", results, share, 0)
    rows = json.loads((tmp_path / "page.json").read_text())["rows"]
    assert [(r["row"], r["passed"]) for r in rows] == [(2, 4), (5, 4)]
    faults.write(tmp_path / "page", [result(9, 4)], 0.1, 0)
    assert len(json.loads((tmp_path / "page.json").read_text())["rows"]) == 1


def test_every_row_of_the_specification_has_a_place(faults: ModuleType) -> None:
    rows = faults.ROWS
    assert sorted(rows) == list(range(1, 36))
    for row in rows.values():
        assert row.run or row.tests or row.note
        for node in row.tests:
            assert (ROOT / node.partition("::")[0]).exists()
            name = node.partition("::")[2]
            assert f"def {name}" in (ROOT / node.partition("::")[0]).read_text() if name else True
    assert os.environ["OMP_NUM_THREADS"] == "1"
