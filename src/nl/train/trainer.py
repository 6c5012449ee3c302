"""The one loop: fetch, forward and backward under the global weight, check, step. Floor 5."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
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
from nl.core.seeds import SeedBook
from nl.dist.base import Strategy
from nl.run.directory import RunDir
from nl.run.records import line
from nl.train.feedback import adjust, replayed, shown, teach
from nl.train.guard import Guard
from nl.train.hooks.checkpoint import Saver
from nl.train.hooks.metrics import Clock, Totals, count_bad, perplexity, stable
from nl.train.hooks.stop import StopSignals
from nl.train.hooks.validate import Validator
from nl.train.profiling import StepProfiler
from nl.train.signals import Signals
from nl.train.sinks import Sink
from nl.train.state import TrainState
from nl.train.throughput import Throughput
from nl.train.watchdog import Watchdog

log = get_logger(__name__)


Evaluate = Callable[[str, nn.Module, Path, int], list[EvalRow]]
"""(name in config.evals, model, output folder, step) -> rows."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the loop drives, built and seeded by the assembly."""

    run: RunConfig
    strategy: Strategy
    stream: Stream
    validation: dict[str, Stream]
    schedule: ScheduleConfig
    controller: Controller | None = None
    signals: Signals | None = None
    evaluate: Evaluate
    hooks: tuple[Hook, ...] = ()
    forward_flops: float = 0.0
    """Of one token, for perf/mfu; 0: not known."""
    tokenizers: tuple[str, ...] = ()
    """SHA-256 of the tokenizer of the data; empty where there is no text."""
    origin: dict[str, Any] | None = None
    """The weights it began with: path and sha256."""


@dataclass
class Step:
    """One attempted step: numbers still on the device."""

    totals: Totals
    weight: float
    norm: Tensor
    verdict: Tensor
    fast: Any
    knobs: Knobs
    tags: dict[str, Any] = field(default_factory=dict)
    rows: list[Tensor | None] = field(default_factory=list)


class Trainer:
    """Trains ``parts`` inside ``run_dir`` until ``train.steps`` or a signal."""

    def __init__(self, parts: Parts, run_dir: RunDir) -> None:
        self.run, self.strategy = parts.run, parts.strategy
        self.stream, self.controller = parts.stream, parts.controller
        self.signals = parts.signals
        self.schedule: Any = parts.schedule
        self.hooks, self.run_dir = parts.hooks, run_dir
        self.evaluate, self.tokenizers = parts.evaluate, parts.tokenizers
        self.sinks: list[Sink] = []
        self.state, self.seeds = TrainState(), SeedBook(parts.run.seed)
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
        self.guard = Guard(train)
        self.watch = Watchdog(
            train.watchdog,
            run_dir,
            rank=parts.strategy.rank,
            world=parts.strategy.world,
            total_steps=train.steps,
            compiled=train.compile,
        )
        self.profiler = StepProfiler(train.profile, run_dir.artifacts, parts.strategy.rank)
        self.throughput = Throughput.of(
            parts.strategy.device,
            parts.strategy.world,
            forward=parts.forward_flops,
            configured=train.peak_tflops,
            precision=train.precision,
        )
        self._said: set[str] = set()
        self._unread: list[tuple[int, Tensor]] = []

    def fit(self, stop: StopSignals) -> int:
        """Run the loop.

        Returns:
            0 when ``train.steps`` is reached, else the signal number that stopped it.

        Raises:
            NonFiniteError: by the policy of ``train.nonfinite``.
            SpikeError: by the policy of ``train.spike``.
            RuntimeError: the training stream ended.
        """
        self.clock = Clock(self.state.seconds)
        try:
            with self.watch:
                return self._loop(stop)
        finally:
            self.profiler.close()

    def _loop(self, stop: StopSignals) -> int:
        batches = iter(self.stream)
        while self.state.step < self.run.train.steps:
            self.watch.phase("data", self.state.step + 1)
            knobs = self._knobs()
            adjust(self.stream, knobs)
            group = self._fetch(batches)
            self.watch.phase("step", self.state.step + 1)
            self.profiler.before(self.state.step + 1)
            step = self._attempt(group, knobs)
            action, why = self._judge(step)
            if action != "commit":
                batches = self._recover(action, why, batches)
                continue
            self._commit(step)
            self.profiler.after(self.state.step)
            self._between_steps(step)
            self.watch.phase("collective", self.state.step)
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

    def _knobs(self) -> Knobs:
        """What the controller says for the next step."""
        knobs = Knobs()
        if self.controller is not None:
            knobs = self.controller.act(self.state.observations, self.state.step)
        return knobs._replace(draw=self.seeds.seed("draw", self.state.step))

    def _attempt(self, group: list[Batch], knobs: Knobs) -> Step:
        """Forward and backward of one accumulation group; nothing is committed yet."""
        s, fast, totals = self.strategy, self.state.fast, Totals()
        rows: list[Tensor | None] = []
        if self.signals is not None:
            self.signals.before(self.state.step + 1, group[-1].tags)
        weight = s.sum(sum(batch.weight for batch in group))
        for i, batch in enumerate(group):
            with s.microbatch(last=i == len(group) - 1):
                out = s.forward(batch.to(s.device), fast, knobs)
                self.strategy.backward(out.loss * (s.world / max(weight, 1)))
            fast = out.state if self.run.train.carry else None
            totals.add(out)
            rows.append(out.rows)
        assert totals.loss is not None
        norm, weight = s.grad_norm(), max(weight, 1)
        bad = count_bad(totals.loss, norm, fast)
        verdict = s.reduce(torch.stack([bad.double(), totals.loss / weight]))
        return Step(totals, weight, norm, verdict, fast, knobs, dict(group[-1].tags), rows)

    def _judge(self, step: Step) -> tuple[str, str]:
        """What to do with a step; read from the device now unless reading can wait.

        With ``abort`` on a GPU the verdict waits on the device until the next logged, saved or
        validated step: nothing of a run that ends is kept, and the queue never drains for it.
        """
        number = self.state.step + 1
        self._unread.append((number, step.verdict))
        can_wait = (
            self.guard.patient
            and self.strategy.device.type != "cpu"
            and not (self._measured(number) or self.saver.due(number) or self._validated(number))
        )
        return ("commit", "") if can_wait else self._read_verdicts()

    def _read_verdicts(self) -> tuple[str, str]:
        """What the guard says about the last step that was attempted, and late about others."""
        if not self._unread:
            return "commit", ""
        values = torch.stack([verdict for _, verdict in self._unread]).tolist()
        numbers, self._unread = [number for number, _ in self._unread], []
        for number, (bad, loss) in zip(numbers, values, strict=True):
            action, why = self.guard.judge(bad > 0, loss, number, self.state)
            if action != "commit":
                break
        return action, why

    def _commit(self, step: Step) -> None:
        """The optimizer, the schedule and the State move together."""
        factor = self.schedule.factor(self.state.step, self.run.train.steps)
        factor *= float(step.knobs.lr_scale)
        self.strategy.step(factor)
        self.strategy.settle(taken=True)
        teach(self.stream, self.strategy, step.rows)
        self.state.fast = step.fast
        self.state.step += 1
        self.state.tokens += int(step.weight)
        self.clock.stepped(int(step.weight))
        if self._measured(self.state.step):
            self._report(step, factor)

    def _measured(self, step: int) -> bool:
        """Whether the numbers of this step are read from the device: a row or a hook wants them."""
        return self._logged(step) or any(step % hook.every == 0 for hook in self.hooks)

    def _logged(self, step: int) -> bool:
        if self.signals is not None and self.signals.due(step):
            return True
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
            **replayed(step.tags),
        }
        row["ppl"] = perplexity(row["loss"])
        if self.controller is not None:
            row |= shown(step.knobs, self.controller)
        if self.signals is not None:
            row |= self.signals.after(self.state, row.get("nats", row["loss"]))
        if self.state.skipped or self.state.rollbacks:
            row |= {"train/skipped": self.state.skipped, "train/rollbacks": self.state.rollbacks}
        if self._logged(self.state.step):
            self.state.observations = stable(row)
            speed = self.clock.read()
            speed |= self.throughput.read(speed["perf/tokens_per_s"])
            self._write([{"split": "train", **row, **speed}])
            self.heartbeat(step.tags.get("phase"))
        for hook in self.hooks:
            if self.state.step % hook.every == 0:
                self.watch.phase("hook", self.state.step)
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
                self._guarded(partial(sink.write, full))

    def heartbeat(self, phase: object) -> None:
        """Say in ``status.json`` that the run is alive and where it is."""
        if self.strategy.rank == 0:
            name = None if phase is None else str(phase)
            total = self.run.train.steps
            seconds = self.watch.step_seconds()
            self.run_dir.write_status(
                "running", self.state.step, total, phase=name, step_seconds=seconds
            )

    def _flush(self) -> None:
        self.state.seconds = self.clock.seconds
        for sink in self.sinks:
            self._guarded(sink.sync)

    def _guarded(self, action: Callable[[], None]) -> None:
        """A log that cannot be written is said once per kind of trouble; training goes on."""
        try:
            action()
        except OSError as error:
            if str(error) not in self._said:
                self._said.add(str(error))
                log.error("metrics cannot be written: %s. Training goes on; rows are lost.", error)

    def _between_steps(self, step: Step) -> None:
        """Validate, then save: a checkpoint implies that every row up to its step is written."""
        number, improved = self.state.step, False
        self.watch.phase("save", number)
        self.saver.advance()
        if self._validated(number):
            improved = self._validate()
        enabled = self.run.checkpoint.every > 0
        if number < self.run.train.steps and (self.saver.due(number) or (improved and enabled)):
            self.saver.try_save(self.state)
            self.clock.restart()

    def _validate(self) -> bool:
        self.watch.phase("validation", self.state.step)
        frozen = getattr(self.controller, "frozen", None)
        rows = self.validator.run(self.strategy, frozen() if frozen else None)
        self._write(rows)
        self.state.validation = stable({f"{row['split']}/loss": row["loss"] for row in rows})
        self.clock.restart()
        return self.saver.improve(self.state)

    def _save_last(self) -> None:
        action, why = self._read_verdicts()
        if action != "commit":
            raise self.guard.ending(why)
        self.watch.phase("save", self.state.step)
        self.saver.save_last(self.state)

    def _recover(self, action: str, why: str, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Leave a refused step out, go back to a checkpoint, or end."""
        self.strategy.skip()
        self.strategy.settle(taken=False)
        if action == "abort":
            raise self.guard.ending(why)
        self._left_out(action, why)
        if action == "skip":
            self.state.skipped += 1
            log.warning("%s: batch left out, nothing changed", why)
            return batches
        return self._roll_back(batches, why)

    def _left_out(self, action: str, why: str) -> None:
        """Record which batches will not be learned from; the cursor stands behind them."""
        if self.strategy.rank == 0:
            row = {"step": self.state.step, "action": action, "why": why}
            with (self.run_dir.artifacts / "left_out.jsonl").open("a") as file:
                file.write(line(row | {"stream": self.stream.state_dict()}))

    def _roll_back(self, batches: Iterator[Batch], why: str) -> Iterator[Batch]:
        """To the newest valid checkpoint; the stream goes on behind the offending batches."""
        self.watch.phase("rollback", self.state.step)
        name = self.saver.newest()
        if name is None:
            raise self.guard.ending(f"{why}, and there is no checkpoint to roll back to")
        kept, cursor = self.state, self.stream.state_dict()
        self.state = self.saver.restore(name)
        self.stream.load_state_dict(cursor)
        self.state.rollbacks, self.state.troubles = kept.rollbacks + 1, kept.troubles
        for sink in self.sinks:
            sink.rewind(self.state.step)
        log.warning("%s: back to step %d; batches since then are skipped", why, self.state.step)
        return iter(self.stream)
