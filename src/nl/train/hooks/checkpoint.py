"""When to save, what is best, how to come back. Floor 5."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from nl.config.run import RunConfig
from nl.core.logs import get_logger
from nl.core.protocols import Controller, Stream
from nl.dist import checkpoint
from nl.dist.base import Strategy
from nl.dist.pending import PendingSave
from nl.run.directory import RunDir
from nl.run.discover import newest_valid
from nl.train.state import Best, TrainState

log = get_logger(__name__)

GOES_ON = "%s Training goes on; earlier checkpoints are intact."


class Saver:
    """Saves and restores one run's TrainState, stream, controller, model and optimizer."""

    def __init__(
        self,
        run: RunConfig,
        run_dir: RunDir,
        *,
        strategy: Strategy,
        stream: Stream,
        controller: Controller | None,
        flush: Callable[[], None],
    ) -> None:
        """Take what a checkpoint is made of; ``flush`` makes the records durable first."""
        self.run, self.run_dir, self.strategy = run, run_dir, strategy
        self.stream, self.controller, self.flush = stream, controller, flush
        self.saved_step: int | None = None
        self.pending: PendingSave | None = None

    def due(self, step: int) -> bool:
        """Whether ``checkpoint.every`` or ``checkpoint.at`` falls on this step."""
        every = self.run.checkpoint.every
        return (every > 0 and step % every == 0) or step in self.run.checkpoint.at

    def improve(self, state: TrainState) -> bool:
        """Note the last validation if it is the best yet; True: it is."""
        metric = self.run.checkpoint.best
        value = state.validation.get(metric)
        if value is None or not (state.best is None or value < state.best.value):
            return False
        state.best = Best(metric, value, state.step)
        return True

    def save(self, state: TrainState) -> None:
        """Write the checkpoint of this step (collective), mark it, delete old ones."""
        self.settle()
        if self.saved_step == state.step:
            return
        folder = checkpoint.save(self.strategy, self.run_dir, self.run, self._snapshot(state))
        self.saved_step = state.step
        if self.strategy.rank == 0:
            self._tidy(folder, best=_is_best(state))
            log.info("saved %s", folder)

    def save_last(self, state: TrainState) -> None:
        """``save`` where nothing comes after it.

        Raises:
            CheckpointError: it cannot be written; says from where the run can go on.
        """
        try:
            self.save(state)
        except checkpoint.CheckpointError as error:
            since = "the start" if self.saved_step is None else f"step {self.saved_step}"
            raise checkpoint.CheckpointError(
                f"{error} What was trained after {since} is not saved; make room in "
                f"{self.run_dir.path}, then resume={self.run_dir.path} goes on from there."
            ) from error

    def _snapshot(self, state: TrainState) -> checkpoint.Snapshot:
        self.flush()
        trainer = state.as_dict() | {
            "stream": self.stream.state_dict(),
            "controller": self.controller.state_dict() if self.controller else None,
            "seeds": {"run": self.run.seed},
        }
        return checkpoint.Snapshot(step=state.step, trainer=trainer, state=state.fast)

    def _tidy(self, folder: Path, *, best: bool) -> None:
        try:
            if best:
                checkpoint.mark_best(folder)
            checkpoint.retain(self.run_dir.path, self.run.checkpoint.keep)
        except OSError as error:
            log.error("%s is whole, but old checkpoints could not be removed: %s", folder, error)

    def try_save(self, state: TrainState) -> None:
        """A periodic save: a full disk is reported, training goes on."""
        try:
            if self.run.checkpoint.asynchronous:
                self._begin(state)
            else:
                self.save(state)
        except checkpoint.CheckpointError as error:
            log.error(GOES_ON, error)

    def _begin(self, state: TrainState) -> None:
        if self.pending is not None:
            log.warning(
                "step %d: the checkpoint of step %d is still being written; waiting for it "
                "(checkpoint.every=%d is too often for this disk)",
                state.step,
                self.pending.step,
                self.run.checkpoint.every,
            )
        self.settle()
        after = partial(self._tidy, best=_is_best(state))
        place = (self.strategy, self.run_dir, self.run, self._snapshot(state))
        self.pending = PendingSave(*place, after=after)

    def advance(self, *, wait: bool = False) -> None:
        """Take the save that is in flight, if any, as far as it is (collective)."""
        if self.pending is None:
            return
        pending = self.pending
        try:
            if not pending.advance(wait=wait):
                return
        except checkpoint.CheckpointError as error:
            self.pending = None
            log.error(GOES_ON, error)
            return
        self.pending, self.saved_step = None, pending.step
        log.info("saved %s", pending.folder)

    def settle(self) -> None:
        """Wait for the save that is in flight (collective)."""
        self.advance(wait=True)

    def close(self) -> None:
        """The loop is over; where it ended early, nothing is left half written."""
        if self.pending is not None:
            self.pending.abandon()
            self.pending = None

    def restore(self, name: str) -> TrainState:
        """Load checkpoint ``name`` of this run into every part (collective)."""
        self.settle()
        folder = self.run_dir.checkpoints / name
        snapshot = checkpoint.load(self.strategy, folder)
        facts: dict[str, Any] = snapshot.trainer
        self.stream.load_state_dict(facts["stream"])
        if self.controller is not None and facts.get("controller") is not None:
            self.controller.load_state_dict(facts["controller"])
        self.saved_step = snapshot.step
        return TrainState.from_dict(facts, snapshot.state)

    def newest(self) -> str | None:
        """Name of the newest valid checkpoint, the same on every rank (collective)."""
        self.settle()

        def find() -> str | None:
            folder, complaints = newest_valid(self.run_dir.path)
            for complaint in complaints:
                log.warning("checkpoint refused: %s", complaint)
            return folder.name if folder else None

        name: str | None = self.strategy.first(find)
        return name


def _is_best(state: TrainState) -> bool:
    return state.best is not None and state.best.step == state.step
