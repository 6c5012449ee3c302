"""What waits for ever ends itself and says why; what merely takes long goes on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nl.config.guards import WatchdogConfig
from nl.run import RunDir, newest_valid
from nl.train.watchdog import Watchdog, alive, heartbeat_file, missing_ranks

RESUME = Path(__file__).parents[2] / "resume"


def watchdog(folder: Path, world: int = 1, compiled: bool = False, **limits: float) -> Watchdog:
    (folder / "logs").mkdir(exist_ok=True)
    config = WatchdogConfig(**limits)
    return Watchdog(config, RunDir(folder), rank=world - 1, world=world, compiled=compiled)


def test_limits(tmp_path: Path) -> None:
    watch = watchdog(tmp_path, data_seconds=5, step_seconds=3, step_factor=10)
    watch.phase("data", 4)
    now = time.monotonic()
    assert watch.overdue(now + 4.9) == ""
    told = (
        "rank 0: no batch of the training stream for 6 s at step 4 (train.watchdog.data_seconds=5)"
    )
    assert watch.overdue(now + 6) == told
    watch.phase("step", 4)
    assert watch.overdue(now + 1e6) == ""  # no step is usual yet
    watch._steps = 5
    watch.durations.extend([0.1] * 5)
    assert watch.overdue(now + 2) == ""
    assert "rank 0: step 4 has not ended after 4 s in step" in watch.overdue(now + 4)
    watch.phase("save", 4)
    assert watch.overdue(now + 1e6) == ""


def test_a_step_may_take_ten_times_the_usual(tmp_path: Path) -> None:
    watch = watchdog(tmp_path, step_seconds=3)
    watch.durations.extend([1.0] * 20)
    watch._steps = 20
    assert watch.step_limit() == 10.0
    assert watchdog(tmp_path, world=2).step_limit() == 300.0
    assert watchdog(tmp_path, world=2, compiled=True).step_limit() == 3600.0
    assert watchdog(tmp_path).step_limit() == 0.0
    for world, key in ((1, "step_seconds"), (2, "collective_seconds")):
        assert watchdog(tmp_path, world=world, **{key: 0}).step_limit() == 0.0


def test_a_process_that_was_stopped_did_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, ended = [0.0], []
    monkeypatch.setattr("nl.train.watchdog.time", SimpleNamespace(monotonic=lambda: clock[0]))
    watch = watchdog(tmp_path, data_seconds=0.4)
    watch.end = lambda complaint: ended.append((complaint, clock[0]))
    between = iter([0.05] * 4 + [100.0] + [0.05] * 10)

    def wait(interval: float) -> bool:
        assert interval == 0.05
        clock[0] += next(between)
        return False

    watch.phase("data", 1)
    monkeypatch.setattr(watch, "_stop", SimpleNamespace(wait=wait))
    monkeypatch.setattr(watch, "beat", lambda: None)
    watch._watch()
    ((complaint, when),) = ended
    assert when == pytest.approx(100.45)
    assert "no batch of the training stream for 0 s at step 1" in complaint


def test_the_heartbeat_keeps_the_lock_of_a_slow_run_fresh(tmp_path: Path) -> None:
    status = tmp_path / "status.json"
    status.write_text("{}")
    os.utime(status, (1.0, 1.0))
    watchdog(tmp_path).beat()
    assert time.time() - status.stat().st_mtime < 60
    assert status.read_text() == "{}"


def test_heartbeats_tell_who_is_gone(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.monotonic() + 300
    while alive(child.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(child.pid)  # a zombie is not alive
    child.wait()
    assert alive(os.getpid())
    logs = tmp_path / "logs"
    watch = watchdog(tmp_path, world=2)
    watch.phase("step", 7)
    watch.beat()
    row = json.loads(heartbeat_file(logs, 1).read_text())
    assert (row["rank"], row["step"], row["phase"], row["state"]) == (1, 7, "step", "running")
    assert missing_ranks(logs, 0, 2).startswith(" rank 1 was at step 7 (step) 0 s ago")
    heartbeat_file(logs, 1).write_text(json.dumps(row | {"pid": child.pid}))
    told = f" rank 1 (process {child.pid}) is gone, last seen at step 7 (step); rank 2 has no heart"
    assert missing_ranks(logs, 0, 3).startswith(told)
    watch.beat("failed: disk")
    assert missing_ranks(logs, 0, 2) == " rank 1 failed: disk at step 7 (step)."
    heartbeat_file(logs, 1).write_text("[1")
    assert missing_ranks(logs, 0, 2) == " rank 1 has no heartbeat."


def test_a_rank_that_dies_a_moment_later_is_still_named(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    watch = watchdog(tmp_path, world=2)
    watch.beat()
    path = heartbeat_file(tmp_path / "logs", 1)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pid": child.pid}))
    ours = Watchdog(WatchdogConfig(), RunDir(tmp_path), rank=0, world=2)
    killer = threading.Timer(0.3, child.kill)
    killer.start()
    assert ours.others().startswith(f" rank 1 (process {child.pid}) is gone, last seen at step 0")
    killer.join()
    child.wait()


LIMITS = {"data_seconds": 2.0, "step_seconds": 2.0, "collective_seconds": 4.0}
DIES = [{"TINY_CRASH_AT": "7", "TINY_CRASH_SIGNAL": how} for how in ("SIGKILL", "EXIT")]
HANGS = [{"TINY_HANG_AT": "7", "TINY_HANG_IN": where} for where in ("loader", "step")]
CASES = [(1, "single", place) for place in HANGS] + [(2, "ddp", p) for p in (*DIES, *HANGS)]
TOLD = (
    r"rank 0: no batch of the training stream for \d+ s at step 8 \(.*data_seconds=2\)",
    r"rank 0: step 8 has not ended after \d+ s in step.*step_seconds=2",
    r"rank 0 at step 7\. rank 1 \(process \d+\) is gone, last seen at step",
    r"rank 0 at step 7\. rank 1 \(process \d+\) is gone, last seen at step",
    r"rank 0 at step 7\. rank 1 failed: rank 1: no batch of the training stream",
    r"rank [01] at step 7|rank 0: step 8 has not ended.*collective_seconds=4.*rank 1",
)


def ended(root: Path) -> list[dict[str, Any]]:
    """Runs in which rank 0 alone hangs, or rank 1 of 2 dies or hangs, at batch 7.

    The last one: rank 0 of 2 dies when all steps are done, before it says so.
    """
    cases = []
    for number, (world, strategy, place) in enumerate(CASES):
        changes: dict[str, Any] = {
            "run__dir": str(root / str(number)),
            "checkpoint__every": 4,
            "train__validate_every": 0,
            "train__watchdog": LIMITS,
        }
        places = {world - 1: place}
        cases.append({"changes": changes, "world": world, "strategy": strategy, "places": places})
    last = {**cases[-1], "places": {0: {"TINY_CRASH_IN": "summary"}}}
    last["changes"] = {**last["changes"], "run__dir": str(root / "last")}
    cases.append(last)
    command = [sys.executable, str(RESUME / "group.py"), json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_who_waits_for_ever_ends_and_names_the_rank(tmp_path: Path) -> None:
    *found, last = ended(tmp_path)
    assert last["codes"] == [-9, 1], "nobody ends well before the run is done"
    for number, result in enumerate(found):
        folder, (world, _, place) = tmp_path / str(number), CASES[number]
        assert result["codes"][0] == 1
        assert result["codes"][-1] in (1, -9)
        assert result["seconds"] < LIMITS["collective_seconds"] + 60
        text = (folder / "logs" / "rank_00.log").read_text()
        assert re.search(TOLD[number], text), text[-3000:]
        if "TINY_HANG_IN" in place:
            stacks = (folder / "logs" / f"rank_{world - 1:02d}.log").read_text()
            assert 'tiny.py", line' in stacks
        status = RunDir(folder).read_status()
        assert (status["state"], status["rank"]) == ("failed", 0)
        assert newest_valid(folder)[0] == folder / "checkpoints" / "step_000004"
