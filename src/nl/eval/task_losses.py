"""Task losses: R of a run on stream=tasks, from the checkpoints of its tasks' ends. Floor 6.

R[i, j] is the loss in nats per token on held-out windows of task j after task i; row ``init`` is
the model before training. The whole matrix is measured, tasks that come later too. Measures are
those of ``nl.eval.continual_metrics``; tasks that return are one column.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from nl.config import ConfigError, register, require
from nl.config.groups import EvaluatorConfig
from nl.config.run import RunConfig
from nl.core.batch import IGNORE, Batch
from nl.core.protocols import EvalRow
from nl.eval.context import EvalContext, OwnRows
from nl.eval.continual_metrics import BETTER, LossMatrix, all_metrics
from nl.eval.expert_use import expert_use
from nl.eval.memorize import rows_at_once
from nl.eval.rows import make_row, mean_and_stderr, save_text

Mode = Literal["off", "context"]


@register("evaluator", "task_losses")
@dataclass(frozen=True, kw_only=True)
class TaskLossesConfig(EvaluatorConfig):
    """What a run through tasks remembers and forgets, in nats per token."""

    reads: ClassVar[str] = "tasks"
    """Held-out windows of the tasks of the run's stream."""

    split: Literal["test", "val"] = "test"
    """Which windows."""
    windows: int = 32
    """Windows of each task, the same for every checkpoint; 0: all."""
    memorize: tuple[Mode, ...] = ("context",)
    """off: memories stay as trained. context: they are written while a window is read."""

    def __post_init__(self) -> None:
        require(self.windows >= 0, f"windows: {self.windows}; must be >= 0.")
        require(bool(self.memorize), "memorize: empty; choose off, context.")
        once = len(set(self.memorize)) == len(self.memorize)
        require(once, f"memorize: {list(self.memorize)}; each once.")

    def build(self) -> TaskLosses:
        """The evaluator."""
        return TaskLosses(self)


def task_ends(stream: Any, accum: int, steps: int) -> list[int]:
    """Optimizer steps at which tasks end, up to ``steps``.

    Raises:
        ConfigError: tasks do not end with a step.
    """
    require(
        stream.task_steps % accum == 0,
        f"stream.steps: {stream.task_steps}; must be a multiple of train.grad_accum ({accum}), so "
        "that tasks end with a step.",
    )
    each = stream.task_steps // accum
    return list(range(each, steps + 1, each))


def check_task_ends(run: RunConfig) -> None:
    """Refuse the evaluator where a task ends without a checkpoint that is kept.

    Raises:
        ConfigError: saying which there have to be.
    """
    if not any(isinstance(part, TaskLossesConfig) for part in run.evals.values()):
        return
    ends, saved = task_ends(run.stream, run.train.grad_accum, run.train.steps), run.checkpoint
    require(bool(ends), f"train.steps: {run.train.steps}; no task ends by then.")
    missing = [n for n in ends if n not in saved.at and not (saved.every and n % saved.every == 0)]
    if saved.keep or [n for n in missing if n != run.train.steps]:
        shown = f"[{','.join(map(str, ends))}]"
        raise ConfigError(
            f"checkpoint.at: {list(saved.at)}, checkpoint.keep: {saved.keep}; evaluator "
            "task_losses reads a checkpoint of every task's end: set checkpoint.keep=0 and "
            f"checkpoint.every={ends[0]} (or checkpoint.at={shown})."
        )


class TaskLosses:
    """See the config."""

    def __init__(self, config: TaskLossesConfig) -> None:
        self.config = config

    def __call__(self, model: nn.Module, context: EvalContext) -> list[EvalRow]:
        """A row per measure and per task at the end; ``details`` and ``matrix.csv`` hold R.

        ``details["process"]`` says how many CPU seconds the process had used before, which is what
        training took where this is the first evaluator of a run, and how many R took.

        ``details["experts"]`` says, of a model with experts, how often each was chosen for the
        windows of each task at the end of the run: {task: [router][expert]}.

        Raises:
            ConfigError: no tasks, or a checkpoint of a task's end is missing.
        """
        own = context.probe
        if own is None or own.after is None or context.step is None:
            raise ConfigError(
                "evals: task_losses reads the checkpoints of a run on stream=tasks; give its run "
                "directory."
            )
        stream = own.stream
        names = tuple(task.name for task in stream.distinct)
        trained = tuple(stream.held_out(i).partition("/")[2] for i in range(stream.tasks))
        held = {name: list(self._batches(own, name)) for name in names}
        ends = task_ends(stream, own.accum, context.step)[: stream.tasks]
        require(bool(ends), f"step: {context.step}; no task has ended by then.")
        begun, spent = time.perf_counter(), time.process_time()
        found: dict[Mode, list[list[list[float]]]] = {mode: [] for mode in self.config.memorize}
        for step in [0, *ends]:
            then = model if step == context.step else own.after(step).to(context.device)
            for mode, stages in found.items():
                losses = [window_losses(then, held[name], context, mode) for name in names]
                stages.append(losses)
        if any(getattr(model, "routers", ())):
            read = partial(window_losses, model, context=context, mode=self.config.memorize[0])
            context.record.details["experts"] = {
                name: expert_use(model, partial(read, held[name])) for name in names
            }
        seconds = time.perf_counter() - begun
        rows: list[EvalRow] = []
        for mode, stages in found.items():
            values = np.array([[np.mean(task) for task in stage] for stage in stages])
            matrix = LossMatrix(names, trained[: len(ends)], values)
            rows += self._rows(matrix, stages[-1], mode, seconds)
            self._keep(context, mode, matrix)
        context.record.details["process"] = {
            "cpu_seconds_before": spent,
            "cpu_seconds": time.process_time() - spent,
        }
        return rows

    def _batches(self, own: OwnRows, name: str) -> Iterator[Batch]:
        left = self.config.windows or None
        for batch in own.stream.build(
            f"{self.config.split}/{name}", seed=own.seed, rank=0, world=1
        ):
            scored = (batch.targets != IGNORE).any(1)
            count = int(scored.sum()) if left is None else min(left, int(scored.sum()))
            starts = None if batch.starts is None else batch.starts[:count]
            yield Batch(batch.inputs[:count], batch.targets[:count], 0, {}, starts)
            if left is not None:
                left -= count
                if left == 0:
                    return

    def _rows(
        self, matrix: LossMatrix, last: list[list[float]], mode: Mode, seconds: float
    ) -> list[EvalRow]:
        rows = []
        for name, losses in zip(matrix.segments, last, strict=True):
            value, error = mean_and_stderr(losses)
            more: dict[str, Any] = {"memorize": mode, "stderr": error}
            note = "after the last task; error over windows"
            rows.append(make_row("", name, "nats_per_token", value, len(losses), note=note, **more))
        count = sum(len(losses) for losses in last)
        for metric, measure in all_metrics(matrix).items():
            note = f"nats, {BETTER[metric]} is better; {len(matrix.phases)} tasks"
            more = {"memorize": mode, "seconds": seconds}
            rows.append(make_row("", self.config.split, metric, measure, count, note=note, **more))
        return rows

    def _keep(self, context: EvalContext, mode: Mode, matrix: LossMatrix) -> None:
        labels = ["init", *(f"after {name}" for name in matrix.phases)]
        if len(set(labels)) < len(labels):  # a task came back
            labels = ["init", *(f"after {i}: {name}" for i, name in enumerate(matrix.phases))]
        context.record.details[mode] = {
            "segments": list(matrix.segments),
            "phases": list(matrix.phases),
            "rows": labels,
            "nats_per_token": matrix.values.tolist(),
            "metrics": all_metrics(matrix),
        }
        table = io.StringIO()
        writer = csv.writer(table)
        writer.writerow(["row", "task", "nats_per_token"])
        for label, losses in zip(labels, matrix.values.tolist(), strict=True):
            writer.writerows([label, *cell] for cell in zip(matrix.segments, losses, strict=True))
        save_text(context.output / f"matrix_{mode}.csv", table.getvalue())


@torch.no_grad()
def window_losses(
    model: Any, batches: list[Batch], context: EvalContext, mode: Mode
) -> list[float]:
    """Mean nats per scored token of every window, each read with a fresh State."""
    found: list[float] = []
    model.eval()
    rows = rows_at_once(model, context.batch_size, write=mode == "context")
    for batch in batches:
        for first in range(0, len(batch.inputs), rows):
            part = slice(first, first + rows)
            inputs, targets = batch.inputs[part].long(), batch.targets[part].long()
            more = {} if batch.starts is None else {"starts": batch.starts[part]}
            here = inputs.to(context.device), targets.to(context.device)
            nats, _ = model.nll(*here, write=mode == "context", keep=False, **more)
            scored = (here[1] != IGNORE).sum(1).clamp(min=1)
            found += (nats.sum(1) / scored).tolist()
    return found
