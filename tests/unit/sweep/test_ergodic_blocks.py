"""Every block that the sweeps over components name takes a step at the size it would be run at."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml

from nl.assembly import launch
from nl.config.hydra import compose
from nl.data.documents import Document
from nl.data.prep.corpus import Work, write_corpus
from nl.data.prep.shard import shard_corpus
from nl.sweep.spec import Experiment, expand, read_spec

ROOT = Path(__file__).parents[3]
SWEEPS = ROOT / "configs/sweep"
SPEC = read_spec(SWEEPS / "ergodic_synthetic.yaml")
ONE = ["train.steps=1", "logging.every=1", "schedule.warmup=0", "seed=0"]
NAMES = ("asyncio", "email", "importlib", "multiprocessing", "xml")


def blocks() -> list[Experiment]:
    """The experiments of the largest K, one for each block."""
    found = [one for one in expand(SPEC) if one.columns["components"] == "k8"]
    assert [one.columns["model"] for one in found] == [
        *("transformer", "gated_delta", "quadratic_rnn", "titan_lmm"),
        *("hope_attention", "hope_selfmod", "sparse"),
    ]
    return found


STUDIED = ("transformer", "gated_delta", "hope_attention", "hope_selfmod")
"""Blocks whose runs on known sources the report shows."""
BLOCKS = [pytest.param(one, id=one.columns["model"]) for one in blocks()]
KNOWN = [
    pytest.param(
        one,
        id=one.columns["model"],
        marks=[pytest.mark.slow] if one.columns["model"] in STUDIED else [],
    )
    for one in blocks()
]


def told(experiment: Experiment, *, sources: bool) -> list[str]:
    """Overrides of an experiment; without its sources those of the block alone."""
    kept = {k: v for k, v in experiment.overrides.items() if sources or k.startswith("model.")}
    return [f"{key}={json.dumps(value)}" for key, value in kept.items()]


def begun(home: Path) -> tuple[float, dict[str, object]]:
    """The loss before the first update, and what the run ends with."""
    lines = (home / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    [first] = [row["loss"] for row in rows if row["split"] == "train" and row["step"] == 1]
    return first, json.loads((home / "summary.json").read_text())


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five components, enough text of each for the budget of the stand-in."""
    root = tmp_path_factory.mktemp("five")
    works = {
        name: [Work((Document(f"{name} {n} " + f"{n} word " * 120, str(n)),)) for n in range(60)]
        for name in NAMES
    }
    write_corpus(root / "corpus", "five", works, limit_bytes=10**9, recipe={})
    shard_corpus(root / "corpus", "bytes", root, shard_tokens=20_000)
    return root


@pytest.mark.parametrize("experiment", KNOWN)
def test_a_step_on_known_sources(experiment: Experiment, tmp_path: Path) -> None:
    changes = [*told(experiment, sources=True), *ONE, "stream.test_size=2", "stream.val_size=2"]
    home = launch(compose(SPEC.base_config, [*changes, f"run.dir={tmp_path / 'run'}"]))
    loss, summary = begun(home)
    assert loss == pytest.approx(math.log(8), abs=0.5), "about that of guessing"
    assert summary["tokens"] == 64 * 24


@pytest.mark.parametrize("experiment", BLOCKS)
def test_a_step_on_real_components(experiment: Experiment, five: Path, tmp_path: Path) -> None:
    data = yaml.safe_load((SWEEPS / "ergodic_k.yaml").read_text())
    assert data["axes"]["components"]["subsets_of"] == list(NAMES)
    changes = ["experiment=" + data["global_overrides"]["experiment"], f"stream.path={five}"]
    changes += [*told(experiment, sources=False), *ONE, "evals.windows.windows=1"]
    home = launch(compose(data["base_config"], [*changes, f"run.dir={tmp_path / 'run'}"]))
    loss, summary = begun(home)
    assert loss == pytest.approx(math.log(2048), abs=1.0), "about that of guessing"
    assert summary["tokens"] == 20 * 100
