"""The one scheduler: fills slots with jobs, tries again, counts, stops cleanly. Floor 1."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from nl.config import writing
from nl.run import RunDir, RunError
from nl.sweep.job import GRACE, REFUSED, Job, progress_of, set_aside, standing
from nl.sweep.results import Row, append_row, row_of, write_progress
from nl.sweep.slots import Backend, Elsewhere, Handle

POLL = 0.02
"""Seconds between looks at the running jobs."""
RECORD = 1.0
"""Seconds between writes of progress.json, and between changes of the display."""


class Lock:
    """One scheduler per sweep directory, until its process ends."""

    def __init__(self, root: Path) -> None:
        with writing(root):
            root.mkdir(parents=True, exist_ok=True)
            self.file: IO[str] = (root / "lock").open("a+")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.file.close()
            raise RunError(f"{root}: another nl sweep works there; wait for it.") from error

    def release(self) -> None:
        """Let the next one in."""
        self.file.close()


@dataclass
class Counts:
    """How far a sweep is."""

    total: int
    done: int = 0
    skipped: int = 0
    failed: int = 0
    stopped: int = 0
    cpu: float = 0.0
    begun: float = field(default_factory=time.monotonic)

    def facts(self, running: dict[str, float | None]) -> dict[str, Any]:
        """What progress.json holds."""
        elapsed = time.monotonic() - self.begun
        ended = self.done + self.failed
        rate = 60 * ended / elapsed if elapsed > 0 else 0.0
        waiting = self.total - self.skipped - ended - self.stopped - len(running)
        return {
            "total": self.total,
            "done": self.done + self.skipped,
            "done_before": self.skipped,
            "failed": self.failed,
            "stopped": self.stopped,
            "running": running,
            "waiting": waiting,
            "jobs_per_minute": rate,
            "elapsed_seconds": elapsed,
            "cpu_seconds": self.cpu,
            "seconds_left": 60 * (waiting + len(running)) / rate if rate else None,
            "updated": time.time(),
        }


@dataclass
class _Slot:
    job: Job
    handle: Handle
    elsewhere: bool


class Runner:
    """Runs jobs on a backend.

    Args:
        root: the sweep's directory.
        backend: where jobs run.
        retries: further attempts after a failure.
        retry_failed: also try what failed in an earlier call.
        tell: gets one line whenever something happened.
        show: gets the facts of ``Counts`` a few times per second.
        stopping: whether the user wants to stop.
    """

    def __init__(
        self,
        root: Path,
        backend: Backend,
        *,
        retries: int = 1,
        retry_failed: bool = False,
        tell: Callable[[str], None] = print,
        show: Callable[[dict[str, Any]], None] = lambda _: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.root, self.backend = root, backend
        self.retries, self.retry_failed = retries, retry_failed
        self.tell, self.show, self.stopping = tell, show, stopping
        self.counts = Counts(0)
        self.slots: dict[int, _Slot] = {}
        self._recorded = 0.0

    def run(self, jobs: Iterable[Job]) -> list[Row]:
        """Every job that is not done yet, in order.

        Returns:
            The rows of the jobs that ended in this call.
        """
        queue = deque(jobs)
        self.counts.total += len(queue)
        ended: list[Row] = []
        while queue or self.slots:
            if self.stopping():
                break
            ended += self._collect(queue)
            self._fill(queue)  # at once: a slot that waits is time lost
            self._record()
            time.sleep(POLL)
        if self.slots:
            self._stop()
        self._record(force=True)
        return ended

    def _fill(self, queue: deque[Job]) -> None:
        """Put jobs into free slots."""
        free = [slot for slot in range(self.backend.slots) if slot not in self.slots]
        while free and queue:
            job = queue.popleft()
            slot = self._begin(job, free[0])
            if slot is not None:
                self.slots[free.pop(0)] = slot

    def _begin(self, job: Job, slot: int) -> _Slot | None:
        """Start a job; None where there is nothing to start."""
        state = standing(job)
        if state == "done":
            self.counts.skipped += 1
            self.counts.cpu += job.attempts()["cpu_seconds"] or 0.0
            return None
        over = job.attempts()["failures"] > self.retries
        if state == "failed" and over and not self.retry_failed:
            self.counts.failed += 1
            self.tell(f"{job.name}: failed before, left as it is (--retry-failed tries again)")
            return None
        if state == "running":
            self.tell(f"{job.name}: still running in another process, waiting for it")
            return _Slot(job, Elsewhere(job), elsewhere=True)
        if state == "other":
            self.tell(
                f"{job.name}: another configuration ran there, moved to {set_aside(job).name}"
            )
        elif not RunDir.holds_run(job.home) and job.home.is_dir():
            shutil.rmtree(job.home)  # what a process left that died before its run began
        facts = job.attempts()
        job.note(started=facts["started"] + 1, exit_code=None)
        return _Slot(job, self.backend.start(job, slot), elsewhere=False)

    def _collect(self, queue: deque[Job]) -> list[Row]:
        """Rows of the jobs that ended since the last look."""
        rows = []
        for number, slot in list(self.slots.items()):
            code = slot.handle.poll()
            if code is None:
                continue
            del self.slots[number]
            row = self._ended(slot, code, queue)
            if row is not None:
                rows.append(row)
                append_row(self.root, row)
        return rows

    def _ended(self, slot: _Slot, code: int, queue: deque[Job]) -> Row | None:
        """What follows from an exit code: a row, or another attempt (None)."""
        job = slot.job
        if not slot.elsewhere:
            self._note_end(slot, code)
        state = standing(job)
        if state == "done":
            self.counts.done += 1
            job.note(failures=0)
            row = row_of(job)
            self.tell(f"{job.name}: done in {row.get('seconds') or 0:.0f} s")
            return row
        if state == "other" and not slot.elsewhere:
            job.note(
                failures=self.retries + 1,
                error="the launcher resolved another configuration than the sweep: is its code of "
                "this checkout, or does an environment variable decide a key?",
            )
            self.counts.failed += 1
            self.tell(f"{job.name}: failed: {job.attempts()['error']}")
            return row_of(job)
        if state == "running" or slot.elsewhere:
            queue.appendleft(job)  # another process has it, or stopped: it is looked at again
            return None
        failures = job.attempts()["failures"] + 1
        job.note(failures=failures)
        if code != REFUSED and failures <= self.retries:
            self.tell(f"{job.name}: exit code {code}, attempt {failures + 1} follows")
            queue.appendleft(job)
            return None
        if code == REFUSED:
            job.note(failures=max(failures, self.retries + 1))
        self.counts.failed += 1
        row = row_of(job)
        error = row.get("error") or {}
        self.tell(f"{job.name}: failed: {error.get('message') or error.get('type')} ({job.log})")
        return row

    def _note_end(self, slot: _Slot, code: int) -> None:
        """Keep the exit code and the CPU time of an attempt."""
        used = slot.handle.cpu()
        slot.job.note_end(code, used)
        self.counts.cpu += used or 0.0

    def _stop(self) -> None:
        """Ask the running jobs to save; wait for them."""
        self.tell(f"stopping: {len(self.slots)} running jobs save first")
        for slot in self.slots.values():
            slot.handle.stop()
        until = time.monotonic() + GRACE
        while self.slots and time.monotonic() < until:
            for number, slot in list(self.slots.items()):
                code = None if slot.elsewhere else slot.handle.poll()
                if slot.elsewhere or code is not None:
                    del self.slots[number]
                    if code is not None:
                        self._note_end(slot, code)
                    done = standing(slot.job) == "done"
                    self.counts.done += done
                    self.counts.stopped += not done
            time.sleep(POLL)
        for slot in self.slots.values():
            slot.handle.kill()
        self.slots.clear()

    def _record(self, force: bool = False) -> None:
        """progress.json and the display."""
        now = time.monotonic()
        if not force and now - self._recorded < RECORD:
            return
        self._recorded = now
        running = {slot.job.name: progress_of(slot.job) for slot in self.slots.values()}
        facts = self.counts.facts(running)
        self.show(facts)
        write_progress(self.root, facts)
