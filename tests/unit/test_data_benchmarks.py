"""What the data benchmarks take for the truth, and how they count."""

from __future__ import annotations

import json
import random
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
