"""The recall study outlives its run directories: what is in its file is shown and not run again."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LABELS = ("titan_lmm", "gated_delta")


@pytest.fixture
def recall(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import recall

    monkeypatch.setattr(recall, "overrides", lambda label, task: ())
    return recall


def finished(root: Path, name: str, accuracy: list[float]) -> None:
    run = root / name
    run.mkdir(parents=True)
    rows = [
        {"split": "val", "step": 50 * (i + 1), "accuracy": value}
        for i, value in enumerate(accuracy)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    final = {"final": {}, "parameters": 1000, "tokens": 1, "seconds": 2.0}
    (run / "summary.json").write_text(json.dumps(final))
    (run / "meta.json").write_text(json.dumps({"git": {"sha": "0123456789"}}))
    (run / "status.json").write_text(json.dumps({"state": "done"}))
    (run / "config.yaml").write_text("name: x\n")
    (root / f"{name}.usage.json").write_text(json.dumps({"cpu_seconds": 3.0}))


def call(recall: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *words: str) -> str:
    places = ("--root", str(tmp_path / "runs"), "--output", str(tmp_path / "recall.md"))
    what = ("--pairs", "8", "--steps", "400", "--seeds", "2", "--labels", *LABELS)
    monkeypatch.setattr(sys, "argv", ["recall.py", *what, *places, *words])
    sys.modules["study"].result.cache_clear()
    assert recall.main() == 0
    return (tmp_path / "recall.md").read_text()


def test_runs_are_gathered_and_kept_without_their_directories(
    recall: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(tmp_path / "runs", "titan_lmm-p8-n400-s0", [0.1, 0.6, 0.9])
    finished(tmp_path / "runs", "gated_delta-p8-n400-s0", [0.1, 0.2, 0.25])
    first = call(recall, monkeypatch, tmp_path, "--report-only")
    titan = "| titan_lmm | 1,000 | 1 of 2 | 0.900 | 0.900 | 100 | 3 |"
    assert titan in first
    assert first.index(titan) < first.index("| gated_delta | 1,000 | 1 of 2 | 0.250 | 0.250 | - |")
    assert "0123456" in first

    (tmp_path / "runs").rename(tmp_path / "gone")
    asked: list[str] = []
    monkeypatch.setattr(
        "study.run_cells", lambda cells, root, **_: asked.extend(cell.name for cell in cells)
    )
    assert call(recall, monkeypatch, tmp_path) == first
    assert asked == ["titan_lmm-p8-n400-s1", "gated_delta-p8-n400-s1"]

    finished(tmp_path / "runs", "titan_lmm-p8-n400-s1", [0.2, 0.4, 1.0])
    assert "| 2 of 2 | 0.950 +- 0.635 | 0.900, 1.000 | 100, 150 |" in call(
        recall, monkeypatch, tmp_path, "--report-only"
    )


def test_a_line_survives_writing_and_reading(recall: Any, tmp_path: Path) -> None:
    from recall_runs import Key, Line
    from study_lines import read, write

    lines = {
        Key("titan_lmm", 16, 2000, 3): Line(10, "abc", 1.5, (50, 100), (0.25, 0.5)),
        Key("gru", 8, 400, 0): Line(11, "unknown", math.nan, (50,), (0.125,)),
    }
    path = tmp_path / "a" / "runs.csv"
    assert read(path, Key, Line) == {}
    write(path, lines)
    found = read(path, Key, Line)
    assert math.isnan(found[Key("gru", 8, 400, 0)].cpu_seconds)
    assert repr(found) == repr({key: lines[key] for key in sorted(lines)})


def test_a_file_of_another_version_is_refused(
    recall: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from recall_runs import Key, Line
    from study_lines import read

    path = tmp_path / "runs.csv"
    path.write_text("label,pairs,steps,seed,parameters\n")
    with pytest.raises(SystemExit, match="2"):
        read(path, Key, Line)
    said = capsys.readouterr().err
    assert "runs.csv: columns label, pairs, steps, seed, parameters; this study writes" in said
    assert "cpu_seconds, at, accuracy. Remove the file" in said
