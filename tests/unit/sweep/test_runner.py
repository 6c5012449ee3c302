"""Scheduling, with launchers that need no torch: retries, kills, signals, other configurations."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import nl.assembly  # noqa: F401 - kinds
from nl.config import ConfigError, unstructure
from nl.config.hydra import compose, run_config
from nl.config.run import config_hash
from nl.run import RunError
from nl.sweep.job import Job, standing
from nl.sweep.results import scan
from nl.sweep.runner import Lock, Runner
from nl.sweep.slots import Local, Place

DRIVER = Path(__file__).with_name("driver.py")
_spec = importlib.util.spec_from_file_location("sweep_driver", DRIVER)
assert _spec is not None
assert _spec.loader is not None
_driver = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_driver)
jobs_of = _driver.jobs_of
QUICK = "steps=2,wait=0.01"


def run(root: Path, jobs: list[Job], **options: Any) -> tuple[list[dict[str, Any]], list[str]]:
    told: list[str] = []
    root.mkdir(exist_ok=True)
    Runner(root, Local(Place(slots=2)), tell=told.append, **options).run(jobs)
    return scan(jobs), told


def starts(job: Job) -> int:
    path = Path(f"{job.home}.starts")
    return len(path.read_text().splitlines()) if path.is_file() else 0


def test_every_job_runs_once_and_done_ones_are_kept(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path / "s", {"a": QUICK, "b": QUICK})
    rows, _ = run(tmp_path / "s", jobs)
    assert [(row["experiment"], row["seed"], row["status"]) for row in rows] == [
        ("a", 0, "done"),
        ("a", 1, "done"),
        ("b", 0, "done"),
        ("b", 1, "done"),
    ]
    assert rows[1]["metrics"] == {"val/loss": 0.5, "val/accuracy": 0.5}
    assert all(row["cpu_seconds"] > 0 for row in rows)
    told = json.loads((tmp_path / "s" / "progress.json").read_text())
    assert told["cpu_seconds"] == pytest.approx(sum(row["cpu_seconds"] for row in rows))
    again, _ = run(tmp_path / "s", jobs)
    assert again == rows
    assert [starts(job) for job in jobs] == [1, 1, 1, 1]
    lines = (tmp_path / "s" / "results.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["run_dir"] for line in lines) == [
        "a/seed_0",
        "a/seed_1",
        "b/seed_0",
        "b/seed_1",
    ]


def test_a_failure_is_tried_again_and_goes_on(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path / "s", {"a": f"{QUICK},fail=once"}, seeds=1)
    rows, told = run(tmp_path / "s", jobs)
    assert (rows[0]["status"], rows[0]["attempts"], starts(jobs[0])) == ("done", 2, 2)
    quick, _ = run(tmp_path / "t", jobs_of(tmp_path / "t", {"a": QUICK}, seeds=1))
    both = rows[0]["cpu_seconds"] / quick[0]["cpu_seconds"]
    assert both > 1.3, "of two attempts"
    assert any("attempt 2 follows" in line for line in told)


def test_a_failed_job_is_a_row_with_its_error_and_stops_no_other(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path / "s", {"bad": f"{QUICK},fail=always", "good": QUICK}, seeds=1)
    rows, _ = run(tmp_path / "s", jobs)
    assert [row["status"] for row in rows] == ["failed", "done"]
    assert rows[0]["error"] == {
        "type": "ValueError",
        "message": "the loss is not a number",
        "traceback_tail": "line 1\nline 2",
    }
    assert starts(jobs[0]) == 2
    run(tmp_path / "s", jobs)
    assert starts(jobs[0]) == 2, "what failed is left alone"
    run(tmp_path / "s", jobs, retry_failed=True)
    assert starts(jobs[0]) == 3


def test_a_refused_configuration_is_not_tried_again(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path / "s", {"a": f"{QUICK},fail=refuse"}, seeds=1)
    rows, _ = run(tmp_path / "s", jobs)
    assert (rows[0]["status"], starts(jobs[0])) == ("failed", 1)
    assert rows[0]["error"]["message"] == "steps: -1; must be >= 1."
    assert rows[0]["error"]["type"] == "exit code 2"


def test_another_configuration_is_set_aside_not_deleted(tmp_path: Path) -> None:
    root = tmp_path / "s"
    run(root, jobs_of(root, {"a": QUICK}, seeds=1))
    changed = jobs_of(root, {"a": "steps=3,wait=0.01"}, seeds=1)
    assert standing(changed[0]) == "other"
    rows, _ = run(root, changed)
    assert (rows[0]["status"], rows[0]["steps"]) == ("done", 3)
    kept = [path for path in (root / "a").iterdir() if path.name.startswith("seed_0.was-")]
    assert len(kept) == 1
    assert json.loads((kept[0] / "summary.json").read_text())["steps"] == 2


def test_a_run_of_before_a_key_existed_is_of_its_configuration_still(tmp_path: Path) -> None:
    resolved = run_config(compose("pilot_smoke", ["seed=0"]))
    (job,) = jobs_of(tmp_path / "s", {"a": QUICK}, seeds=1)
    run(tmp_path / "s", [job])
    data = unstructure(resolved)
    del data["train"]["max_norm"], data["logging"]
    (job.home / "config.yaml").write_text(yaml.safe_dump(data))
    today = dataclasses.replace(job, config_hash=config_hash(resolved))
    assert standing(today) == "done"
    assert today.attempts() == job.attempts()
    assert today.attempts()["cpu_seconds"] > 0
    run(tmp_path / "s", [today])
    assert starts(job) == 1
    data["optim"]["lr"] *= 2
    (job.home / "config.yaml").write_text(yaml.safe_dump(data))
    assert standing(today) == "other"
    assert today.attempts()["started"] == 0


def test_a_launcher_that_resolves_another_configuration_fails_once(tmp_path: Path) -> None:
    (job,) = jobs_of(tmp_path / "s", {"a": QUICK}, seeds=1)
    wrong = dataclasses.replace(job, config_hash="something else")
    rows, _ = run(tmp_path / "s", [wrong])
    assert rows[0]["status"] == "failed"
    assert "another configuration than the sweep" in rows[0]["error"]["message"]
    run(tmp_path / "s", [wrong])
    assert starts(wrong) == 1


def test_two_schedulers_do_not_share_a_directory(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "s")
    with pytest.raises(RunError, match="another nl sweep works there"):
        Lock(tmp_path / "s")
    lock.release()
    Lock(tmp_path / "s").release()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file: cannot be written"):
        Lock(tmp_path / "file")


def test_slots_are_filled(tmp_path: Path) -> None:
    """Two jobs of 0.6 s each side by side: most of the time both run."""
    jobs = jobs_of(tmp_path / "s", {"a": "steps=6,wait=0.1"}, seeds=2)
    seen: list[int] = []

    def look() -> bool:
        seen.append(busy(jobs))
        return False

    run(tmp_path / "s", jobs, stopping=look)
    assert max(seen) == 2


def busy(jobs: list[Job]) -> int:
    return sum(standing(job) == "running" for job in jobs)


def driver(root: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(DRIVER), str(root), "2", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_killed_ten_times_it_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    words = [f"{name}=steps=4,wait=0.1" for name in ("a", "b", "c")]
    chance = random.Random(0)
    for _ in range(10):
        process = driver(tmp_path / "killed", *words)
        time.sleep(0.2 + 0.3 * chance.random())
        process.send_signal(signal.SIGKILL)
        process.communicate()
    last = driver(tmp_path / "killed", *words)
    text = last.communicate(timeout=300)[0].decode()
    assert last.returncode == 0, text
    calm = driver(tmp_path / "calm", *words)
    said = calm.communicate(timeout=300)[0]
    assert calm.returncode == 0, said

    def results(root: Path) -> list[dict[str, Any]]:
        lines = (root / "results.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        return [
            {key: row[key] for key in ("experiment", "seed", "status", "metrics", "steps")}
            for row in rows
        ]

    assert results(tmp_path / "killed") == results(tmp_path / "calm")
    assert len(results(tmp_path / "killed")) == 6


HOLD = """
import fcntl, pathlib, sys
home = pathlib.Path(sys.argv[1])
home.mkdir(parents=True)
file = (home / "lock").open("a+")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_job_that_has_only_locked_its_place_is_waited_for(tmp_path: Path) -> None:
    """A killed sweep left it so; another start would remove what it is writing."""
    (job,) = jobs_of(tmp_path / "s", {"a": QUICK}, seeds=1)
    command = [sys.executable, "-c", HOLD, str(job.home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        assert standing(job) == "running"
        (job.home / "config.yaml").write_text("begun")
        waiting = iter([False] * 5)

        def stopping() -> bool:
            assert (job.home / "config.yaml").is_file()
            return next(waiting, True)

        _, told = run(tmp_path / "s", [job], stopping=stopping)
        assert told[0] == "a/seed_0: still running in another process, waiting for it"
        assert starts(job) == 0
        holder.kill()
    assert standing(job) == "missing"
    rows, _ = run(tmp_path / "s", [job])
    assert (rows[0]["status"], starts(job)) == ("done", 1)


def test_sigterm_stops_the_jobs_which_save_and_go_on_later(tmp_path: Path) -> None:
    root, words = tmp_path / "s", ["a=steps=30,wait=0.1"]
    process = driver(root, *words)
    jobs = jobs_of(root, {"a": "steps=30,wait=0.1"})
    until = time.monotonic() + 300
    while busy(jobs) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.3)
    process.terminate()
    text = process.communicate(timeout=300)[0].decode()
    assert "stopping: 2 running jobs save first" in text
    assert [standing(job) for job in jobs] == ["stopped", "stopped"]
    steps = json.loads((jobs[0].home / "checkpoints" / "state.json").read_text())["step"]
    assert 0 < steps < 30
    progress = json.loads((root / "progress.json").read_text())
    assert (progress["stopped"], progress["running"]) == (2, {})


def test_gpus_are_slots_that_jobs_see(tmp_path: Path) -> None:
    backend = Local(Place(gpus=("3", "5")))
    assert backend.slots == 2
    code = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    for slot, device in enumerate(("3", "5")):
        home = tmp_path / f"seed_{slot}"
        job = Job("a", slot, home, (sys.executable, "-c", code), "", {}, ())
        handle = backend.start(job, slot)
        while handle.poll() is None:
            time.sleep(0.02)
        assert job.log.read_text().strip() == device


def test_cpu_seconds_are_of_the_job_and_of_what_it_waits_for(tmp_path: Path) -> None:
    spin = "import time; begun = time.process_time()\nwhile time.process_time() < begun + 0.3: pass"
    inside = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spin!r}])"
    backend = Local(Place(slots=2))
    found = []
    for seed, code in enumerate((spin, inside, "pass")):
        job = Job("a", seed, tmp_path / f"seed_{seed}", (sys.executable, "-c", code), "", {}, ())
        found.append((job, backend.start(job, 0)))
    for job, handle in found:
        while (code := handle.poll()) is None:
            time.sleep(0.02)
        assert code == 0, job.log.read_text()
    busy_one, parent, idle = (handle.cpu() for _, handle in found)
    assert busy_one is not None
    assert parent is not None
    assert idle is not None
    assert busy_one > 0.3
    assert parent > 0.3
    assert idle < busy_one
    job = found[0][0]
    job.note_end(1, 2.0)
    job.note_end(0, None)
    job.note_end(0, 0.5)
    assert job.attempts()["cpu_seconds"] == 2.5


def test_a_process_that_does_not_end_is_killed(tmp_path: Path) -> None:
    from nl.sweep.job import finish, start

    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print(1, flush=True); time.sleep(60)"
    )
    with (tmp_path / "log").open("w") as out:
        process = start([sys.executable, "-c", code], {}, out, str(tmp_path))
    while not (tmp_path / "log").read_text():
        time.sleep(0.02)
    assert finish(process, grace=0.2) == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
