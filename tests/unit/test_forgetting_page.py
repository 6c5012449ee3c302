"""The page on forgetting (benchmarks/forgetting.py): what is compared, what is called better."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nl.config import structure
from nl.eval.continual_summary import Interval, interval
from nl.eval.sequential import ContinualPlan, Measured, Results

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def load(name: str) -> ModuleType:
    """A module of the benchmarks folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def forgetting() -> ModuleType:
    load("study")
    return load("forgetting")


PLAN: dict[str, Any] = {
    "path": "x",
    "phases": [{"domain": "a", "steps": 2}, {"domain": "b", "steps": 2}],
    "models": {"transformer": [], "hope": [], "hope_unwritten": []},
    "methods": {"naive": {}, "replay": {"stream": "replay"}, "joint": {"order": "joint"}},
    "seeds": [0, 1, 2],
}


def one(model: str, method: str, seed: int, first: float, written: float | None = None) -> Measured:
    """Loss ``first`` on the first segment at the end, one nat less with memories written."""
    off = [[5.0, 5.0], [2.0, 4.0], [first + seed / 100, 2.0]]
    values: dict[Any, Any] = {"off": off}
    values["context"] = off if written is None else [[5.0, 5.0], [2.0, 4.0], [written, 2.0]]
    order = "joint" if method == "joint" else "sequential"
    return Measured(model, method, seed, order, (f"r{seed}",), 1000, 10.0 + seed, values)


@pytest.fixture
def result() -> Results:
    found = [one("transformer", "naive", seed, 4.0) for seed in range(3)]
    found += [one("transformer", "replay", seed, 2.5) for seed in range(3)]
    found += [one("transformer", "joint", seed, 2.0) for seed in range(3)]
    found += [one("hope", "naive", seed, 5.0, 3.0 + seed) for seed in range(3)]
    found += [one("hope_unwritten", "naive", 0, 3.0, 3.0)]
    return Results(structure(ContinualPlan, PLAN, ""), tuple(found))


def test_a_winner_is_named_where_the_interval_says_so(forgetting: ModuleType) -> None:
    assert forgetting.verdict(interval([-1.0, -1.1, -0.9])) == "better"
    assert forgetting.verdict(interval([1.0, 1.1, 0.9])) == "worse"
    assert forgetting.verdict(interval([-1.0, 1.1, -0.9])) == "not decided"
    assert forgetting.verdict(Interval(-1.0, 0.1, 0.1, 2)) == "n = 2"


def test_rows_and_pairs(forgetting: ModuleType, result: Results) -> None:
    rows = forgetting.rows_of(result)
    names = [row.name for row in rows]
    assert names[:4] == [
        "transformer, naive",  # its modes are equal: one row
        "transformer, replay",
        "transformer, joint",
        "hope, naive",
    ]
    assert names[4] == "hope, naive, written"
    pairs = [(a.name, b.name) for a, b in forgetting.comparisons(rows)]
    assert ("transformer, replay", "transformer, naive") in pairs
    assert ("hope, naive, written", "hope, naive") in pairs
    assert ("hope, naive, written", "hope_unwritten, naive") in pairs
    assert ("hope, naive, written", "transformer, replay") in pairs
    assert not any("joint" in name for pair in pairs for name in pair)
    assert len(set(pairs)) == len(pairs)


def test_the_page(forgetting: ModuleType, result: Results, tmp_path: Path) -> None:
    args = argparse.Namespace(
        output=tmp_path / "f.md", plan="p.yaml", root=tmp_path, classes=[], report_only=True
    )
    record = json.loads(json.dumps(result.as_data()))
    text = "\n".join(forgetting.page(args, result, record))
    # Forgetting is 4.00, 4.01, 4.02 minus 2; replay is 1.5 below it, seed by seed.
    assert "| transformer, naive | 1,000 | 3 | 3.005 +- 0.012 |" in text
    line = "| transformer, replay - transformer, naive | -0.750 +- 0.000, better | -1.500 +- 0.000"
    assert line in text
    assert "- forgetting, best first: transformer, replay 0.51 +- 0.02; " in text
    assert "hope, naive, written - transformer, naive | -0.005 +- 1.230, not decided" in text
    assert "hope_unwritten, naive - transformer, naive | -0.500, n = 1" in text
    for kind in ("matrix", "curves"):
        for mode in ("off", "context"):
            name = f"f_{kind}_{mode}.png"
            assert name in text
            assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
