"""A synthetic run directory with everything a report can show."""

from __future__ import annotations

import importlib.util
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

STEPS = 300


@pytest.fixture(scope="session")
def boards() -> ModuleType:
    """The maker of sweeps over tasks and models."""
    spec = importlib.util.spec_from_file_location("boards", Path(__file__).with_name("boards.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def metric_rows() -> list[dict[str, Any]]:
    rng = random.Random(7)
    rows: list[dict[str, Any]] = []
    for step in range(1, STEPS + 1):
        loss = 3.1 + 3.2 * math.exp(-step / 60) + rng.gauss(0, 0.12)
        row = {
            "step": step,
            "time": 1000.0 + 0.31 * step,
            "tokens": step * 2048,
            "split": "train",
            "loss": loss,
            "ppl": math.exp(loss),
            "lr": 3e-3 * min(1, step / 20) * (1 - step / 320),
            "grad_norm": 0.4 + 2 * math.exp(-step / 30) + abs(rng.gauss(0, 0.1)),
            "perf/tokens_per_s": 6600 + rng.gauss(0, 150),
            "perf/step_seconds": 0.31 + abs(rng.gauss(0, 0.01)),
            "memory/0/delta_norm": 0.2 * math.sqrt(step) + rng.gauss(0, 0.05),
            "memory/0/writes": 4,
        }
        rows.append(row)
        if step % 50 == 0:
            for split, shift in (("val/prose", 0.1), ("val/code", -0.6)):
                value = 3.15 + 3.2 * math.exp(-step / 60) + shift
                rows.append({"step": step, "split": split, "loss": value, "ppl": math.exp(value)})
    rows[3]["loss"] = None
    rows[3]["nonfinite"] = ["loss"]
    return rows


def eval_rows() -> list[dict[str, Any]]:
    rows = []
    for mode, gain in (("off", 0.0), ("context", 0.08)):
        for domain, loss in (("prose", 3.28), ("code", 2.61)):
            for metric, value, chance in (
                ("nats_per_token", loss - gain, math.log(2048)),
                ("perplexity", math.exp(loss - gain), 2048.0),
            ):
                rows.append(
                    {
                        "step": STEPS,
                        "suite": "perplexity",
                        "task": f"val/{domain}",
                        "metric": metric,
                        "value": value,
                        "n": 64,
                        "stderr": 0.021 if metric == "nats_per_token" else 0.6,
                        "seconds": 3.2,
                        "memorize": mode,
                        "chance": chance,
                        "note": "State fresh per document",
                    }
                )
    cloze = {"step": STEPS, "suite": "zeroshot", "task": "cloze", "metric": "acc", "n": 40}
    cloze["chance"] = 0.25
    rows.append({**cloze, "memorize": "off", "value": None, "note": "not finite (nan)"})
    rows.append({**cloze, "memorize": "context", "value": 0.275, "stderr": 0.0706})
    return rows


def write_artifacts(folder: Path) -> None:
    maps = {
        "off": {"choice_accuracy": [[0.125, 0.25, 0.125], [0.0, 0.125, 0.25]]},
        "context": {"choice_accuracy": [[0.5, 0.625, 1.0], [0.25, 0.375, 0.875]]},
    }
    needle = {
        "haystack": "noise",
        "lengths": [256, 512],
        "depths": [0.1, 0.5, 0.9],
        "samples": 8,
        "chance": 0.125,
        "memorize": maps,
    }
    part = {
        "segments": ["prose", "code"],
        "phases": ["prose", "code", "prose"],
        "rows": ["init", "1:prose", "2:code", "3:prose"],
        "nats_per_token": [[7.62, 7.63], [3.9, 5.1], [4.6, 2.8], [3.7, 3.3]],
        "metrics": {"average_loss": 3.5, "forgetting": 0.5, "forward_transfer": None},
    }
    better = {"average_loss": "lower", "forgetting": "lower", "forward_transfer": "higher"}
    forgetting = {"sources": [], "memorize": {"off": part, "context": part}, "better": better}
    files = {
        "eval/needle/needle_noise.json": needle,
        "continual/forgetting.json": forgetting,
        "baselines.json": {"unigram": {"val/prose": 6.02, "val/code": 5.71}},
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(data))
    sample = {
        "prompt": "The list ",
        "text": "is <b>sorted</b> & new.",
        "temperature": 0.8,
        "seed": 1,
    }
    write_rows(folder / "samples.jsonl", [sample])


def make_run(folder: Path) -> Path:
    """Write a finished run of a language model with two validation domains."""
    folder.mkdir(parents=True)
    config = {
        "name": "pilot_smoke",
        "seed": 3,
        "model": {"kind": "language", "block": ["hope_attention", "transformer"], "dim": 128},
        "train": {"steps": STEPS},
    }
    meta = {
        "schema": 1,
        "git": {"sha": "0123456789abcdef0123456789abcdef01234567", "dirty": True},
        "versions": {"torch": "2.15.0", "numpy": "2.4.0"},
        "python": "3.11.7",
        "platform": {"system": "Linux", "machine": "x86_64", "cpus": 2},
        "world_size": 1,
        "strategy": "single",
        "config_hash": "0a1b2c3d4e5f",
        "started": 1790000000.0,
        "parameters": 1234567,
        "resumes": [{"step": 120}],
    }
    status = {"state": "done", "step": STEPS, "total_steps": STEPS, "error": None}
    summary = {"final": {}, "tokens": STEPS * 2048, "seconds": 97.3, "parameters": 1234567}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    for name, data in (("meta", meta), ("status", status), ("summary", summary)):
        (folder / f"{name}.json").write_text(json.dumps(data))
    (folder / "overrides.txt").write_text("model.dim=128\nseed=3\n")
    write_rows(folder / "metrics.jsonl", metric_rows())
    write_rows(folder / "evals.jsonl", eval_rows())
    write_artifacts(folder / "artifacts")
    return folder


@pytest.fixture
def full_run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs" / "pilot_smoke" / "20261101-120000-0a1b2c3d4e5f-s3")


@pytest.fixture
def run_maker() -> Callable[[Path], Path]:
    return make_run
