"""Ranks of a stage on datatrove's executors: local processes, Slurm or Ray. Floor 1.

A stage is a task, a picklable callable ``task(rank) -> record`` (plain JSON data), run for every
rank. datatrove starts, counts and restarts ranks; this module adds what it leaves out: records are
written whole before a rank counts as finished, a finished rank without its record is done again,
what a resumed stage returns covers every rank, a failure is one message, and stderr shows progress
instead of hundreds of log lines (they are in ``<work>/engine/logs``).
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nl.config import ConfigError
from nl.data.files import write_json
from nl.data.prep.command import LOG
from nl.data.prep.extras import needed

Task = Callable[[int], Mapping[str, Any]]
KINDS = ("local", "slurm", "ray")
PRELOAD = ["datatrove.executor.local", "nl.data.prep.parts", "numpy", "regex"]
"""What the server that forks local workers imports once, so that each worker does not."""
POLL = 0.5
SHOW = 5.0


@dataclass(frozen=True, kw_only=True)
class Executor:
    """Where ranks run. Nothing here changes what they write."""

    kind: str = "local"
    """``local`` processes, a ``slurm`` job array or a ``ray`` cluster."""
    workers: int = 1
    """Ranks at the same time."""
    partition: str = ""
    """Slurm: partition (required there)."""
    time: str = "24:00:00"
    """Slurm: time limit of a rank."""
    cpus_per_task: int = 1
    """Slurm and Ray: CPUs of a rank."""
    mem_per_cpu_gb: int = 2
    """Slurm and Ray: memory per CPU, GB."""
    sbatch_args: tuple[str, ...] = ()
    """Slurm: more options of sbatch, each ``name=value``."""
    slurm_setup: str = ""
    """Slurm: shell command that makes the environment; default: the one this command runs in."""
    ray_address: str = ""
    """Ray: address of a running cluster; default: RAY_ADDRESS, else a cluster on this machine."""

    def __post_init__(self) -> None:
        pairs = [arg.partition("=") for arg in self.sbatch_args]
        checks = (
            (self.kind in KINDS, "executor", self.kind, ", ".join(KINDS)),
            (self.workers >= 1, "workers", self.workers, ">= 1"),
            (self.cpus_per_task >= 1, "cpus-per-task", self.cpus_per_task, ">= 1"),
            (self.mem_per_cpu_gb >= 1, "mem-per-cpu-gb", self.mem_per_cpu_gb, ">= 1"),
            (self.kind != "slurm" or self.partition, "partition", repr(""), "the name of one"),
            (all(name for name, _, _ in pairs), "sbatch-args", self.sbatch_args, "name=value"),
        )
        for good, name, value, allowed in checks:
            if not good:
                raise ConfigError(f"--{name}: {value}; allowed: {allowed}.")


def run_tasks(
    stage: str,
    task: Task,
    *,
    tasks: int,
    work: Path,
    executor: Executor,
    sizes: Sequence[int] = (),
) -> list[dict[str, Any]]:
    """Run every rank that has not finished yet; wait for all of them.

    Args:
        stage: name in progress lines and of Slurm jobs.
        task: what a rank does; must be picklable and small, for it is sent with every rank (a
            frozen dataclass at module level with ``__call__``, which reads lists of parts from
            disk), depend on nothing but the rank, and write whole files or none.
        tasks: number of ranks.
        work: directory of this stage, keyed by options and inputs (``nl.data.prep.stage``);
            on Slurm and on a Ray cluster all machines must see it.
        executor: where ranks run.
        sizes: input bytes of each rank, for the rate and the time left.

    Returns:
        The record of every rank, in order, whether it ran now or before.

    Raises:
        ConfigError: what a rank complained about, or an executor that is not there.
        RuntimeError: a rank failed; names its log.
    """
    needed("datatrove", "data")
    folder, records = work / "engine", work / "records"
    records.mkdir(parents=True, exist_ok=True)
    _forget_torn(folder, records, tasks)
    if len(_finished(folder)) < tasks:
        step = Recorded(task, records)
        with _progress(stage, folder, tasks, sizes), _quiet():
            RUNNERS[executor.kind](Job(stage, step, tasks, folder), executor)
        _complain(stage, folder, records, tasks)
    return [json.loads(_record(records, rank).read_bytes()) for rank in range(tasks)]


@dataclass(frozen=True)
class Recorded:
    """The only step of the datatrove pipeline: the record is on disk before the rank counts."""

    task: Task
    records: Path

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        start = time.perf_counter()
        complaint = _complaint(self.records, rank)
        complaint.unlink(missing_ok=True)
        try:
            record = dict(self.task(rank))
        except ConfigError as error:
            complaint.write_text(str(error), encoding="utf-8")
            raise
        seconds = round(time.perf_counter() - start, 3)
        write_json(_record(self.records, rank), record | {"seconds": seconds})


def _record(records: Path, rank: int) -> Path:
    return records / f"{rank:05d}.json"


def _complaint(records: Path, rank: int) -> Path:
    return records / f"{rank:05d}.error"


def _finished(folder: Path) -> set[int]:
    done = folder / "completions"
    return {int(path.name) for path in done.iterdir()} if done.is_dir() else set()


def _forget_torn(folder: Path, records: Path, tasks: int) -> None:
    """A rank that counts as finished and has no readable record (power cut) runs again."""
    for rank in _finished(folder):
        try:
            json.loads(_record(records, rank).read_bytes())
            whole = rank < tasks
        except (OSError, ValueError):
            whole = False
        if not whole:
            (folder / "completions" / f"{rank:05d}").unlink()


def _complain(stage: str, folder: Path, records: Path, tasks: int) -> None:
    missing = sorted(set(range(tasks)) - _finished(folder))
    for rank in missing:
        if _complaint(records, rank).is_file():
            raise ConfigError(_complaint(records, rank).read_text(encoding="utf-8"))
    if missing:
        log = folder / "logs" / f"task_{missing[0]:05d}.log"
        raise RuntimeError(
            f"{stage}: {len(missing)} of {tasks} ranks did not finish; the first is "
            f"{missing[0]}, its log is {log}. The same command goes on from here."
        )


@dataclass(frozen=True)
class Job:
    """What an executor is to run, and where it writes its markers and logs."""

    stage: str
    step: Recorded
    tasks: int
    folder: Path


def _local(job: Job, executor: Executor) -> None:
    from datatrove.executor import LocalPipelineExecutor

    workers = min(executor.workers, job.tasks)
    made = LocalPipelineExecutor(
        [job.step], tasks=job.tasks, workers=workers, logging_dir=str(job.folder)
    )
    # Not made.run(): it starts a manager process, which a killed command would leave behind.
    ranks = made.get_incomplete_ranks()
    if workers == 1:
        for rank in ranks:
            _rank(made, rank)
        return
    import multiprocess

    multiprocess.set_forkserver_preload(PRELOAD)
    with multiprocess.get_context("forkserver").Pool(workers) as pool:
        for _ in pool.imap_unordered(functools.partial(_rank, made), ranks):
            pass


def _rank(made: Any, rank: int) -> None:
    """One rank in this process; datatrove's lines go to its log alone."""
    with _quiet():
        made._run_for_rank(rank, local_rank=1)


def _ray(job: Job, executor: Executor) -> None:
    needed("ray", "ray")
    import ray
    from datatrove.executor.ray import RayPipelineExecutor

    address = executor.ray_address or os.environ.get("RAY_ADDRESS")
    cpus = None if address else executor.workers * executor.cpus_per_task
    if not ray.is_initialized():
        # Left running for the stages to come; Ray ends it with this process. It reports to nobody.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray.init(
                address=address or "local",
                num_cpus=cpus,
                include_dashboard=False if not address else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, ValueError) as error:
            raise ConfigError(f"--ray-address: {address}; no Ray cluster there.") from error
    RayPipelineExecutor(
        [job.step],
        tasks=job.tasks,
        workers=executor.workers,
        logging_dir=str(job.folder),
        cpus_per_task=executor.cpus_per_task,
        mem_per_cpu_gb=executor.mem_per_cpu_gb,
    ).run()


def _slurm(job: Job, executor: Executor) -> None:
    made = slurm_executor(job, executor)
    submitted = job.folder / "job"
    number = submitted.read_text() if submitted.is_file() else ""
    if not (number and _in_queue(number)):
        try:
            made.run()
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            raise ConfigError(
                f"--executor slurm: sbatch did not take the job ({error}); the script is "
                f"{job.folder / 'launch_script.slurm'}."
            ) from error
        number = str(made.job_id)
        submitted.write_text(number)
    LOG.info("%s: Slurm job %s; this command may be stopped and started again", job.stage, number)
    while len(_finished(job.folder)) < job.tasks and _in_queue(number):
        time.sleep(10 * POLL)


def slurm_executor(job: Job, executor: Executor) -> Any:
    """datatrove's Slurm executor with the options of ``executor``; nothing is submitted yet."""
    from datatrove.executor import SlurmPipelineExecutor

    bin_path = shlex.quote(str(Path(sys.executable).parent))
    setup = f'export PATH={bin_path}:"$PATH"'
    if source := os.environ.get("PYTHONPATH"):
        setup += f"; export PYTHONPATH={shlex.quote(source)}"
    return SlurmPipelineExecutor(
        [job.step],
        tasks=job.tasks,
        time=executor.time,
        partition=executor.partition,
        cpus_per_task=executor.cpus_per_task,
        mem_per_cpu_gb=executor.mem_per_cpu_gb,
        workers=executor.workers,
        job_name=f"nl-{job.stage}",
        qos="",
        env_command=executor.slurm_setup or setup,
        sbatch_args={k: v for k, _, v in (arg.partition("=") for arg in executor.sbatch_args)},
        logging_dir=str(job.folder.resolve()),
    )


def _in_queue(job: str) -> bool:
    """Whether Slurm still has (a part of) this job."""
    found = subprocess.run(
        ["squeue", "-h", "-j", job], capture_output=True, text=True, check=False, timeout=120
    )
    return found.returncode == 0 and bool(found.stdout.strip())


RUNNERS = {"local": _local, "slurm": _slurm, "ray": _ray}


class _Nowhere(io.TextIOBase):
    """Takes what datatrove prints; never closed, because its logger keeps it."""

    def write(self, text: str) -> int:
        return len(text)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stderr(_Nowhere()):
        yield


@contextlib.contextmanager
def _progress(stage: str, folder: Path, tasks: int, sizes: Sequence[int]) -> Iterator[None]:
    """A line on stderr every few seconds: parts, rate, time left."""
    stop = threading.Event()
    weights = sizes or [1] * tasks
    before = sum(weights[rank] for rank in _finished(folder))
    start = shown = time.perf_counter()

    def line() -> None:
        ranks = _finished(folder)
        done, seconds = sum(weights[r] for r in ranks), time.perf_counter() - start
        rate = (done - before) / seconds
        left = f"{(sum(weights) - done) / rate:.0f} s left" if rate else f"{seconds:.0f} s so far"
        speed = f"{done / 1e6:.1f} MB, {rate / 1e6:.1f} MB/s, " if sizes else ""
        LOG.info("%s: %d of %d parts, %s%s", stage, len(ranks), tasks, speed, left)

    def watch() -> None:
        nonlocal shown
        while not stop.wait(POLL):
            if time.perf_counter() - shown > SHOW:
                shown = time.perf_counter()
                line()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
