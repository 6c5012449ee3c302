"""The page on components: from sweeps whole, partial, of unequal budgets, or not there."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from nl.run import RunDir

HERE = Path(__file__).resolve().parent
BENCHMARKS = HERE.parents[1] / "benchmarks"
PARTS = ("read", "floor", "synthetic", "memory", "real")
NAMES = ("a", "b", "c")
WINDOWS, POSITIONS = 24, 40


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ergodic() -> ModuleType:
    for name in ("study", *(f"ergodic_{part}" for part in PARTS)):
        load(BENCHMARKS / f"{name}.py")
    return load(BENCHMARKS / "ergodic.py")


@pytest.fixture(scope="module")
def simulated() -> ModuleType:
    return load(HERE / "report" / "scaling" / "simulated.py")


def finish(home: Path, *, seed: int, tokens: int = 1000, block: str = "transformer") -> None:
    """The files of a run that ended, but for its losses."""
    run = RunDir.create(home)
    run.config.write_text(yaml.safe_dump({"seed": seed, "model": {"block": block}}))
    run.meta.write_text(json.dumps({"git": {"sha": "0123456789"}}))
    facts = {"parameters": 5000, "steps": 10, "tokens": tokens, "seconds": 1.0, "final": {}}
    run.summary.write_text(json.dumps(facts))
    run.write_status("done", 10, 10)
    run.release()
    home.with_name(f"{home.name}.job.json").write_text(json.dumps({"cpu_seconds": 6.0}))


def keep(home: Path, evaluator: str, page: dict[str, Any]) -> Path:
    folder = home / "artifacts" / "evals" / evaluator
    folder.mkdir(parents=True)
    told = {"details": page, "failures": []}
    folder.with_suffix(".json").write_text(json.dumps(told))
    return folder / "nll.safetensors"


def results(root: Path, rows: list[tuple[str, str]]) -> None:
    """``results.jsonl`` of (directory, block)."""
    lines = [{"run_dir": name, "column/model": block, "status": "missing"} for name, block in rows]
    root.mkdir(parents=True, exist_ok=True)
    (root / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))


def known(simulated: ModuleType, k: int, seed: int, slow: float) -> Any:
    """Losses of a model of K known sources: the price of K falls with context."""
    rng = np.random.default_rng([k, seed, int(10 * slow)])
    world = simulated.World(
        documents=WINDOWS, positions=POSITIONS, seeds=1, document=0.0, seed=0.0, cell=0.0
    )
    codes = tuple(range(k))
    losses = next(one for one in world.runs(rng) if one.subset == codes)
    t = np.arange(POSITIONS)
    shape = losses.nll.shape
    exact = 0.1 * np.log(k) * np.exp(-t / 5.0)[None] + rng.normal(0, 1e-4, shape)
    kl = 0.002 * (1 + 0.2 * seed) + slow * np.log(k) * np.exp(-t / 9.0)[None]
    kl = kl + np.abs(rng.normal(0, 1e-3, shape))
    exact_columns = {
        "bayes_kl": kl,
        "bayes_entropy": 1.0 + exact,
        "bayes_nll": 1.0 + exact,
        "own_kl": kl + exact,
        "own_nll": np.ones(shape),
        "posterior": np.full(shape, 0.5),
    }
    return replace(losses, nll=1.0 + exact + kl, seed=0, exact=exact_columns)


def synthetic_sweep(root: Path, simulated: ModuleType, *, tokens: int = 1000) -> None:
    rows = []
    for block, slow in (("fast", 0.01), ("slow", 0.05)):
        for k, seed in itertools.product((1, 2, 3), range(3)):
            name = f"k{k}_{block}/seed_{seed}"
            rows.append((name, block))
            if (block, k, seed) == ("slow", 3, 2):
                continue  # not run yet
            last = (block, k, seed) == ("slow", 3, 1)
            finish(root / name, seed=seed, block=block, tokens=tokens if last else 1000)
            page = {"exact": {"entropy": [1.5, 1.0 + 0.1 * float(np.log(k))]}}
            path = keep(root / name, "floor", page)
            losses = known(simulated, k, seed, slow)
            simulated.write(path, losses, order="mixture", hazard=0.0)
            coins = zip(losses.components, (0.1, 0.5, 0.9), strict=True)
            sources = {name: [[[1 - p]], [[p]]] for name, p in coins}
            path.with_name("sources.json").write_text(json.dumps(sources))
            if block == "slow":
                more = {**losses.exact, "bayes_kl": losses.exact["bayes_kl"] + 0.01}
                frozen = replace(losses, exact=more)
                simulated.write(path.with_name("nll_frozen.safetensors"), frozen, hazard=0.0)
    results(root, rows)


def switching_sweep(root: Path, simulated: ModuleType) -> None:
    rng = np.random.default_rng(0)
    where = (np.cumsum(rng.random((3 * WINDOWS, POSITIONS)) < 0.1, 1) % 3).astype(np.int64)
    for seed in range(3):
        home = root / f"slow/seed_{seed}"
        finish(home, seed=seed, block="slow")
        path = keep(home, "floor", {})
        losses = replace(known(simulated, 3, seed, 0.02), component=where[:, 0])
        losses = replace(losses, counted={"component_at": where})
        for name, lift in (("nll", 0.0), ("nll_frozen", 0.02)):
            exact = {**losses.exact, "bayes_kl": losses.exact["bayes_kl"] + lift}
            simulated.write(
                path.with_name(f"{name}.safetensors"), replace(losses, exact=exact), hazard=0.1
            )
    results(root, [(f"slow/seed_{seed}", "slow") for seed in range(3)])


def real_sweep(root: Path, simulated: ModuleType, **labels: Any) -> None:
    world = simulated.World(positions=99, windows=2, seeds=1, token=1.0, seed=0.0)
    rows = []
    for losses in world.runs(np.random.default_rng(1)):
        name = f"k{len(losses.subset)}_{'_'.join(losses.trained_on)}_transformer/seed_0"
        rows.append((name, "transformer"))
        finish(root / name, seed=0)
        path = keep(root / name, "windows", {})
        sized = replace(losses, counted={"bytes": np.full(losses.nll.shape, 4)})
        budget = dict.fromkeys(losses.trained_on, 60 // len(losses.subset))
        simulated.write(path, sized, budget=budget, **labels)
    results(root, rows)


def written(ergodic: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, Path]:
    page = root / "page" / "ergodic.md"
    typed = ["x", "--root", str(root), "--output", str(page), "--report-only"]
    monkeypatch.setattr(sys, "argv", typed)
    monkeypatch.setattr(sys.modules["study"], "draw", lambda figure: f"<svg>{figure.title}</svg>")
    for module in ("ergodic_synthetic", "ergodic_memory", "ergodic_real"):
        monkeypatch.setattr(sys.modules[module], "DRAWS", 60)
    return ergodic.main(), page


def line_of(text: str, start: str) -> list[str]:
    """Cells of the first row of a table that begins so."""
    found = next(line for line in text.splitlines() if line.startswith(start))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_page_of_all_three_sweeps(
    ergodic: ModuleType, simulated: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthetic_sweep(tmp_path / "ergodic_synthetic", simulated)
    switching_sweep(tmp_path / "ergodic_switching", simulated)
    real_sweep(tmp_path / "ergodic_k", simulated)
    real_sweep(tmp_path / "ergodic_k_permuted", simulated, labels="permuted", label_seed=3)
    code, page = written(ergodic, tmp_path, monkeypatch)
    text, control = page.read_text().split("### Control: labels permuted")
    assert code == 0
    assert "`stream.labels=permuted`, `stream.label_seed=3`" in control
    plain = next(line for line in text.splitlines() if line.startswith("| 3 | 1 | 1 (too few"))
    assert line_of(control, "| 3 | 1 (too few")[2] == plain.strip("|").split("|")[6].strip()
    assert "**Missing runs (1):** 1 of `k3_slow` (missing)." in text
    # dXE: own_kl is kl + price, both means over 40 positions; K = 3 against 1 on component a.
    t = np.arange(POSITIONS)
    for block, slow in (("fast", 0.01), ("slow", 0.05)):
        rise = np.log(3) * float((0.1 * np.exp(-t / 5) + slow * np.exp(-t / 9)).mean())
        shown = line_of(text, f"| {block} | 3 | 1 |")[8]
        assert float(shown.split()[0]) == pytest.approx(rise, abs=5e-4)
    assert line_of(text, "| fast | 3 | 1 |")[3] == "3"
    assert line_of(text, "| slow | 3 | 1 |")[3] == "2 (too few: documents alone)"
    assert "- fast: XE rises from K = 1 to 3, by" in text
    assert "(fewer than three seeds: documents alone) nats" not in text
    exact = line_of(text, "| 3 | exact predictor |")
    assert float(exact[2]) < np.log(3)
    assert "never" in line_of(text, "| 3 | slow |")[5] or float(exact[5]) > 1
    gap = line_of(text, "| slow | frozen | 2 (too few")[4]
    assert gap.startswith("0.400 [0.400")
    assert line_of(text, "| slow | frozen | 3 |")[4].startswith("0.800 [0.800")
    assert "Subsets without a run: none." in text
    assert "**1 seed per subset: intervals are over documents alone" in text
    assert "7 runs (commits 0123456)" in text
    assert "60 windows of training text" in text
    drawn = {path.name for path in page.parent.glob("*.svg")}
    assert {"ergodic_dxe.svg", "ergodic_price_k3.svg", "ergodic_transfer.svg"} <= drawn
    assert {"ergodic_since_change.svg", "ergodic_switching_slow.svg"} <= drawn
    assert {path.with_suffix(".csv").name for path in page.parent.glob("*.svg")} == {
        path.name for path in page.parent.glob("*.csv")
    }
    assert str(tmp_path) not in text


def test_the_exact_predictor_pays_what_flips_say(
    ergodic: ModuleType, simulated: ModuleType, tmp_path: Path
) -> None:
    synthetic_sweep(tmp_path / "ergodic_synthetic", simulated)
    sweep = sys.modules["ergodic_read"].read(tmp_path / "ergodic_synthetic", "floor")
    run = sys.modules["ergodic_floor"].floor_of(sweep, 3)
    paid = sys.modules["ergodic_floor"].prices(run)
    # Coins .1, .5, .9: entropy .693147 of a first flip, .447771 of one whose coin is known.
    assert paid[:, 0].mean() == pytest.approx(0.693147 - 0.447771, abs=1e-6)
    assert paid[:, :16].mean(0).sum() == pytest.approx(0.997909, abs=0.025)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (
            lambda root, simulated: synthetic_sweep(
                root / "ergodic_synthetic", simulated, tokens=999
            ),
            r"unequal budgets cannot be compared \(10 steps, 1000 tokens, None windows: 16 .*"
            r"10 steps, 999 tokens, None windows: 1 runs",
        ),
        (
            lambda root, simulated: real_sweep(
                root / "ergodic_k", simulated, labels="permuted", label_seed=3
            ),
            "stream.labels: permuted; observed wanted here",
        ),
    ],
    ids=["unequal budgets", "permuted labels"],
)
def test_what_cannot_be_compared_is_refused(
    ergodic: ModuleType,
    simulated: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    broken: Callable[[Path, ModuleType], None],
    words: str,
) -> None:
    broken(tmp_path, simulated)
    code, page = written(ergodic, tmp_path, monkeypatch)
    assert (code, page.exists()) == (2, False)
    assert re.search(words, capsys.readouterr().err)


def test_page_without_runs(
    ergodic: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, page = written(ergodic, tmp_path, monkeypatch)
    assert code == 0
    assert page.read_text().count("is finished.") == 4
