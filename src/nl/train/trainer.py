"""The one loop: fetch, forward and backward under the global weight, check, step. Floor 5."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nl.config.groups import ScheduleConfig
from nl.config.run import RunConfig
from nl.core.batch import Batch
from nl.core.logs import get_logger
from nl.core.output import Knobs, StepInfo
from nl.core.protocols import Controller, EvalRow, Hook, Stream
from nl.dist.base import Strategy
from nl.run.directory import RunDir
from nl.train.hooks.checkpoint import Saver
from nl.train.hooks.metrics import Clock, Totals, count_bad, perplexity, stable
from nl.train.hooks.stop import StopSignals
from nl.train.hooks.validate import Validator
from nl.train.sinks import Sink
from nl.train.state import TrainState

log = get_logger(__name__)


Evaluate = Callable[[str, nn.Module, Path, int], list[EvalRow]]
"""(name in config.evals, model, output folder, step) -> rows."""


class NonFiniteError(RuntimeError):
    """Loss, gradient norm or State stopped being finite and the policy says to end."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the loop drives, built and seeded by the assembly."""

    run: RunConfig
    strategy: Strategy
    stream: Stream
    validation: dict[str, Stream]
    schedule: ScheduleConfig
    controller: Controller | None = None
    evaluate: Evaluate
    hooks: tuple[Hook, ...] = ()


@dataclass
class Step:
    """One attempted step: numbers still on the device."""

    totals: Totals
    weight: float
    norm: Tensor
    bad: Tensor
    fast: Any
    knobs: Knobs | None
    tags: dict[str, Any] = field(default_factory=dict)


class Trainer:
    """Trains ``parts`` inside ``run_dir`` until ``train.steps`` or a signal."""

    def __init__(self, parts: Parts, run_dir: RunDir) -> None:
        self.run, self.strategy = parts.run, parts.strategy
        self.stream, self.controller = parts.stream, parts.controller
        self.schedule: Any = parts.schedule
        self.hooks, self.run_dir = parts.hooks, run_dir
        self.evaluate = parts.evaluate
        self.sinks: list[Sink] = []
        self.state = TrainState()
        self.saver = Saver(
            parts.run,
            run_dir,
            strategy=parts.strategy,
            stream=parts.stream,
            controller=parts.controller,
            flush=self._flush,
        )
        train = parts.run.train
        self.validator = Validator(
            parts.validation, batches=train.validate_batches, carry=train.carry
        )
        self._bad_in_a_row = 0
        self._stuck_before = 0
        self._unread = torch.zeros((), dtype=torch.int64, device=self.strategy.device)

    def fit(self, stop: StopSignals) -> int:
        """Run the loop.

        Returns:
            0 when ``train.steps`` is reached, else the signal number that stopped it.

        Raises:
            NonFiniteError: by the policy of ``train.nonfinite``.
            RuntimeError: the training stream ended.
        """
        self.clock = Clock(self.state.seconds)
        batches = iter(self.stream)
        while self.state.step < self.run.train.steps:
            step = self._attempt(self._fetch(batches))
            if self._refused(step):
                batches = self._recover(batches)
                continue
            self._commit(step)
            self._between_steps(step)
            received = int(self.strategy.max(stop.received))
            if received and self.state.step < self.run.train.steps:
                self._save_last()
                return received
        self._save_last()
        return 0

    def _fetch(self, batches: Iterator[Batch]) -> list[Batch]:
        begin = time.perf_counter()
        group = list(islice(batches, self.run.train.grad_accum))
        self.clock.waited(time.perf_counter() - begin)
        if len(group) < self.run.train.grad_accum:
            raise RuntimeError(
                f"stream: the training split ended at step {self.state.step} of "
                f"{self.run.train.steps}; training streams are endless."
            )
        return group

    def _attempt(self, group: list[Batch]) -> Step:
        """Forward and backward of one accumulation group; nothing is committed yet."""
        s, fast, totals = self.strategy, self.state.fast, Totals()
        knobs = None
        if self.controller is not None:
            knobs = self.controller.act(self.state.observations, self.state.step)
        weight = s.sum(sum(batch.weight for batch in group))
        for i, batch in enumerate(group):
            with s.microbatch(last=i == len(group) - 1):
                out = s.forward(batch.to(s.device), fast, knobs)
                self.strategy.backward(out.loss * (s.world / max(weight, 1)))
            fast = out.state if self.run.train.carry else None
            totals.add(out)
        assert totals.loss is not None
        norm = s.grad_norm()
        bad = s.reduce(count_bad(totals.loss, norm, fast))
        return Step(totals, max(weight, 1), norm, bad, fast, knobs, dict(group[-1].tags))

    def _refused(self, step: Step) -> bool:
        """Whether a number is not finite, on any rank; read now unless reading can wait.

        With ``abort`` on a GPU the verdict waits on the device until the next logged, saved or
        validated step: nothing of a run that ends is kept, and the queue never drains for it.
        """
        self._unread = self._unread + step.bad
        number = self.state.step + 1
        can_wait = (
            self.run.train.nonfinite.policy == "abort"
            and self.strategy.device.type != "cpu"
            and not (self._measured(number) or self.saver.due(number) or self._validated(number))
        )
        return not can_wait and self._read_verdict()

    def _read_verdict(self) -> bool:
        bad = int(self._unread.item()) > 0
        self._unread = torch.zeros_like(self._unread)
        return bad

    def _commit(self, step: Step) -> None:
        """The optimizer, the schedule and the State move together."""
        scale = float(step.knobs.lr_scale) if step.knobs is not None else 1.0
        factor = self.schedule.factor(self.state.step, self.run.train.steps) * scale
        self.strategy.step(factor)
        self.state.fast = step.fast
        self.state.step += 1
        self.state.tokens += int(step.weight)
        if self.state.step >= self._stuck_before:  # a rollback repeats steps that were fine
            self._bad_in_a_row = 0
        self.clock.stepped(int(step.weight))
        if self._measured(self.state.step):
            self._report(step, factor)

    def _measured(self, step: int) -> bool:
        """Whether the numbers of this step are read from the device: a row or a hook wants them."""
        return self._logged(step) or any(step % hook.every == 0 for hook in self.hooks)

    def _logged(self, step: int) -> bool:
        return step == 1 or step % self.run.logging.every == 0 or step == self.run.train.steps

    def _validated(self, step: int) -> bool:
        every = self.run.train.validate_every
        return (every > 0 and step % every == 0) or step == self.run.train.steps

    def _report(self, step: Step, factor: float) -> None:
        numbers = step.totals.read(self.strategy, step.weight)
        row = {
            "loss": numbers.pop("loss"),
            "lr": self.strategy.base_lr[0] * factor,
            "grad_norm": float(step.norm),
            **numbers,
        }
        row["ppl"] = perplexity(row["loss"])
        if self.state.skipped or self.state.rollbacks:
            row |= {"train/skipped": self.state.skipped, "train/rollbacks": self.state.rollbacks}
        if self._logged(self.state.step):
            self.state.observations = stable(row)
            self._write([{"split": "train", **row, **self.clock.read()}])
            self.heartbeat(step.tags.get("phase"))
        for hook in self.hooks:
            if self.state.step % hook.every == 0:
                self._call(hook, row, step.tags)

    def _call(self, hook: Hook, row: dict[str, float], tags: dict[str, Any]) -> None:
        info = StepInfo(
            step=self.state.step,
            total_steps=self.run.train.steps,
            tokens=self.state.tokens,
            metrics=row,
            tags=tags,
        )
        with self.strategy.evaluating() as objective:
            model: Any = objective
            hook(info, model.model, self.run_dir.path)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        self.state.seconds = self.clock.seconds
        head = {"step": self.state.step, "time": round(self.state.seconds, 3)}
        for row in rows:
            full = head | {"tokens": self.state.tokens} | row
            for sink in self.sinks:
                sink.write(full)

    def heartbeat(self, phase: object) -> None:
        """Say in ``status.json`` that the run is alive and where it is."""
        if self.strategy.rank == 0:
            name = None if phase is None else str(phase)
            total = self.run.train.steps
            self.run_dir.write_status("running", self.state.step, total, phase=name)

    def _flush(self) -> None:
        self.state.seconds = self.clock.seconds
        for sink in self.sinks:
            sink.sync()

    def _between_steps(self, step: Step) -> None:
        """Validate, then save: a checkpoint implies that every row up to its step is written."""
        number, improved = self.state.step, False
        self.saver.advance()
        if self._validated(number):
            improved = self._validate()
        enabled = self.run.checkpoint.every > 0
        if number < self.run.train.steps and (self.saver.due(number) or (improved and enabled)):
            self.saver.try_save(self.state)
            self.clock.restart()

    def _validate(self) -> bool:
        rows = self.validator.run(self.strategy)
        self._write(rows)
        self.state.validation = stable({f"{row['split']}/loss": row["loss"] for row in rows})
        self.clock.restart()
        return self.saver.improve(self.state)

    def _save_last(self) -> None:
        if self._read_verdict():
            raise self._ending("in the last steps")
        self.saver.save(self.state)

    def _recover(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Apply ``train.nonfinite`` to a refused step."""
        self.strategy.skip()
        config = self.run.train.nonfinite
        self._bad_in_a_row += 1
        self._stuck_before = max(self._stuck_before, self.state.step + 1)
        where = f"at step {self.state.step + 1}"
        if config.policy == "abort":
            raise self._ending(where)
        if self._bad_in_a_row > config.max_consecutive:
            raise self._ending(f"{where}, {self._bad_in_a_row} times in a row")
        if config.policy == "skip":
            self.state.skipped += 1
            log.warning("non-finite numbers %s: batch left out, nothing changed", where)
            return batches
        return self._roll_back(batches, where)

    def _roll_back(self, batches: Iterator[Batch], where: str) -> Iterator[Batch]:
        """To the newest valid checkpoint; the stream goes on behind the offending batches."""
        name = self.saver.newest()
        if name is None:
            raise self._ending(f"{where}, and there is no checkpoint to roll back to")
        kept, cursor = self.state, self.stream.state_dict()
        self.state = self.saver.restore(name)
        self.stream.load_state_dict(cursor)
        self.state.rollbacks = kept.rollbacks + 1
        for sink in self.sinks:
            sink.rewind(self.state.step)
        log.warning(
            "non-finite numbers %s: back to step %d; batches since then are skipped",
            where,
            self.state.step,
        )
        return iter(self.stream)

    def _ending(self, where: str) -> NonFiniteError:
        config = self.run.train.nonfinite
        return NonFiniteError(
            f"non-finite loss, gradient norm or State {where} (train.nonfinite.policy="
            f"{config.policy}, max_consecutive={config.max_consecutive}). The last checkpoint is "
            "intact: lower optim.lr, set train.max_norm, or resume with another policy."
        )
