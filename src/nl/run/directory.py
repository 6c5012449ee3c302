"""RunDir: one directory per run, one writer at a time, every file whole or absent. Floor 0."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from nl.run.files import RunError, read_json, writable_folder, write_atomic, write_json

__all__ = ["RunDir", "RunError", "write_atomic"]

HEARTBEAT_SECONDS = 60.0
"""A lock held from another host counts as alive while the status is younger than this."""


class RunDir:
    """Paths, lock and status of one run directory.

    Use ``RunDir.create`` for a new run and ``RunDir.open`` for an existing one; both only check.
    ``lock()`` makes this process the single writer until ``release()`` or its death.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.overrides = path / "overrides.txt"
        self.meta = path / "meta.json"
        self.status = path / "status.json"
        self.metrics = path / "metrics.jsonl"
        self.evals = path / "evals.jsonl"
        self.summary = path / "summary.json"
        self.checkpoints = path / "checkpoints"
        self.artifacts = path / "artifacts"
        self.logs = path / "logs"
        self._lock: IO[str] | None = None

    @staticmethod
    def holds_run(path: Path) -> bool:
        """Whether ``path`` is a directory with the files of a run."""
        return (path / "config.yaml").is_file() and (path / "meta.json").is_file()

    @classmethod
    def place(cls, root: str, name: str, config_hash: str, seed: int) -> Path:
        """A fresh path ``<root>/<name>/<time>-<hash>-s<seed>`` (UTC), not yet created."""
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        base = Path(root) / name / f"{stamp}-{config_hash}-s{seed}"
        path, n = base, 1
        while path.exists():
            n += 1
            path = base.with_name(f"{base.name}-{n}")
        return path

    @classmethod
    def create(cls, path: Path) -> RunDir:
        """Make the directory of a new run and lock it.

        Raises:
            RunError: it already holds a run or other files, or cannot be written.
        """
        cls.check_new(path)
        run = cls(path)
        try:
            for folder in (path, run.checkpoints, run.artifacts, run.logs):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"run.dir: {path} cannot be created ({error.strerror}).") from error
        run.lock()
        return run

    @classmethod
    def check_new(cls, path: Path) -> None:
        """Refuse a place where a new run cannot go; writes nothing.

        Raises:
            RunError: it already holds a run or other files, or cannot be written.
        """
        writable_folder(path, "run.dir")
        if cls.holds_run(path):
            raise RunError(
                f"run.dir: {path} already holds a run; add resume={path} to continue it, "
                "or choose another directory."
            )
        foreign = cls._foreign(path)
        if foreign:
            raise RunError(
                f"run.dir: {path} holds other files ({foreign[0]}); choose an empty or new place."
            )

    @staticmethod
    def _foreign(path: Path) -> list[str]:
        """Names that a run whose creation was interrupted would not have left (sorted)."""
        own = {"config.yaml", "overrides.txt", "lock", "checkpoints", "artifacts", "logs"}
        names = [p.name for p in path.iterdir()] if path.is_dir() else []
        return sorted(n for n in names if n not in own and not n.startswith(".tmp-"))

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """An existing run, not locked.

        Raises:
            RunError: ``path`` holds no run.
        """
        if not cls.holds_run(path):
            raise RunError(f"{path}: holds no run (no config.yaml and meta.json).")
        return cls(path)

    def lock(self) -> None:
        """Become the only writer; a lock whose owner is gone is taken over.

        The kernel's file lock decides between processes of one machine and ends with its owner;
        across machines the owner's heartbeat does.

        Raises:
            RunError: another live process writes here; the message names its pid and host.
        """
        file = (self.path / "lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = self._owner(file)
            file.close()
            raise RunError(
                f"{self.path}: in use by process {owner.get('pid')} on {owner.get('host')}; "
                "wait for it or stop it first."
            ) from error
        owner = self._owner(file)
        elsewhere = owner and owner.get("host") != socket.gethostname()
        if elsewhere and self._age() < HEARTBEAT_SECONDS:
            file.close()
            raise RunError(
                f"{self.path}: in use by process {owner.get('pid')} on {owner.get('host')}, "
                f"last seen {self._age():.0f} s ago; stop it, or wait {HEARTBEAT_SECONDS:.0f} s."
            )
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        file.flush()
        self._lock = file

    @staticmethod
    def _owner(file: IO[str]) -> dict[str, Any]:
        file.seek(0)
        try:
            owner = json.loads(file.read() or "{}")
        except (ValueError, RecursionError):
            owner = {}
        return owner if isinstance(owner, dict) else {}

    def _age(self) -> float:
        """Seconds since the status file was last replaced."""
        try:
            return max(0.0, time.time() - self.status.stat().st_mtime)
        except OSError:
            return float("inf")

    def release(self) -> None:
        """Stop being the writer."""
        if self._lock is not None:
            self._lock.truncate(0)
            self._lock.close()
            self._lock = None

    def write_status(
        self,
        state: str,
        step: int,
        total_steps: int,
        *,
        phase: str | None = None,
        error: dict[str, str] | None = None,
        step_seconds: float | None = None,
    ) -> None:
        """Replace ``status.json``: running | done | failed | stopped, how far, how fast.

        Rank 0 writes it; the other ranks have a heartbeat file each in ``logs``.
        """
        row = {
            "state": state,
            "step": step,
            "total_steps": total_steps,
            "phase": phase,
            "updated": time.time(),
            "pid": os.getpid(),
            "rank": 0,
            "step_seconds": step_seconds,
            "error": error,
        }
        write_json(self.status, row, durable=state != "running")

    def read_status(self) -> dict[str, Any]:
        """``status.json`` as written, or ``{}`` before the first write."""
        status = read_json(self.status) if self.status.is_file() else {}
        return status if isinstance(status, dict) else {}

    def finished(self) -> bool:
        """Whether the run ended: summary written and status done."""
        return self.summary.is_file() and self.read_status().get("state") == "done"

    def note_resume(self, facts: dict[str, Any], config_hash: str) -> None:
        """Append to the ``resumes`` list of ``meta.json``; the hash is the continuation's."""
        meta = read_json(self.meta)
        meta.setdefault("resumes", []).append(facts)
        meta["config_hash"] = config_hash
        write_json(self.meta, meta)

    def sweep(self) -> list[str]:
        """Remove what crashed saves and deletions left behind; returns the names."""
        swept = []
        for folder in (self.path, self.checkpoints):
            leftovers = list(folder.glob(".tmp-*")) + list(folder.glob(".trash-*"))
            for path in leftovers:
                swept.append(path.name)
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        return swept


def failure(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> dict[str, str]:
    """An exception as the ``error`` entry of ``status.json``."""
    tail = "".join(traceback.format_exception(kind, error, trace))[-2000:]
    return {"type": kind.__name__, "message": str(error), "traceback_tail": tail}
