"""A grid over task streams of a size for tests, and what its runs came to."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from nl.run.records import read_records

PAGE = Path(__file__).resolve().parents[3] / "docs/systems/tgsmn.md"
STEPS, TASKS = 18, 3
SHARED: dict[str, Any] = {
    "model": {"dim": 16, "layers": 1, "block": "transformer", "vocab_size": 259, "mlp_hidden": 16},
    "model.attention.heads": 2,
    "stream": "tasks",
    "stream.tasks": TASKS,
    "stream.steps": STEPS // TASKS,
    "stream.seq_len": 16,
    "stream.batch_size": 4,
    "schedule.warmup": 0,
    "signals": {"every": 2, "rows": 3},
    "logging.every": 1,
    "train": {"steps": STEPS, "validate_every": 0, "threads": 1, "device": "cpu"},
    "checkpoint": {"every": STEPS // TASKS, "keep": 0, "export": False},
    "+evals.tasks": {"kind": "task_losses", "windows": 4},
    "+evals.tasks_val": {"kind": "task_losses", "split": "val", "windows": 4},
}
LEARNED = {
    "model.experts": {"form": "low_rank", "rank": 4, "k": 1, "k_max": 3, "count": 4},
    "stream.capacity": 12,
    "+controller": "gru",
    "controller.every": 2,
    "controller.rollout": 3,
    "controller.ranges.experts_k": [1, 3],
    "controller.ranges.replay": [0, 0.9],
}
AXES: dict[str, dict[str, dict[str, Any]]] = {
    "environment": {
        "perm": {"stream.vocabulary": "unique"},
        "turns": {"stream.vocabulary": "plain"},
    },
    "variant": {"learned": LEARNED, "dense": {}},
    "ablation": {"none": {}, "fix_k2": {"controller.ranges.experts_k": [2, 2]}},
    "experts": {"e4": {}},
}


def write_grid(path: Path, data: Path, *, lr: float = 3e-3, environments: int = 2) -> Path:
    """The sweep file, with the first environments."""
    axes = AXES | {"environment": dict(list(AXES["environment"].items())[:environments])}
    spec = {
        "base_config": "pilot_smoke",
        "global_overrides": SHARED | {"stream.path": str(data), "optim.lr": lr},
        "axes": {
            axis: [{"name": name, "overrides": told} for name, told in variants.items()]
            for axis, variants in axes.items()
        },
        "exclude": [{"variant": "dense", "ablation": "fix_k2"}],
    }
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return path


def mapped(program: str) -> list[list[str]]:
    """What follows a program in the commands that docs/systems/tgsmn.md gives for earlier ones."""
    text = PAGE.read_text()
    start = text.index("## From the earlier system's commands to these")
    table = text[start : text.index("| earlier configuration")]
    lines = re.findall(r"^\| .* \| `uv run ([^`]+)` \|$", table, flags=re.MULTILINE)
    words = [shlex.split(line) for line in lines]
    return [found[1:] for found in words if found[0] == program]


def outcome(root: Path) -> dict[str, Any]:
    """What every run of a sweep ended with: rows without clocks, weights, R."""
    found = {}
    for summary in sorted(root.glob("*/seed_*/summary.json")):
        run = summary.parent
        if ".was-" in run.name:  # of another configuration
            continue
        rows = [
            {k: v for k, v in row.items() if not k.startswith(("time", "perf/"))}
            for row in read_records(run / "metrics.jsonl")
        ]
        weights = sorted(run.glob("checkpoints/step_*/model.safetensors"))
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in weights]
        details = json.loads((run / "artifacts/evals/tasks.json").read_text())["details"]
        matrix = {key: details.get(key) for key in ("context", "experts")}
        found[f"{run.parent.name}/{run.name}"] = {"rows": rows, "weights": digests, "R": matrix}
    return found


def steps_done(root: Path) -> int:
    """Optimizer steps that the runs of a sweep have logged together."""
    total = 0
    for path in root.glob("*/seed_*/metrics.jsonl"):
        whole = [line for line in path.read_bytes().split(b"\n")[:-1] if line]
        total += int(json.loads(whole[-1])["step"]) if whole else 0
    return total
