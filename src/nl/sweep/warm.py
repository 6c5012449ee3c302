"""Slots of this machine, filled from a process that has imported torch once. Floor 1."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from nl.config import ConfigError
from nl.sweep.job import Job
from nl.sweep.slots import Handle, Place, threads

SERVER = "nl.cli_warm"


class Warm:
    """Like ``Local``, but a job is a fork: it begins in a hundredth of the time.

    Threads of a library are started by a fork itself, so the number of threads per job is the
    server's; a job that wants another launcher's processes (torchrun) needs ``local``.
    """

    def __init__(self, place: Place) -> None:
        self.gpus = place.gpus
        self.slots = len(place.gpus) or place.slots
        self.known: dict[int, dict[str, Any]] = {}
        self.server = subprocess.Popen(
            [sys.executable, "-m", SERVER],
            env={**os.environ, **threads(self.slots)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._listen, daemon=True)
        self.reader.start()

    def _listen(self) -> None:
        assert self.server.stdout is not None
        for line in self.server.stdout:
            facts = json.loads(line)
            self.known.setdefault(facts.pop("id", -1), {}).update(facts)

    def start(self, job: Job, slot: int) -> Handle:
        """Ask the server for a fork.

        Raises:
            ConfigError: the command is no launcher of one process.
        """
        python, *argv = job.command
        if python != sys.executable or not argv[0].endswith(".py"):
            raise ConfigError(
                f"--backend: warm; it forks train.py only, not {Path(argv[0]).name}: use local."
            )
        job.log.parent.mkdir(parents=True, exist_ok=True)
        extra = {"CUDA_VISIBLE_DEVICES": self.gpus[slot]} if self.gpus else {}
        number = len(self.known) + 1
        self.known[number] = {}
        request = {
            "id": number,
            "argv": argv,
            "environment": extra,
            "log": str(job.log.resolve()),
            "folder": str(Path.cwd()),
        }
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(request).encode() + b"\n")
        self.server.stdin.flush()
        return _Fork(self, number)

    def close(self) -> None:
        """Let the server end."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.close()
        self.server.wait()
        self.reader.join()
        self.server.stdout.close()


class _Fork:
    def __init__(self, home: Warm, number: int) -> None:
        self.home, self.number = home, number

    def poll(self) -> int | None:
        facts = self.home.known[self.number]
        if "code" not in facts and self.home.server.poll() is not None:
            return 1  # the server is gone; the run's own status says how far the job came
        code: int | None = facts.get("code")
        return code

    def cpu(self) -> float | None:
        used: float | None = self.home.known[self.number].get("cpu")
        return used

    def stop(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        pid = self.home.known[self.number].get("pid")
        if pid is not None and self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
