"""A save that is written while training goes on; at most one at a time. Floor 4.

Everything is copied to the host at the step boundary where the save begins, so the files are those
of a synchronous save of that step. Threads write them; ranks talk to each other only between steps
(``advance``), because collectives of a thread and of the loop would meet in any order.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from nl.config.run import RunConfig
from nl.dist import checkpoint
from nl.dist.base import Strategy
from nl.dist.checkpoint import CheckpointError, Snapshot
from nl.run.directory import RunDir


class PendingSave:
    """One checkpoint on its way to the disk: every rank writes, then rank 0 commits."""

    def __init__(
        self,
        strategy: Strategy,
        run_dir: RunDir,
        run: RunConfig,
        snapshot: Snapshot,
        *,
        after: Callable[[Path], None],
    ) -> None:
        """Copy and begin to write (collective).

        Args:
            strategy: where model and optimizer are.
            run_dir: of this run.
            run: its configuration.
            snapshot: everything else; copied here.
            after: called by rank 0's thread with the finished checkpoint.

        Raises:
            CheckpointError: on every rank, where rank 0 could not make the directory.
        """
        self.step, self._strategy = snapshot.step, strategy
        self.folder, self._scratch = checkpoint.open_scratch(strategy, run_dir, snapshot)
        write = checkpoint.capture(strategy, snapshot)
        facts = dataclasses.replace(snapshot, trainer=copy.deepcopy(snapshot.trainer), state=None)
        world = strategy.world

        def end() -> None:
            checkpoint.commit(self._scratch, self.folder, run, world, facts)
            after(self.folder)

        self._end = end
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._future = self._submit(lambda: write(self._scratch))
        self._committing = False

    def _submit(self, action: Callable[[], None]) -> Future[str | None]:
        return self._executor.submit(checkpoint.attempt, action)

    def advance(self, *, wait: bool = False) -> bool:
        """Take the save as far as it is (collective, between steps).

        Args:
            wait: until it is done.

        Returns:
            Whether the checkpoint is whole and named.

        Raises:
            CheckpointError: on every rank, where any rank could not write; nothing is left behind.
        """
        while True:
            if wait:
                self._future.exception()
            if self._strategy.max(float(not self._future.done())):
                return False
            self._agree()
            if self._committing:
                self._executor.shutdown()
                return True
            self._committing = True
            if self._strategy.rank == 0:
                self._future = self._submit(self._end)

    def _agree(self) -> None:
        error = self._future.exception()
        problem = self._future.result() if error is None else repr(error)
        try:
            checkpoint.agree(self._strategy, problem, self._scratch)
        except CheckpointError as complaint:
            self._executor.shutdown()
            raise complaint from error

    def abandon(self) -> None:
        """The run ends early: wait for the threads, leave no part behind (not collective)."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        if self._strategy.rank == 0:
            shutil.rmtree(self._scratch, ignore_errors=True)
