"""Slurm through submitit, and Ray. Floor 1."""

from __future__ import annotations

import importlib
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

from nl.config import ConfigError
from nl.sweep.job import Job, execute
from nl.sweep.slots import STOPPED, Handle, Place


class Slurm:
    """One Slurm job each, submitted and watched through submitit."""

    def __init__(self, place: Place, root: Path, cluster: str = "slurm") -> None:
        submitit = _package("submitit", "sweep")
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise ConfigError("--backend: slurm; no sbatch on this machine: use local or ray.")
        self.slots = place.slots
        self.executor = submitit.AutoExecutor(folder=str(root / "slurm"), cluster=cluster)
        options: dict[str, Any] = {
            "timeout_min": place.minutes,
            "cpus_per_task": place.cpus,
            "mem_gb": place.memory_gb,
            "gpus_per_node": len(place.gpus),
        }
        if cluster == "slurm":
            options["slurm_job_name"] = root.name
            options |= {"slurm_partition": place.partition} if place.partition else {}
        self.executor.update_parameters(**options)
        self.environment = {"OMP_NUM_THREADS": str(place.cpus)}

    def start(self, job: Job, slot: int) -> Handle:
        """Submit; the cluster decides where and when."""
        del slot
        job.log.parent.mkdir(parents=True, exist_ok=True)
        where = (job.command, self.environment, str(job.log), str(Path.cwd()))
        return _Submitted(self.executor.submit(execute, *where))

    def close(self) -> None:
        """Nothing is held."""


class _Submitted:
    def __init__(self, job: Any) -> None:
        self.job = job
        self.used: float | None = None

    def poll(self) -> int | None:
        if not self.job.done():
            return None
        if self.job.exception() is not None:
            return 1
        code, self.used = self.job.result()
        return int(code)

    def cpu(self) -> float | None:
        return self.used

    def stop(self) -> None:
        self.job.cancel(check=False)

    def kill(self) -> None:
        self.job.cancel(check=False)


class Ray:
    """Tasks of a Ray cluster: ray chooses nodes with free CPUs and GPUs."""

    def __init__(self, place: Place) -> None:
        self.ray = ray = _package("ray", "ray")
        self.slots = place.slots
        self.owner = not ray.is_initialized()
        if self.owner:
            address = place.address or os.environ.get("RAY_ADDRESS") or None
            own = {} if address else {"num_cpus": place.slots * place.cpus}
            ray.init(address=address, logging_level="error", log_to_driver=False, **own)
        self.environment = {"OMP_NUM_THREADS": str(place.cpus)}
        resources = {"num_cpus": place.cpus, "num_gpus": len(place.gpus), "max_retries": 0}
        self.task = ray.remote(**resources)(execute)

    def start(self, job: Job, slot: int) -> Handle:
        """A task; Ray sets the devices that it may see."""
        del slot
        job.log.parent.mkdir(parents=True, exist_ok=True)
        where = (job.command, self.environment, str(job.log), str(Path.cwd()))
        return _Task(self.ray, self.task.remote(*where))

    def close(self) -> None:
        """Leave the cluster."""
        if self.owner:
            self.ray.shutdown()


class _Task:
    def __init__(self, ray: Any, reference: Any) -> None:
        self.ray, self.reference = ray, reference
        self.used: float | None = None

    def poll(self) -> int | None:
        ready, _ = self.ray.wait([self.reference], timeout=0)
        if not ready:
            return None
        try:
            code, self.used = self.ray.get(self.reference)
            return int(code)
        except (self.ray.exceptions.RayError, KeyboardInterrupt):
            return STOPPED if self._cancelled() else 1

    def cpu(self) -> float | None:
        return self.used

    def _cancelled(self) -> bool:
        try:
            self.ray.get(self.reference)
        except self.ray.exceptions.TaskCancelledError:
            return True
        except self.ray.exceptions.RayError:
            return False
        return False

    def stop(self) -> None:
        self.ray.cancel(self.reference, force=False)

    def kill(self) -> None:
        self.ray.cancel(self.reference, force=True)


def _package(name: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"--backend: needs the package {name}; install it: uv sync --extra {extra}"
        ) from error
