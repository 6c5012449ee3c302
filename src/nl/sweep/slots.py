"""What a backend is; processes of this machine. Floor 1."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

from nl.config import ConfigError
from nl.run import RunDir, RunError
from nl.sweep.job import Job, reap, start

KINDS = ("local", "warm", "slurm", "ray")


MEANT_FOR: dict[str, tuple[str, ...]] = {
    "cpus": ("slurm", "ray"),
    "minutes": ("slurm",),
    "memory_gb": ("slurm",),
    "partition": ("slurm",),
    "address": ("ray",),
}
"""Options that not every backend has."""


class Handle(Protocol):
    """A job under way."""

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""

    def cpu(self) -> float | None:
        """CPU seconds of a job that has ended; None where nobody counted them."""

    def stop(self) -> None:
        """Ask it to save and end; returns at once."""

    def kill(self) -> None:
        """End it now."""


class Backend(Protocol):
    """A number of slots; the sweep fills one with a job whenever it is free."""

    slots: int

    def start(self, job: Job, slot: int) -> Handle: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Place:
    """Options of all backends, as flags say them."""

    kind: str = "local"
    """local, warm (local forks of one process that has imported torch), slurm or ray."""
    slots: int = 1
    """Jobs at the same time."""
    gpus: tuple[str, ...] = ()
    """Local: devices, one slot each; Slurm and Ray: their number is the GPUs of one job."""
    cpus: int = 1
    """Slurm and Ray: CPUs of a job."""
    minutes: int = 1440
    """Slurm: time limit of a job."""
    memory_gb: int = 16
    """Slurm: memory of a job."""
    partition: str = ""
    """Slurm: partition; empty: the cluster's default."""
    address: str = ""
    """Ray: address of a running cluster; empty: one on this machine."""

    def __post_init__(self) -> None:
        checks = (
            (self.kind in KINDS, "backend", self.kind, ", ".join(KINDS)),
            (self.slots >= 1, "slots", self.slots, ">= 1"),
            (self.cpus >= 1, "cpus", self.cpus, ">= 1"),
            (self.minutes >= 1, "minutes", self.minutes, ">= 1"),
            (self.memory_gb >= 1, "memory-gb", self.memory_gb, ">= 1"),
        )
        for good, name, value, allowed in checks:
            if not good:
                raise ConfigError(f"--{name}: {value}; allowed: {allowed}.")
        for option in fields(self):
            value, kinds = getattr(self, option.name), MEANT_FOR.get(option.name, KINDS)
            if value != option.default and self.kind not in kinds:
                flag = option.name.replace("_", "-")
                raise ConfigError(
                    f"--{flag}: {value}; --backend {self.kind} has no use for it, only "
                    f"{' and '.join(kinds)}: leave it out."
                )
        if self.kind in ("local", "warm") and self.gpus and self.slots not in (1, len(self.gpus)):
            raise ConfigError(f"--slots: {self.slots}; --gpus gives one slot each: leave it out.")


def threads(slots: int) -> dict[str, str]:
    """OMP_NUM_THREADS so that jobs share the cores; what the user has set stays."""
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"OMP_NUM_THREADS": str(max(1, (cores or 1) // slots))}


class Local:
    """Processes of this machine."""

    def __init__(self, place: Place) -> None:
        self.gpus = place.gpus
        self.slots = len(place.gpus) or place.slots

    def start(self, job: Job, slot: int) -> Handle:
        """A process; its slot says which device it sees."""
        extra = threads(self.slots)
        if self.gpus:
            extra["CUDA_VISIBLE_DEVICES"] = self.gpus[slot]
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as out:
            return _Process(start(job.command, extra, out, str(Path.cwd())))

    def close(self) -> None:
        """Nothing is held."""


class _Process:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.used: float | None = None

    def poll(self) -> int | None:
        used = reap(self.process)
        self.used = self.used if used is None else used
        return self.process.poll()

    def cpu(self) -> float | None:
        return self.used

    def stop(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        os.killpg(self.process.pid, 9)


class Elsewhere:
    """A job that a process of an earlier, killed sweep still runs: it is waited for."""

    EVERY = 0.5

    def __init__(self, job: Job) -> None:
        self.run, self.asked = RunDir(job.home), 0.0

    def poll(self) -> int | None:
        if time.monotonic() - self.asked < self.EVERY:
            return None
        self.asked = time.monotonic()
        try:
            self.run.lock()
        except RunError:
            return None
        self.run.release()
        return 0 if self.run.finished() else STOPPED

    def cpu(self) -> float | None:
        """Its process was another sweep's child."""
        return None

    def stop(self) -> None:
        """It is not this sweep's to stop."""

    def kill(self) -> None:
        """It is not this sweep's to kill."""


STOPPED = 143
"""Exit code of a run that a signal stopped after it saved."""
