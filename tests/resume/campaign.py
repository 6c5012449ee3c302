"""Kill runs with SIGKILL and resume them; prints one JSON line. Forks: everything loads once.

Usage: campaign.py FOLDER SEED STEP_KILLS TIME_KILLS
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import compare
import tiny

import nl.assembly

STEPS = 12


def child(folder: Path, crash_at: int = -1) -> int:
    """Start (or resume) the run in a process of its own; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.environ |= {"TINY_CRASH_AT": str(crash_at), "TINY_CRASH_SIGNAL": "SIGKILL"}
    run = tiny.tiny_run(run__dir=str(folder), resume="auto", train__steps=STEPS, **CHANGES)
    nl.assembly.launch(run)
    os._exit(0)


CHANGES: dict[str, Any] = {"train__grad_accum": 2, "checkpoint__every": 3, "checkpoint__keep": 2}


def finish(folder: Path) -> int:
    """Resume until the run ends by itself; returns the exit status."""
    return os.waitpid(child(folder), 0)[1]


def killed_at_step(folder: Path, batch: int) -> bool:
    """SIGKILL before a micro-batch; True: it was killed."""
    status = os.waitpid(child(folder, batch), 0)[1]
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def killed_after(folder: Path, seconds: float) -> bool:
    """SIGKILL after some time, wherever the run is then; True: it was killed."""
    pid = child(folder)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def outcome(folder: Path, want: dict[str, Any]) -> str:
    """``same``, or what differs from the run that was never killed."""
    status = finish(folder)
    if status:
        return f"exit status {status}"
    got = compare.fingerprint(folder, STEPS)
    return "same" if got == want else "differs: " + ", ".join(k for k in want if got[k] != want[k])


def main() -> None:
    root, draw = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
    warm = tiny.tiny_run(run__dir=str(root / "warm"), train__steps=1)
    nl.assembly.launch(warm)  # imports what the children would each import again
    begin = time.monotonic()
    finish(root / "reference")
    length = time.monotonic() - begin
    want = compare.fingerprint(root / "reference", STEPS)
    outcomes, kills = [], 0
    for batch in draw.sample(range(2 * STEPS), int(sys.argv[3])):
        folder = root / f"step{batch}"
        kills += killed_at_step(folder, batch)
        outcomes.append(f"batch {batch}: {outcome(folder, want)}")
        shutil.rmtree(folder)
    for number in range(int(sys.argv[4])):
        folder, moment = root / f"time{number}", draw.uniform(0.02, 1.1) * length
        kills += killed_after(folder, moment)
        kills += killed_after(folder, draw.uniform(0.02, 0.8) * length)
        outcomes.append(f"after {moment:.3f} s: {outcome(folder, want)}")
        shutil.rmtree(folder)
    print(json.dumps({"outcomes": outcomes, "kills": kills, "length": length}))


if __name__ == "__main__":
    main()
