"""Fault campaign, rows of processes that are killed, stopped or refused by the disk."""

from __future__ import annotations

import errno
import functools
import importlib
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import group
import torch
from faults_ground import BASE, PLAIN, Ground, difference, intact, newest_step, promised_step

from nl.run.records import RecordWriter, read_records

Outcomes = list[str]
# Parts of these modules are replaced below.
checkpoint: Any = importlib.import_module("nl.dist.checkpoint")
pending: Any = importlib.import_module("nl.dist.pending")
ASYNC = {"checkpoint__asynchronous": True, "checkpoint__every": 1}


def kill_while_saving(ground: Ground, count: int, changes: dict[str, Any]) -> Outcomes:
    """Rows 1 and 2: SIGKILL twice at uniformly random times, then to the end."""
    _, seconds = ground.reference(changes)
    found: Outcomes = []
    while len(found) < count:
        folder, killed = ground.folder(), 0
        for high in (0.95, 0.7):
            pid = ground.begin(folder, changes, lambda: None)
            time.sleep(ground.draw.uniform(0.05, high) * seconds)
            os.kill(pid, signal.SIGKILL)
            killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        if killed:
            found.append(intact(folder) or ground.resumed(folder, changes))
        ground.clear(folder)
    return found


def kill_saving(ground: Ground, count: int) -> Outcomes:
    """Row 1."""
    return kill_while_saving(ground, count, {"checkpoint__every": 1})


def kill_saving_asynchronously(ground: Ground, count: int) -> Outcomes:
    """Row 2."""
    return kill_while_saving(ground, count, ASYNC)


def kill_one_rank(ground: Ground, count: int) -> Outcomes:
    """Row 3: SIGKILL one of two ranks while they save."""
    changes = {"checkpoint__every": 1}
    _, seconds = ground.reference(changes, world=2)
    found: Outcomes = []
    while len(found) < count:
        folder, port = ground.folder(), group.free_port()
        full = {**BASE, **changes, "run__dir": str(folder)}
        pids = [group.start(rank, 2, port, full, {}) for rank in range(2)]
        time.sleep(ground.draw.uniform(0.3, 0.9) * seconds)
        victim = ground.draw.randrange(2)
        os.kill(pids[victim], signal.SIGKILL)
        codes = group.wait(pids, 60)
        if codes[victim] == -signal.SIGKILL and codes[1 - victim] != 0:
            bad = "the survivor did not end" if codes[1 - victim] is None else ""
            found.append(bad or intact(folder) or ground.resumed(folder, changes, world=2))
        elif codes[victim] != 0 and not (folder / "summary.json").is_file():
            found.append(f"exit codes {codes} of a run that is not done")
        ground.clear(folder)
    return found


def arm(chosen: int) -> Callable[[], None]:
    """Before (or after) so many renames and deletions, the process kills itself."""

    def patch() -> None:
        calls = [0]
        for name in ("rename", "replace", "unlink", "rmdir"):
            real = getattr(os, name)

            def armed(*args: Any, real: Any = real, **more: Any) -> Any:
                calls[0] += 1
                if calls[0] == chosen:
                    if chosen % 2:
                        real(*args, **more)
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **more)

            setattr(os, name, armed)

    return patch


def kill_in_retention(ground: Ground, count: int) -> Outcomes:
    """Row 4: SIGKILL at a rename or deletion: retention, ``latest``, ``best``."""
    changes: dict[str, Any] = {"checkpoint__every": 1, "checkpoint__keep": 1}
    found: Outcomes = []
    ground.reference(changes)
    while len(found) < count:
        folder = ground.folder()
        pid = ground.begin(folder, changes, arm(ground.draw.randrange(8, 200)))
        if os.WIFSIGNALED(os.waitpid(pid, 0)[1]):
            found.append(intact(folder) or ground.resumed(folder, changes))
        ground.clear(folder)
    return found


def in_save(number: int, before: Callable[[], Any], after: Callable[[Any], None]) -> None:
    """Surround the ``number``-th save of this process."""
    real, calls = checkpoint.save, [0]

    def save(*args: Any) -> Path:
        calls[0] += 1
        if calls[0] != number:
            return Path(real(*args))
        kept = before()
        try:
            return Path(real(*args))
        finally:
            after(kept)

    checkpoint.save = save


def full_disk(ground: Ground) -> Callable[[], None]:
    """No file may grow over a random size during one periodic save."""
    number, limit = ground.draw.randrange(1, 5), ground.draw.randrange(100, 30_000)

    def shrink() -> tuple[int, int]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        kept = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, kept[1]))
        return kept

    def restore(kept: tuple[int, int]) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)

    return lambda: in_save(number, shrink, restore)


def failing(name: str, chosen: int, code: int) -> Callable[[], None]:
    """The ``chosen``-th call of ``os.<name>`` fails."""

    def patch() -> None:
        real, calls = getattr(os, name), [0]

        def wrapped(*args: Any, **more: Any) -> Any:
            calls[0] += 1
            if calls[0] == chosen:
                raise OSError(code, os.strerror(code))
            return real(*args, **more)

        setattr(os, name, wrapped)

    return patch


def disk_refuses(ground: Ground, count: int) -> Outcomes:
    """Row 8: full disk at a random byte, EIO on a random fsync, a folder that cannot be made."""
    changes: dict[str, Any] = {"model__dim": 32}
    found: Outcomes = []
    want, _ = ground.reference(changes)
    while len(found) < count:
        kind = len(found) % 15
        if kind < 10:
            patch = full_disk(ground)
        elif kind < 14:
            patch = failing("fsync", ground.draw.randrange(1, 60), errno.EIO)
        else:
            patch = failing("mkdir", ground.draw.randrange(5, 8), errno.EROFS)
        folder = ground.folder()
        status = os.waitpid(ground.begin(folder, changes, patch), 0)[1]
        if status:
            found.append(intact(folder) or ground.resumed(folder, changes))
        elif "goes on" in (folder / "logs" / "rank_00.log").read_text():
            left = list((folder / "checkpoints").glob(".tmp-*"))
            bad = f"left behind: {left[0].name}" if left else difference(folder, 12, want)
            found.append(bad)
        ground.clear(folder)
    return found


def slow_disk(ground: Ground, count: int) -> Outcomes:
    """Row 9: every file takes 0.15 s; a save lasts longer than the interval."""
    want, _ = ground.reference(ASYNC)
    found = []
    for _ in range(count):
        folder = ground.folder()
        log = folder.with_name(f"{folder.name}-log")

        def patch(folder: Path = folder, log: Path = log) -> None:
            real = checkpoint.write_tensors

            def slow(*args: Any) -> None:
                time.sleep(0.15)
                with log.open("a") as file:
                    file.write(f"{len(list((folder / 'checkpoints').glob('.tmp-step*')))}\n")
                real(*args)

            checkpoint.write_tensors = slow

        status = os.waitpid(ground.begin(folder, ASYNC, patch), 0)[1]
        most = max(map(int, log.read_text().split()))
        bad = f"exit {status}" if status else f"{most} at once" if most > 1 else ""
        waited = "still being written; waiting" in (folder / "logs" / "rank_00.log").read_text()
        found.append(bad or ("" if waited else "no wait was said") or difference(folder, 12, want))
        ground.clear(folder)
    return found


def stop_by_signal(ground: Ground, count: int) -> Outcomes:
    """Row 14: SIGTERM at a random batch, one process or one of two ranks."""
    found = []
    for number in range(count):
        world = 1 + number % 2
        ground.reference({}, world=world)
        folder, batch = ground.folder(), ground.draw.randrange(22)
        place = {"TINY_CRASH_AT": str(batch), "TINY_CRASH_SIGNAL": "SIGTERM"}
        begin = time.monotonic()
        codes = ground.run(folder, {}, world=world, places={ground.draw.randrange(world): place})
        late = time.monotonic() - begin > 25
        bad = f"{codes}" if codes != [143] * world else "took over 25 s" if late else ""
        if not bad and newest_step(folder) != batch // 2 + 1:
            bad = f"saved step {newest_step(folder)}, interrupted in {batch // 2 + 1}"
        found.append(bad or ground.resumed(folder, {}, world=world))
        ground.clear(folder)
    return found


def second_signal(ground: Ground, count: int) -> Outcomes:
    """Row 15: a second signal while the save that the first one asked for is being written."""
    found = []
    for number in range(count):
        folder, batch = ground.folder(), ground.draw.randrange(4, 20)

        def patch(batch: int = batch) -> None:
            os.environ |= {"TINY_CRASH_AT": str(batch), "TINY_CRASH_SIGNAL": "SIGTERM"}
            real = checkpoint.commit

            def slow(scratch: Path, final: Path, *more: Any) -> None:
                if final.name == f"step_{batch // 2 + 1:06d}":
                    (scratch.parent.parent / "waiting").touch()
                    time.sleep(20)
                real(scratch, final, *more)

            checkpoint.commit = slow

        pid = ground.begin(folder, {}, patch)
        deadline = time.monotonic() + 20
        while not (folder / "waiting").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        before, begin = promised_step(folder), time.monotonic()
        os.kill(pid, (signal.SIGTERM, signal.SIGINT)[number % 2])
        code = group.wait([pid], 5)[0]
        slow_end = time.monotonic() - begin > 2
        bad = f"exit code {code}" if code not in (143, 130) else "over 2 s" if slow_end else ""
        if not bad and newest_step(folder) != before:
            bad = f"newest is {newest_step(folder)}, was {before}"
        (folder / "waiting").unlink(missing_ok=True)
        found.append(bad or ground.resumed(folder, {}))
        ground.clear(folder)
    return found


def stopped_process(ground: Ground, count: int) -> Outcomes:
    """Row 16: SIGSTOP of one of two ranks, SIGCONT later; its own limits are shorter than that."""
    seconds = 30.0 if ground.share == 1 else 8.0
    limits = {"data_seconds": 4.0, "step_seconds": 4.0, "collective_seconds": 120.0}
    changes = {"train__watchdog": limits}
    want, _ = ground.reference({}, world=2)
    found = []
    for _ in range(count):
        folder, port = ground.folder(), group.free_port()
        full = {**BASE, **changes, "run__dir": str(folder)}
        place = {"TINY_CRASH_AT": "9", "TINY_CRASH_SIGNAL": "SIGSTOP"}
        pids = [group.start(r, 2, port, full, place if r else {}) for r in range(2)]
        os.waitpid(pids[1], os.WUNTRACED)
        time.sleep(seconds)
        os.kill(pids[1], signal.SIGCONT)
        codes = group.wait(pids, 60)
        found.append(f"{codes}" if codes != [0, 0] else difference(folder, 12, want))
        ground.clear(folder)
    return found


def broken_log(ground: Ground, count: int) -> Outcomes:
    """Row 29: rows that cannot be written, and a log that was cut in the middle of a line."""
    want, _ = ground.reference(PLAIN)
    found = []
    for number in range(count):
        folder, bad_row = ground.folder(), ground.draw.randrange(2, 10)
        if number % 2:
            place = {0: {"TINY_CRASH_AT": "9", "TINY_CRASH_SIGNAL": "SIGKILL"}}
            ground.run(folder, PLAIN, places=place)
            with (folder / "metrics.jsonl").open("a") as file:
                file.write('{"step": 5, "lo')
            found.append(ground.resumed(folder, PLAIN))
        else:
            pid = ground.begin(folder, PLAIN, functools.partial(_torn, bad_row))
            code = group.wait([pid], 60)[0]
            steps = [r["step"] for r in read_records(folder / "metrics.jsonl") if "lr" in r]
            bad = "" if code == 0 else f"exit code {code}"
            if not bad and (len(steps) != 11 or steps != sorted(set(steps))):
                bad = f"rows of steps {steps}"
            found.append(bad or difference(folder, 12, want, ("rows", "summary")))
        ground.clear(folder)
    return found


def _torn(chosen: int) -> None:
    """One row of metrics.jsonl fails after half of it."""
    writer: Any = RecordWriter
    real, calls = writer.append, [0]

    class Half:
        def __init__(self, file: Any) -> None:
            self.file, self.writes = file, 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, data: bytes) -> int:
            self.writes += 1
            if self.writes > 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return int(self.file.write(data[: len(data) // 2]))

    def append(self: Any, row: Any) -> None:
        calls[0] += "lr" in row
        if calls[0] != chosen or "lr" not in row:
            real(self, row)
            return
        file, self._file = self._file, Half(self._file)
        try:
            real(self, row)
        finally:
            self._file = file

    writer.append = append


def no_memory(ground: Ground, count: int) -> Outcomes:
    """Row 34: no address space left, in a forward pass or in a save."""
    found = []
    for number in range(count):
        folder, batch = ground.folder(), ground.draw.randrange(6, 20)

        def patch(in_forward: bool = number % 2 == 0, batch: int = batch) -> None:
            if in_forward:
                os.environ |= {"TINY_CRASH_AT": str(batch), "TINY_CRASH_SIGNAL": "MEMORY"}
                return
            real, calls = pending.checkpoint.host_tensors, [0]

            def greedy(named: Any) -> Any:
                calls[0] += 1
                if calls[0] == 3:
                    import tiny

                    tiny.crash("MEMORY")
                return real(named)

            pending.checkpoint.host_tensors = greedy

        code = group.wait([ground.begin(folder, {}, patch)], 60)[0]
        words = ground.words(folder)
        told = "memory" in words.lower()
        bad = "" if code == 1 and told else f"exit code {code}: {words[-200:]}"
        found.append(bad or intact(folder) or ground.resumed(folder, {}))
        ground.clear(folder)
    return found


torch.set_num_threads(1)
