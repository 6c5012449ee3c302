"""What the data benchmarks take for the truth, and how they count."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nl.data.prep.dedup_signatures import jaccard, shingles
from tests.unit.test_study import load


@pytest.fixture(scope="module")
def planted() -> ModuleType:
    load("data_chain")
    return load("data_planted")


def test_the_later_of_two_equal_documents_is_the_duplicate(planted: ModuleType) -> None:
    def item(kind: str, original: int = -1) -> object:
        return planted.Item(kind, b"", "", original)

    items = [item("exact", 3), item("clean", 7), item("short"), item("clean", 3), item("near", 7)]
    assert planted.truth(items) == {0: "clean", 1: "clean", 2: "short", 3: "exact", 4: "near"}


def test_precision_and_recall(planted: ModuleType) -> None:
    fate = {0: "clean", 1: "short", 2: "short", 3: "exact", 4: "near"}
    rows = planted.score(fate, {0: "too_short", 1: "too_short", 3: "near_duplicate"})
    found = {row["step"]: row for row in rows}
    assert (found["short"]["precision"], found["short"]["recall"]) == (0.5, 0.5)
    assert found["short"]["missed"] == {"kept": 1}
    assert found["short"]["wrong"] == {"clean": 1}
    assert (found["exact"]["precision"], found["exact"]["recall"]) == (None, 0.0)
    assert found["near"]["wrong"] == {"exact": 1}


@pytest.mark.parametrize("scattered", [False, True])
def test_near_duplicates_are_as_similar_as_said(planted: ModuleType, scattered: bool) -> None:
    draw = random.Random(2)
    text = " ".join(f"w{draw.randrange(4000)}" for _ in range(500))
    other, similarity = planted.near(text, draw, scattered)
    assert 0.80 <= similarity <= 0.95
    assert jaccard(shingles(text, 5), shingles(other, 5)) == similarity


@pytest.mark.slow
def test_a_small_planting_is_found(
    planted: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"exact": 20, "near": 8, "language": 10, "short": 5, "broken": 4, "huge": 2}
    monkeypatch.setattr(planted, "PLANTED", small)
    monkeypatch.setattr(planted, "TOTAL", 100)
    output = tmp_path / "planted.json"
    monkeypatch.setattr(sys, "argv", ["x", "--output", str(output)])
    planted.main()
    result = json.loads(output.read_text())
    assert result["adds_up"]
    for row in result["rows"]:
        assert row["recall"] == 1.0 or row["step"] == "near"
        assert row["wrong"].get("clean", 0) <= 1
    assert {row["split"] for row in result["leaks"]} == {"val", "test"}
    assert all(row["near"] == 0 for row in result["leaks"])


def test_the_memory_of_what_a_stage_starts_is_seen() -> None:
    """A process of a process, with its peak."""
    load("data_chain")
    memory = load("data_memory")
    inner = "import sys; x = bytearray(64 << 20); print(len(x), flush=True); sys.stdin.read()"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    command = [sys.executable, "-c", outer]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().split() == [b"67108864"]
        found = [memory.peak(pid) for pid in memory.below(process.pid)]
        assert len(found) == 1
        assert found[0] > 64 << 10 > memory.peak(process.pid)
        assert process.pid in memory.below(os.getpid())
        process.communicate(timeout=300)
    assert memory.peak(process.pid) == 0
