"""Sweeps as processes, and SIGKILL for them and what they started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def born(pid: int) -> str | None:
    """When a process began; None: it has ended. Tells it from a later one of the same number."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def send(number: int, pids: Iterable[int]) -> None:
    """A signal to processes; those that have ended are passed over."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for the sweep, its server and its jobs, frozen first so that none starts another."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        send(number, family(process.pid))
    process.wait()


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """``nl <command>`` in a session of its own; what it says is added to ``log``."""
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "nl", *command], stdout=out, stderr=out, start_new_session=True
        )
