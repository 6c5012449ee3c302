"""A small sweep over tasks and models with every state that a cell can have."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

SWEEP = """\
base_config: pilot_smoke
n_seeds: 3
axes:
  task: [{name: mqar}, {name: single_digit_sum}, {name: any_abs_gt_one}]
  model: [{name: small}, {name: large}, {name: memory}]
exclude:
  - {task: mqar, model: [large]}
goal: {name: eval/classification/test/accuracy, direction: maximize}
"""
METADATA = """\
sweep_name: "made <b>up</b>"
seeds: [0, 1, 2]
base_config_file: pilot_smoke
goal: {name: eval/classification/test/accuracy, direction: maximize}
"""
ERROR = {"type": "ValueError", "message": "</script><b>no</b>", "traceback_tail": "line 7"}


def row(task: str, model: str, seed: int, value: float | None, **more: Any) -> dict[str, Any]:
    """A row of results.jsonl; done where there is a value."""
    name = f"{task}_{model}"
    found: dict[str, Any] = {
        "experiment": name,
        "seed": seed,
        "column/task": task,
        "column/model": model,
        "status": "missing" if value is None else "done",
        "run_dir": f"{name}/seed_{seed}",
        "config_hash": "abc",
        **more,
    }
    if value is None:
        return found
    metrics = {"train/loss": 9.0, "train/memory/level0/writes": more.pop("writes", 3)}
    for split, gain in (("train", 0.05), ("test", 0.0)):
        metrics[f"eval/classification/{split}/accuracy"] = value + gain
        metrics[f"eval/classification/{split}/loss"] = 1 - value
    return found | {"metrics": metrics, "steps": 3, "seconds": 1.5, "parameters": 12}


def board(root: Path) -> Path:
    """Write the sweep below ``root``; a run of each finished cell has its files."""
    root.mkdir(parents=True)
    (root / "sweep.yaml").write_text(SWEEP)
    (root / "sweep_metadata.yaml").write_text(METADATA)
    rows = [row("mqar", "small", seed, 0.6 + 0.1 * seed) for seed in range(3)]
    rows += [row("mqar", "memory", seed, 0.9, writes=0 if seed else 3) for seed in range(3)]
    rows += [row("single_digit_sum", "small", 0, 0.8), row("single_digit_sum", "small", 1, None)]
    rows += [row("single_digit_sum", "large", 0, None, status="failed", error=ERROR, attempts=2)]
    rows += [row("single_digit_sum", "memory", 0, None, status="running", progress=0.43)]
    rows += [row("any_abs_gt_one", "small", 0, None, status="broken", error=ERROR)]
    rows += [row("any_abs_gt_one", "large", seed, 0.4) for seed in range(3)]
    stale = {**rows[0], "metrics": {"eval/classification/test/accuracy": 0.123}}
    (root / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (stale, *rows)))
    for line in rows:
        if line["status"] == "done":
            run = root / line["run_dir"]
            run.mkdir(parents=True)
            evals = [
                {
                    **{"suite": "classification", "task": split, "metric": "accuracy"},
                    **{"value": 0.5, "n": 200, "chance": 0.5},
                }
                for split in ("train", "test")
            ]
            (run / "summary.json").write_text(json.dumps({"evals": evals}))
            (run / "meta.json").write_text(json.dumps({"git": {"sha": "f" * 40}}))
            (run / "report.html").write_text("<!doctype html><title>run</title>")
    begun = root / "any_abs_gt_one_memory" / "seed_0"
    begun.mkdir(parents=True)
    told = {"state": "running", "step": 5, "total_steps": 20}
    (begun / "status.json").write_text(json.dumps(told))
    shared = {"seen": 7, "total": 200, "unique_train": 90, "unique_test": 80, "lookup": 0.61}
    evals_folder = root / "single_digit_sum_small/seed_0/artifacts/evals/classification"
    evals_folder.mkdir(parents=True)
    (evals_folder / "overlap.json").write_text(json.dumps({"test": shared}))
    return root


def class_run(run: Path) -> Path:
    """A run directory of a small classifier, with what its evaluator leaves, below ``run``."""
    folder = run / "artifacts" / "evals" / "classification"
    folder.mkdir(parents=True)
    (run / "config.yaml").write_text("name: sums\nseed: 3\nmodel: {kind: ladder}\n")
    (run / "status.json").write_text(json.dumps({"state": "done", "step": 2}))
    rows = [{"step": n, "split": "train", "loss": 1 / n, "accuracy": n / 4} for n in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    tokens = [*"0123456789", "+", "="]
    for split in ("train", "test"):
        page = {
            "split": split,
            "confusion": [[5, 2], [1, 4]],
            "roc": [[0.0, 0.0], [0.2, 0.8], [1.0, 1.0]],
            "pr": [[0.2, 1.0], [0.8, 0.8], [1.0, 0.5]],
            "kinds": {"1": {"n": 5, "accuracy": 0.8}, "2": {"n": 7, "accuracy": 0.7}},
            "tokens": tokens,
            "kind_names": ["plain", "right", "near"],
            "wrong": 3,
            "wrong_different": 2,
            "errors": [one((1, 10, 2, 11, 4), 0, 0.97, 2), one((1, 10, 1, 11, 2), 1, 0.3, 1)],
            "right": [one((2, 10, 2, 11, 4), 1, 0.99, 1)],
        }
        (folder / f"{split}.json").write_text(json.dumps(page))
    maps = [[[0.9, 0.1], [0.25, 0.75]], [[0.5, 0.5], [0.0, 1.0]]]
    example = {"split": "test", "index": 0, "input": [1], "label": 1, "probability": 0.9}
    told = {
        "tokens": tokens,
        "vocabulary": [[1 / 12] * 12] * 12,
        "examples": [{**example, "layers": [maps, maps]}],
    }
    (folder / "attention.json").write_text(json.dumps(told))
    step = run / "checkpoints" / "step_000002"
    step.mkdir(parents=True)
    (run / "checkpoints" / "latest").write_text("step_000002\n")
    (step / "model.safetensors").write_bytes(safetensors({"w": ((2, 2), [3.0, 4.0, 0.0, 0.0])}))
    return run


def one(tokens: tuple[int, ...], label: int, share: float, times: int) -> dict[str, Any]:
    """A kept example."""
    kind = 1 if label else 2
    return {
        **{"index": len(tokens), "input": list(tokens), "label": label},
        **{"probability": share, "kind": kind, "times": times},
    }


def safetensors(tensors: dict[str, tuple[tuple[int, ...], list[float]]]) -> bytes:
    """A file of float tensors, by hand."""
    header, data = {}, b""
    for name, (shape, values) in tensors.items():
        packed = struct.pack(f"<{len(values)}f", *values)
        place = [len(data), len(data) + len(packed)]
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": place}
        data += packed
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data
