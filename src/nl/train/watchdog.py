"""Ends a process that waits too long; says which rank, for what, where, who is gone. Floor 5.

A thread of every rank looks at what the loop is doing. It also keeps a heartbeat file per rank, so
that a rank whose collective does not end can name the ranks that are gone or behind.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median
from typing import Any

from nl.config.guards import WatchdogConfig
from nl.core.logs import get_logger
from nl.run.directory import RunDir
from nl.run.files import RunError, read_json, write_json

log = get_logger(__name__)

WARM_UP = 5
"""Steps before the median counts."""
PATIENT = 12
"""How many times longer the first steps of a compiled model may take."""
SEEN_WITHIN = 2.0
"""Seconds in which the death of another process shows."""
NAMED = 8
"""At most so many other ranks are named."""


def heartbeat_file(logs: Path, rank: int) -> Path:
    """Where rank ``rank`` says what it is doing."""
    return logs / f"heartbeat_{rank:02d}.json"


class Watchdog:
    """Context manager around the loop; ``phase`` says what the loop does now."""

    def __init__(
        self,
        config: WatchdogConfig,
        run_dir: RunDir,
        *,
        rank: int,
        world: int,
        total_steps: int = 0,
        compiled: bool = False,
        end: Callable[[str], None] | None = None,
    ) -> None:
        """Watch one rank.

        Args:
            config: the limits.
            run_dir: of this run.
            rank: of this process.
            world: how many there are.
            total_steps: for the status.
            compiled: the first steps compile.
            end: what to do when a limit is passed; by default the process ends.
        """
        self.config, self.rank, self.world = config, rank, world
        self.run_dir, self.logs, self.total_steps = run_dir, run_dir.logs, total_steps
        self.compiled, self.end = compiled, end or self._end
        self.durations: deque[float] = deque(maxlen=100)
        self._steps = 0
        self._now: tuple[str, int, float] = ("start", 0, time.monotonic())
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        every = (config.data_seconds, config.step_seconds, config.collective_seconds)
        limits = [seconds for seconds in every if seconds]
        self.interval = min(1.0, *(x / 8 for x in limits)) if limits else 1.0

    def phase(self, name: str, step: int) -> None:
        """From now on the loop does ``name`` for step ``step``."""
        before, _, since = self._now
        now = time.monotonic()
        if before == "step":
            self.durations.append(now - since)
            self._steps += 1
        self._now = (name, step, now)

    def step_limit(self) -> float:
        """Seconds that a step may take; 0: for ever."""
        config = self.config
        together = self.world > 1
        floor = config.collective_seconds if together else config.step_seconds
        if not floor:
            return 0.0
        floor = max(floor, config.step_seconds)
        if self._steps < WARM_UP:  # what is usual is not known yet
            return floor * (PATIENT if self.compiled else 1) if together else 0.0
        usual = list(self.durations)  # a device may work behind the host: the mean counts too
        return max(floor, config.step_factor * max(median(usual), fmean(usual)))

    def step_seconds(self) -> float:
        """Median of the last steps."""
        return median(self.durations) if self.durations else 0.0

    def overdue(self, now: float) -> str:
        """What this rank has waited for too long, empty if nothing."""
        name, step, since = self._now
        waited = now - since
        if name == "data" and 0 < self.config.data_seconds < waited:
            return (
                f"rank {self.rank}: no batch of the training stream for {waited:.0f} s at step "
                f"{step} (train.watchdog.data_seconds={self.config.data_seconds:g})"
            )
        limit = self.step_limit()
        if name in ("step", "collective") and 0 < limit < waited:
            key = "collective_seconds" if self.world > 1 else "step_seconds"
            return (
                f"rank {self.rank}: step {step} has not ended after {waited:.0f} s in {name}, "
                f"the median is {self.step_seconds():.3g} s (train.watchdog.{key}="
                f"{getattr(self.config, key):g}, step_factor={self.config.step_factor:g})"
            )
        return ""

    def __enter__(self) -> Watchdog:
        self.beat()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self.beat("ended" if error is None else f"failed: {error}"[:300])

    def _watch(self) -> None:
        last, beaten = time.monotonic(), -1e9
        while not self._stop.wait(self.interval):
            now = time.monotonic()
            gap, last = now - last, now
            if gap > 5 * self.interval + 1:  # the whole process was stopped: it did not wait
                name, step, since = self._now
                self._now = (name, step, since + gap)
            if now - beaten >= min(10.0, 8 * self.interval):
                beaten = now
                self.beat()
            complaint = self.overdue(time.monotonic())
            if complaint:
                self.end(complaint)
                return

    def beat(self, state: str = "running") -> None:
        """Write this rank's heartbeat; a disk that refuses is not what ends a run."""
        name, step, since = self._now
        row = {
            "rank": self.rank,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "state": state,
            "step": step,
            "phase": name,
            "seconds": round(time.monotonic() - since, 3),
            "step_seconds": round(self.step_seconds(), 6),
            "updated": time.time(),
        }
        try:
            write_json(heartbeat_file(self.logs, self.rank), row, durable=False)
            if self.rank == 0 and self.run_dir.status.is_file():
                os.utime(self.run_dir.status)  # another host takes a lock over by its age
        except OSError as error:
            log.warning("rank %d: no heartbeat (%s)", self.rank, error)

    def others(self) -> str:
        """The ranks that are gone, failed or elsewhere than this one, for a message.

        A collective can fail a moment before its cause can be seen, so that is waited for.
        """
        deadline = time.monotonic() + SEEN_WITHIN
        while True:
            found = [look(other, self.logs) for other in range(self.world) if other != self.rank]
            if not all(fine for fine, _ in found) or time.monotonic() > deadline or not found:
                return missing_ranks(self.logs, self.rank, self.world)
            time.sleep(0.05)

    def _end(self, complaint: str) -> None:
        """Say why, dump the stacks of all threads and leave with exit code 1."""
        self.beat(f"failed: {complaint}")
        peers = missing_ranks(self.logs, self.rank, self.world)
        text = f"{complaint}.{peers} Stacks follow in logs/rank_{self.rank:02d}.log."
        log.error("%s", text)
        if self.rank == 0:
            error = {"type": "Watchdog", "message": text, "traceback_tail": ""}
            self.run_dir.write_status("failed", self._now[1], self.total_steps, error=error)
        with (self.logs / f"rank_{self.rank:02d}.log").open("a") as file:
            faulthandler.dump_traceback(file=file, all_threads=True)
        if self.rank != 0:
            sys.stderr.write(text + "\n")  # the log of other ranks goes to their file only
            sys.stderr.flush()
        os._exit(1)


def missing_ranks(logs: Path, rank: int, world: int) -> str:
    """What the heartbeats say about the other ranks, as the end of a message; '' for one rank."""
    found = []
    for other in range(world):
        if other != rank:
            found.append(look(other, logs))
    unusual = [text for alive, text in found if not alive] or [text for _, text in found]
    more = f", and {len(unusual) - NAMED} more" if len(unusual) > NAMED else ""
    return f" {'; '.join(unusual[:NAMED])}{more}." if unusual else ""


def look(rank: int, logs: Path) -> tuple[bool, str]:
    """(whether it looks alive, one phrase) of another rank."""
    try:
        row: dict[str, Any] = read_json(heartbeat_file(logs, rank))
        since = time.time() - float(row["updated"])
        where = f"at step {row['step']} ({row['phase']})"
        if not str(row["state"]).startswith(("running", "ended")):
            return False, f"rank {rank} {row['state']} {where}"
        if row["host"] == socket.gethostname() and not alive(int(row["pid"])):
            return False, f"rank {rank} (process {row['pid']}) is gone, last seen {where}"
    except (RunError, KeyError, TypeError, ValueError):
        return False, f"rank {rank} has no heartbeat"
    return since < 30, f"rank {rank} was {where} {since:.0f} s ago"


def alive(pid: int) -> bool:
    """Whether a process of this machine exists and has not ended (a zombie has)."""
    try:
        os.kill(pid, 0)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except ProcessLookupError:
        return False
    except OSError:  # not ours, or no /proc here
        return True
    return fields[0] not in ("Z", "X")
