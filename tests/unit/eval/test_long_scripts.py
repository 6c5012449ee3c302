"""passkey.py, niah.py --scoring generate and plot_niah.py on a tiny run."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from nl.eval.puzzles import PLACES
from tests.unit.eval.scripted import call


def test_passkey_and_its_picture(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "passkey.json"
    flags = ["--checkpoint", run, "--output", out, "--samples", 3, "--memorize", "off", "context"]
    assert call(monkeypatch, "passkey", *flags, "--filler-sentences", 30) == 0
    rows = json.loads(out.read_text())["rows"]
    chosen = [r for r in rows if r["metric"] == "choice_accuracy"]
    assert {r["task"] for r in chosen} == {"passkey-noise/330/0.5"}
    assert {r["memorize"] for r in chosen} == {"off", "context"}
    assert {(r["chance"], r["n"]) for r in chosen} == {(0.5, 3)}
    picture = tmp_path / "passkey.png"
    assert call(monkeypatch, "plot_niah", out, "--names", "tiny", "--output", picture) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    cells = list(csv.DictReader(picture.with_suffix(".csv").read_text().splitlines()))
    told = {f"tiny, memory {r['memorize']}": r["value"] for r in chosen}
    assert {c["map"]: float(c["choice accuracy"]) for c in cells} == told
    assert all(0 <= float(c["low"]) <= float(c["high"]) <= 1 and c["n"] == "3" for c in cells)
    capsys.readouterr()
    assert call(monkeypatch, "plot_niah", out, "--output", tmp_path / "x.svg") == 2
    assert call(monkeypatch, "plot_niah", out, "--names", "a", "b") == 2
    assert "--names: 2 for 1 inputs" in capsys.readouterr().err


def test_answers_can_be_generated(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "niah.json"
    flags = ["--checkpoint", run, "--output", out, "--samples-per-length", 2, "--depths", 0.5]
    flags += ["--context-lengths", 300, "--task", "facts2", "--candidates", 4, "--keys", 2]
    assert call(monkeypatch, "niah", *flags, "--scoring", "generate") == 0
    metrics = {row["metric"] for row in json.loads(out.read_text())["rows"]}
    assert {"generated_match", "generated_share"} <= metrics
    assert "choice_accuracy" not in metrics
    rows = json.loads(out.read_text())["rows"]
    assert {r["chance"] for r in rows if r["metric"] == "generated_match"} == {1 / len(PLACES)}
    written = json.loads(next((tmp_path / "niah").glob("written_*off_300_0.5.json")).read_text())
    assert len(written) == 2
    assert written[0].keys() >= {"answer", "text", "exact", "share"}
