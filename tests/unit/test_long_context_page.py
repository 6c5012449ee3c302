"""The page on long context says what the files hold: claim, cells, chance, oracle, pictures."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LENGTHS, DEPTHS = (64, 128, 256, 512, 1024), (0.0, 0.25, 0.5, 0.75, 1.0)


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import long_context

    monkeypatch.setattr(sys, "argv", ["long_context.py", "--seeds", "1", "--report-only"])
    return long_context


def recorded(modes: dict[str, float]) -> dict[str, Any]:
    """What recall.py leaves, a share per mode; facts in the window are always known."""
    cells = [
        {
            "memorize": mode,
            "length": length,
            "depth": depth,
            "n": 100,
            "accuracy": 1.0 if depth == 1.0 else share,
            "low": share - 0.01,
            "high": share + 0.01,
            "nats": 0.1,
        }
        for mode, share in modes.items()
        for length in LENGTHS
        for depth in DEPTHS
    ]
    return {
        "cells": cells,
        "chance": 1 / 64,
        "oracle": {"accuracy": 1.0, "n": 2500, "low": 0.998, "high": 1.0},
        "train": {"seq_len": 128, "pairs": 12},
        "task": {"pairs": 12, "keys": 64, "noise": 64},
        "state": "State fresh per sample",
    }


def test_the_page_says_what_was_measured(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = {
        "titan_mal": {"off": 0.02, "context": 0.97},
        "sliding_window": {"off": 0.03},
        "transformer": {"off": 0.5},
    }
    for label, modes in shares.items():
        (tmp_path / f"{label}-s0.recall.json").write_text(json.dumps(recorded(modes)))

    def result(root: Path, name: str) -> Any:
        cpu = 60.0 if name.endswith("-short") else 180.0
        made = {"final": {"val/loss": 0.25}, "parameters": 700_000, "cpu_seconds": cpu}
        return Namespace(**made, tokens=1, seconds=1.0)

    monkeypatch.setattr(benchmark.study, "result", result)
    args = Namespace(
        root=tmp_path,
        output=tmp_path / "reports" / "long_context.md",
        seeds=1,
        labels=list(shares),
        notes=tmp_path / "notes.md",
    )
    args.notes.write_text("## Reading\n\nA note.\n")
    text = "\n".join(benchmark.page(args, benchmark.found(args)))
    assert "memory writing: at 256 tokens, twice the training length, 0.97 to 0.97" in text
    assert "memory off: at 256 tokens, twice the training length, 0.02 to 0.02" in text
    assert text.count("0.97 [0.96, 0.98]") == 5 * 4
    assert "| titan_mal | writing | 256 |" in text
    assert "| sliding_window | none | 1024 |" in text
    assert "| guessing a value | - | any | 0.016 |" in text
    assert "| looking the key up | - | any | 1.00 [1.00, 1.00] |" in text
    assert "| 700,000 | 0.250 | 4.0 |" in text
    assert "A note." in text
    svg = (tmp_path / "reports" / "long_context_s0.svg").read_text()
    assert svg.count(">0.97<") == 4 * 5
    table = (tmp_path / "reports" / "long_context_s0.csv").read_text().splitlines()
    assert len(table) == 1 + 4 * 25
    assert table[1].startswith('"titan_mal, memory writing",0,64,0.97')


def test_without_runs_the_page_says_so(benchmark: Any, tmp_path: Path) -> None:
    args = Namespace(root=tmp_path, seeds=1, labels=["titan_mal"], output=tmp_path / "p.md")
    assert "No finished run." in benchmark.page(args, benchmark.found(args))


def test_every_model_is_trained_in_two_parts(benchmark: Any, tmp_path: Path) -> None:
    args = Namespace(root=tmp_path)
    first, second = benchmark.cells(args, "sliding_window", 3)
    assert first.name == "sliding_window-s3-short"
    assert f"init_from={(tmp_path / first.name).resolve()}" in second.overrides
    shared = [o for o in first.overrides if o.startswith("model.")]
    assert set(shared) <= set(second.overrides)
    assert benchmark.study.refusal(first) is None
    assert benchmark.study.refusal(second) is None
