"""Runs through tasks as numbers: which task a step is of, R, what the knobs stood at. Floor 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nl.report.frames import Row, RunFrame

READS = "task_losses"
"""Kind of the evaluator that measures R."""
MODES = ("context", "off")
"""Ways of reading, the one that is taken first where several were measured."""


@dataclass(frozen=True)
class TaskMatrix:
    """R of a run in nats per token.

    Attributes:
        split: whose windows.
        mode: how memories were treated.
        segments: names of the columns, one per different task.
        trained: the column that each task trained, in order; a task may come back.
        rows: what each row is called, the first is before training.
        values: [row][column].
        metrics: average loss, transfer and the like, by name; null where not defined.
    """

    split: str
    mode: str
    segments: tuple[str, ...]
    trained: tuple[str, ...]
    rows: tuple[str, ...]
    values: list[list[float]]
    metrics: dict[str, float | None]

    @property
    def columns(self) -> list[int]:
        """The column of every task, in the order of training."""
        return [self.segments.index(name) for name in self.trained]

    def perplexities(self) -> list[list[float]]:
        """exp R after every task on that task and those before it: row i has i + 1 numbers."""
        columns = self.columns
        return [
            [exponential(self.values[i + 1][columns[j]]) for j in range(i + 1)]
            for i in range(len(columns))
        ]


def exponential(nats: float) -> float:
    """exp, infinite where it overflows."""
    return math.exp(nats) if nats < 700 else math.inf


def on_tasks(config: Row) -> bool:
    """Whether a resolved configuration reads a stream of tasks."""
    stream = config.get("stream")
    return isinstance(stream, dict) and stream.get("kind") == "tasks"


def task_steps(config: Row) -> int:
    """Optimizer steps of a task."""
    stream, accum = config["stream"], int(config["train"]["grad_accum"])
    each = int(stream["steps"])
    if stream.get("tokens"):
        each = -(-int(stream["tokens"]) // (int(stream["seq_len"]) * int(stream["batch_size"])))
    return max(1, each // accum)


def task_of(config: Row, step: int) -> int | None:
    """The task that the 1-based ``step`` trained; None where all are read at once."""
    stream = config["stream"]
    if stream.get("joint"):
        return None
    if stream.get("only") is not None:
        return int(stream["only"])
    return (step - 1) // task_steps(config) % int(stream["tasks"])


def task_ends(config: Row, steps: int) -> list[int]:
    """Steps at which tasks end, up to ``steps``; each task once."""
    each = task_steps(config)
    return list(range(each, steps + 1, each))[: int(config["stream"]["tasks"])]


def matrices(frame: RunFrame) -> dict[str, TaskMatrix]:
    """R by split, from what the evaluators of the run left."""
    found: dict[str, TaskMatrix] = {}
    for name, part in (frame.config.get("evals") or {}).items():
        record = frame.artifacts.get(f"evals/{name}.json")
        if not isinstance(part, dict) or part.get("kind") != READS or not isinstance(record, dict):
            continue
        details = record.get("details") or {}
        mode = next((mode for mode in MODES if mode in details), None)
        if mode is not None:
            page = details[mode]
            found[str(part["split"])] = TaskMatrix(
                split=str(part["split"]),
                mode=mode,
                segments=tuple(page["segments"]),
                trained=tuple(page["phases"]),
                rows=tuple(page["rows"]),
                values=page["nats_per_token"],
                metrics=dict(page["metrics"]),
            )
    return found


def knobs_of(config: Row, row: Row) -> dict[str, float]:
    """Where the knobs stood at a logged step: as turned, else as configured.

    Returns:
        experts_k (-1 of a dense model), router_noise, router_temperature, replay.
    """
    experts = (config.get("model") or {}).get("experts") or {}
    dense = experts.get("form", "none") == "none"
    k = experts.get("k") or 1
    configured = {
        "experts_k": -1.0 if dense else (sum(k) / len(k) if isinstance(k, list) else float(k)),
        "router_noise": 0.0 if dense else float(experts.get("noise") or 0.0),
        "router_temperature": 1.0 if dense else float(experts.get("temperature") or 1.0),
        "replay": float(config["stream"].get("replay") or 0.0),
    }
    layers = [v for key, v in row.items() if key.startswith("knob/experts_k_")]
    if layers:
        configured["experts_k"] = sum(layers) / len(layers)
    return {name: float(row.get(f"knob/{name}", value)) for name, value in configured.items()}


def weights_after(run: Path, step: int) -> Path | None:
    """The weights of the checkpoint of a step, as one file; None where it has none."""
    for path in (
        run / "checkpoints" / f"step_{step:06d}.safetensors",
        run / "checkpoints" / f"step_{step:06d}" / "model.safetensors",
    ):
        if path.is_file():
            return path
    return None


def controller_kind(config: Row) -> str:
    """Kind of the controller; empty where there is none."""
    controller: Any = config.get("controller")
    return str(controller.get("kind", "")) if isinstance(controller, dict) else ""
