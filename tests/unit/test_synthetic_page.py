"""The page of the core suite says what the runs say: who leads, what overlaps, what is missing."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MIXERS = ("transformer", "gated_delta", "titan_lmm")
CASES = {"test": 24, "double": 48, "fourfold": 96}


@pytest.fixture
def synthetic(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import synthetic
    import synthetic_cells

    synthetic_cells.read.cache_clear()
    return synthetic


def reading(accuracy: float, *, chance: float = 0.25, state: int = 100) -> dict[str, Any]:
    memory = {"path": "titan", "layer": 0, "writes": 3, "added": 0.5}
    slices = {"2": {"accuracy": 0.5}, "4": {"accuracy": accuracy + 0.05}}
    return {
        "accuracy": accuracy,
        "exact": accuracy / 2,
        "nll": 1.0,
        "score": (accuracy - chance) / (1 - chance),
        "state_bytes": state,
        "memories": [memory],
        "errors": 10,
        "mistakes": {"stale value": 4, "out of context": 6},
        "slices": {"tokens since switch": slices},
    }


def probe(mixer: str, accuracy: float) -> dict[str, Any]:
    case = {"chance": 0.25, "oracle": 1.0, "shortcuts": {"last value": 0.4, "other": 0.3}}
    found: dict[str, Any] = {}
    for name, length in CASES.items():
        bytes_ = 1000 * length if mixer == "transformer" else 12000
        found[name] = {**case, "length": length, "on": reading(accuracy, state=bytes_)}
    if mixer != "transformer":
        found["test"] |= {"frozen": reading(0.25), "reset": reading(0.3)}
    return {"details": {**found, "process": {"cpu_seconds": 5.0}}}


def run(home: Path, mixer: str, accuracy: float) -> None:
    evals = home / "artifacts/evals"
    evals.mkdir(parents=True)
    files = {
        "meta.json": {"git": {"sha": "abcdef1234"}},
        "status.json": {"state": "done"},
        "summary.json": {"parameters": 1000, "seconds": 4.0},
        "artifacts/evals/probe.json": probe(mixer, accuracy),
        "artifacts/evals/phases.json": {
            "details": {"on": {"accuracy": [[0.0, 0.1], [0.9, 0.2], [0.3, 1.0]]}}
        },
    }
    (home / "config.yaml").write_text("{}")
    for name, data in files.items():
        (home / name).write_text(json.dumps(data))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    root = tmp_path / "nl_core"
    tasks = ("mqar", "mqar_update", "nonstat_online", "cl_remap")
    level = {"transformer": 0.5, "gated_delta": 0.9, "titan_lmm": 0.7}
    for task in tasks:
        for mixer in MIXERS:
            for seed in range(3):
                if (task, mixer, seed) != ("cl_remap", "titan_lmm", 2):
                    wide = 0.3 if (task, mixer) == ("mqar_update", "titan_lmm") else 0.01
                    home = root / f"{task}_{mixer}" / f"seed_{seed}"
                    run(home, mixer, level[mixer] + wide * (seed - 1))
    axes = {
        axis: [{"name": n} for n in names] for axis, names in (("task", tasks), ("model", MIXERS))
    }
    (root / "sweep.yaml").write_text(yaml.safe_dump({"n_seeds": 3, "axes": axes}))
    (root / "time.txt").write_text("done\n\nreal\t1m0.5s\nuser\t1m2.5s\nsys\t0m1.5s\n")
    return root


def test_the_page(
    synthetic: Any, sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "reports/synthetic.md"
    words = ["synthetic.py", "--root", str(sweep), "--output", str(page), "--width", str(sweep)]
    monkeypatch.setattr(sys, "argv", words)
    assert synthetic.main() == 0
    text = page.read_text()
    assert "Runs: 35 done, 1 missing. Not done: 1 of cl_remap." in text
    assert "| mqar | 0.25 | 1.00 | 0.40 (last value) | 0.50 +- 0.02 | 0.90 +- 0.02 |" in text
    assert "- recall (2 tasks): gated_delta with a score of 0.87 +- 0.03;" in text
    assert "the intervals of titan_lmm meet its own" in text
    assert "- state: no mixer has finished all of its tasks." in text
    line = next(line for line in text.splitlines() if line.startswith("- titan_lmm: above"))
    below = "above in 0 tasks; **below in 3**: mqar (-0.20 to gated_delta), nonstat_online"
    assert below in line
    assert "undecided in 1: mqar_update (-0.20 to gated_delta)." in line
    assert "| mqar | 0.90 / 0.25 / 0.30 | 0.70 / 0.25 / 0.30 |" in text
    assert "| transformer | 24,000 | 48,000 | 96,000 |" in text
    assert "of gated_delta after 12 tokens, of titan_lmm after 12 tokens" in text
    assert "| gated_delta | 0.65 +- 0.00 | 0.95 +- 0.00 | 0.60 +- 0.00 | -0.60 +- 0.00 |" in text
    assert "transformer never, gated_delta from 4 tokens on, titan_lmm never." in text
    assert "| titan_lmm | 30 | 0.40 | 0.60 |" in text
    assert "| gated_delta | 0.90 +- 0.02 | 0.90 +- 0.02 | 1,000 |" in text
    assert "Of what a phase taught, its successors wiped out 67% (" in text
    assert "35 more runs, 175 CPU seconds" in text
    assert "35 runs took 175 CPU seconds" in text
    assert "nl_core 64 s" in text
    assert "No memory stayed unwritten." in text
    for name in ("scores", "state", "length_mqar"):
        assert f"(synthetic_{name}.svg)" in text
        assert (page.parent / f"synthetic_{name}.svg").read_text().startswith("<?xml")
        assert (page.parent / f"synthetic_{name}.csv").is_file()
    rows = (page.parent / "synthetic.csv").read_text().splitlines()
    assert len(rows) == 1 + 12 * 3 + 23 * 5


def test_a_dead_memory_and_a_failed_run_are_named(
    synthetic: Any, sweep: Path, tmp_path: Path
) -> None:
    home = sweep / "mqar_titan_lmm/seed_0"
    file = home / "artifacts/evals/probe.json"
    data = json.loads(file.read_text())
    data["details"]["test"]["on"]["memories"][0] |= {"writes": 0, "added": 0.0}
    file.write_text(json.dumps(data))
    (sweep / "mqar_gated_delta/seed_1/status.json").write_text('{"state": "failed"}')
    suite = synthetic.read((sweep,))
    text = "\n".join(synthetic.page(suite, tmp_path / "page.md"))
    assert "**Dead**: titan_lmm titan on mqar." in text
    assert "1 failed" in text
    assert "1 of mqar" in text


def test_what_was_trained_is_set_off_and_colours_that_come_again_have_another_mark() -> None:
    from nl.report.figures import SERIES, Figure, Line, draw

    line = Line("one", [1.0, 2.0], [0.5, 0.6])
    bare = draw(Figure("x", "x", [line]))
    shaded = draw(Figure("x", "x", [line], shaded=(0.0, 1.5)))
    assert len(shaded) > len(bare)
    assert "opacity: 0.6" in shaded
    assert "opacity: 0.6" not in bare
    again = draw(Figure("x", "x", [replace(line, colour=len(SERIES))]))
    assert SERIES[0] in again
    assert again != bare


def test_no_sweep_is_refused(
    synthetic: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["synthetic.py", "--root", str(tmp_path)])
    assert synthetic.main() == 2
    assert f"--root: {tmp_path}: no sweep there" in capsys.readouterr().err
