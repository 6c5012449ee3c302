"""The page of benchmarks/peers.py says which gates hold, and when a run does not count."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def speed_page(repo: Path) -> ModuleType:
    source = repo / "benchmarks" / "speed_page.py"
    spec = importlib.util.spec_from_file_location("speed_page", source)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["speed_page"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(name: str, measured: float, gate: float | None, **more: Any) -> dict[str, Any]:
    return {
        "group": "g",
        "row": name,
        "ours": "ours",
        "other": "peer",
        "measured": measured,
        "min": measured / 2,
        "max": measured * 2,
        "gate": gate,
        **more,
    }


def result(**changes: Any) -> dict[str, Any]:
    rows = [
        row("fast", 3.0, 2.0),
        row("slow", 1.0, 2.0),
        row("small", 1.2, 1.5, below=True),
        row("large", 2.0, 1.5, below=True),
        row("shown", 0.5, None),
    ]
    return {
        "command": "bash benchmarks/peers.sh",
        "rows": rows,
        "rounds": 5,
        "quick": False,
        "gemm_gflops": [90.0, 91.0],
        "steady": True,
        "load": [0.1, None],
        "minutes": 1.0,
        "peers": {"peer": "1"},
        "git": {"sha": "a" * 40, "dirty": False},
        "torch": "2",
        "python": "3",
        "clock": "process",
        "cpu_flags": ["avx2"],
        **changes,
    }


def test_gates_hold_above_or_below(speed_page: ModuleType) -> None:
    text = speed_page.page(result(), "speed")
    assert "2 of 4 gates hold" in text
    lines = {
        line.split("|")[1].strip(): line for line in text.splitlines() if "| ours | peer |" in line
    }
    assert {name: line.endswith("| yes |") for name, line in lines.items()} == {
        "fast": True,
        "slow": False,
        "small": True,
        "large": False,
        "shown": False,
    }
    assert "this run does not count" not in text
    assert "Not to be quoted" not in text


def test_runs_that_do_not_count_say_so(speed_page: ModuleType) -> None:
    assert "this run does not count" in speed_page.page(result(steady=False), "speed")
    assert "Not to be quoted" in speed_page.page(result(quick=True), "speed")


def test_the_picture_shows_gated_rows_relative_to_their_gate(speed_page: ModuleType) -> None:
    compiled = row("fast", 3.0, 2.0, ours="ours, compiled", min=2.0, max=3.0)
    named = row("large model", 2.0, 1.5, ours="large model", min=None, max=None)
    dots = speed_page.picture(result(rows=[*result()["rows"], compiled, named])).rows
    assert [dot.value > 0 for dot in dots] == [True, False, True, False, True, True]
    assert all(dot.sides == pytest.approx((1.0, 1.0)) for dot in dots[:4])
    assert dots[4].sides == pytest.approx((math.log2(1.5), 0.0))
    assert math.isnan(dots[5].sides[0])
    names = ["fast", "slow", "small", "large", "fast (ours, compiled)", "large model"]
    assert [dot.name for dot in dots] == names
