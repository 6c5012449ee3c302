"""One job: a launcher's command, its run directory, what came of it. Floor 1."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nl.config.hydra import file_hash
from nl.run import RunDir, RunError
from nl.run.discover import is_of, written_hash
from nl.run.files import read_json, write_json

GRACE = 120.0
"""Seconds that a stopped process has to save before it is killed."""
TAIL = 2000
"""Characters of a log that a failure row keeps."""
REFUSED = 2
"""Exit code of a launcher that says what the user can mend: no further attempt."""


@dataclass(frozen=True)
class Job:
    """A run that the sweep wants.

    Attributes:
        experiment: name of its experiment.
        seed: its seed.
        home: its run directory; log and record stand beside it.
        command: what is executed.
        config_hash: of the configuration that the command resolves to.
        columns: what tells the experiment from the others.
        overrides: as told on the command line.
    """

    experiment: str
    seed: int
    home: Path
    command: tuple[str, ...]
    config_hash: str
    columns: Mapping[str, Any]
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """``<experiment>/seed_<k>``."""
        return f"{self.experiment}/{self.home.name}"

    @property
    def log(self) -> Path:
        """What the processes of all attempts printed."""
        return self.home.with_name(f"{self.home.name}.log")

    @property
    def record(self) -> Path:
        """Attempts and exit codes."""
        return self.home.with_name(f"{self.home.name}.job.json")

    def attempts(self) -> dict[str, Any]:
        """``{started, failures, exit_code, cpu_seconds, config_hash}`` of this configuration."""
        fresh = {
            "started": 0,
            "failures": 0,
            "exit_code": None,
            "cpu_seconds": None,
            "config_hash": self.config_hash,
        }
        if not self.record.is_file():
            return fresh
        found = read_json(self.record)
        same = isinstance(found, dict) and self.means(found.get("config_hash"))
        return fresh | found if same else fresh

    def means(self, code: str | None) -> bool:
        """Whether a hash that was written down is of this configuration.

        The run that stands here may have been made before a key existed: then its ``config.yaml``
        says, read with today's keys.
        """
        if code is None:
            return False
        if code == self.config_hash:
            return True
        run = RunDir(self.home)
        return code == written_hash(run) and is_of(run, self.config_hash, file_hash)

    def note_end(self, code: int, cpu: float | None) -> None:
        """An attempt has ended; its CPU seconds join those of the attempts before it."""
        before = self.attempts()["cpu_seconds"]
        whole = before if cpu is None else (before or 0.0) + cpu
        self.note(exit_code=code, cpu_seconds=whole)

    def note(self, **facts: Any) -> None:
        """Change the record."""
        self.record.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.record, self.attempts() | facts)


def standing(job: Job) -> str:
    """How far a job is.

    Returns:
        ``missing``, ``done``, ``failed`` (its last attempt), ``stopped`` (can be continued),
        ``running`` (another process writes there) or ``other`` (a run of another configuration).
    """
    if _held(job.home):
        return "running"
    if not RunDir.holds_run(job.home):
        return "failed" if job.attempts()["failures"] else "missing"
    run = RunDir.open(job.home)
    failed = job.attempts()["failures"] > 0
    if not is_of(run, job.config_hash, file_hash):
        return "failed" if failed else "other"
    if run.finished():
        return "done"
    return "failed" if failed else "stopped"


def _held(home: Path) -> bool:
    """Whether a process writes there; it locks the place before it has said what its run is."""
    if not (home / "lock").is_file() and not RunDir.holds_run(home):
        return False
    run = RunDir(home)
    try:
        run.lock()
    except RunError:
        return True
    run.release()
    return False


def set_aside(job: Job) -> Path:
    """Make room for a job: move the run that stands in its place out of the way."""
    stem, n = f"{job.home.name}.was-{written_hash(RunDir(job.home)) or 'unknown'}", 1
    place = job.home.with_name(stem)
    while place.exists():
        n += 1
        place = job.home.with_name(f"{stem}-{n}")
    job.home.rename(place)
    return place


def failure_of(job: Job) -> dict[str, str]:
    """What is known of a failure: from the run's status, else from the end of its log."""
    error, facts = None, job.attempts()
    if told := facts.get("error"):
        return {"type": "other configuration", "message": str(told), "traceback_tail": ""}
    if RunDir.holds_run(job.home):
        error = RunDir.open(job.home).read_status().get("error")
    if isinstance(error, dict) and error:
        return {name: str(error.get(name, "")) for name in ("type", "message", "traceback_tail")}
    text = job.log.read_text(errors="replace")[-TAIL:] if job.log.is_file() else ""
    lines = [line for line in text.splitlines() if line.strip()]
    code = facts["exit_code"]
    kind = f"exit code {code}" if code is not None else "no exit code"
    return {"type": kind, "message": lines[-1] if lines else "", "traceback_tail": text}


def execute(
    command: Sequence[str], environment: Mapping[str, str], log: str, folder: str
) -> tuple[int, float | None]:
    """Run a command to its end; what stops this function stops the command first.

    Args:
        command: program and arguments.
        environment: variables beside those of this process.
        log: file that gets both outputs, at its end.
        folder: working directory.

    Returns:
        Its exit code and CPU seconds.
    """
    with Path(log).open("a") as out:
        process = start(command, environment, out, folder)
        try:
            used = reap(process, block=True)
            return process.wait(), used
        finally:
            if process.poll() is None:
                finish(process)


def start(
    command: Sequence[str], environment: Mapping[str, str], out: Any, folder: str
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own: a terminal's Ctrl-C reaches the sweep only."""
    return subprocess.Popen(
        list(command),
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        cwd=folder,
        start_new_session=True,
    )


def reap(process: subprocess.Popen[bytes], *, block: bool = False) -> float | None:
    """CPU seconds, user and system, of a process that has ended and of what it waited for.

    Returns:
        None while it runs, where it was waited for before, or where the system does not count.
    """
    if process.returncode is not None or not hasattr(os, "wait4"):
        process.poll()
        return None
    try:
        pid, status, usage = os.wait4(process.pid, 0 if block else os.WNOHANG)
    except ChildProcessError:
        return None
    if pid == 0:
        return None
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def finish(process: subprocess.Popen[bytes], grace: float = GRACE) -> int:
    """Ask a command to save and end; kill its whole session where it does not."""
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(grace)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def progress_of(job: Job) -> float | None:
    """Share of its steps that a running job has taken; None where it has not said."""
    path = job.home / "status.json"
    try:
        status = json.loads(path.read_bytes())
        return float(status["step"]) / max(1.0, float(status["total_steps"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
