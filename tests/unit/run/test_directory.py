"""RunDir: new places, the lock, the status."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest

from nl.run import RunDir, RunError, write_atomic
from nl.run.files import read_json, writable_folder, write_json


def make(path: Path) -> RunDir:
    run = RunDir.create(path)
    run.config.write_text("name: x\n")
    write_json(run.meta, {"config_hash": "0" * 12, "started": 1.0, "resumes": []})
    return run


def test_a_directory_is_used_by_one_run(tmp_path: Path) -> None:
    make(tmp_path / "a").release()
    with pytest.raises(RunError, match=r"run\.dir: .*a already holds a run; add resume="):
        RunDir.create(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("")
    with pytest.raises(RunError, match=r"holds other files \(thesis\.tex\)"):
        RunDir.create(tmp_path / "b")


def test_an_interrupted_creation_can_be_repeated(tmp_path: Path) -> None:
    first = RunDir.create(tmp_path / "a")
    first.config.write_text("name: x\n")
    first.release()
    again = RunDir.create(tmp_path / "a")
    again.release()
    assert again.path == first.path


def test_a_place_below_a_file_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(RunError, match=r"run\.dir: .*file is not a directory"):
        RunDir.create(file / "run")
    with pytest.raises(RunError, match=r"logging\.path: "):
        writable_folder(file / "x", "logging.path")
    with pytest.raises(RunError, match=r"run\.root: .*Choose another place"):
        writable_folder(tmp_path / ("x" * 300) / "runs", "run.root")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_takes_no_files_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writable_folder(tmp_path, "run.root")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RunError, match=r"run\.root: /proc/x; /proc takes no files"):
        writable_folder(Path("/proc/x"), "run.root")
    full = partial(Path("/dev/full").open, "wb")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: full())
    with pytest.raises(RunError, match=r"takes no files .No space left on device"):
        writable_folder(tmp_path, "run.root")


def test_places_are_distinct_within_a_second(tmp_path: Path) -> None:
    first = RunDir.place(str(tmp_path), "x", "0" * 12, 3)
    first.mkdir(parents=True)
    second = RunDir.place(str(tmp_path), "x", "0" * 12, 3)
    assert first != second
    assert first.name.endswith("-000000000000-s3")


def test_the_lock_names_its_owner_and_dies_with_it(tmp_path: Path) -> None:
    run = make(tmp_path / "a")
    run.release()
    code = (
        "import sys, time; from pathlib import Path; from nl.run import RunDir\n"
        "run = RunDir(Path(sys.argv[1])); run.lock(); print('held', flush=True); time.sleep(30)"
    )
    command = [sys.executable, "-c", code, str(run.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=rf"in use by process {holder.pid} on "):
            run.lock()
        holder.kill()
    run.lock()
    assert json.loads((run.path / "lock").read_text())["pid"] == os.getpid()
    run.release()
    assert (run.path / "lock").read_text() == ""


def test_a_lock_from_another_host_counts_while_its_heart_beats(tmp_path: Path) -> None:
    run = make(tmp_path / "a")
    run.release()
    foreign = {"pid": 4, "host": socket.gethostname() + "-other"}
    (run.path / "lock").write_text(json.dumps(foreign))
    run.write_status("running", 3, 10)
    with pytest.raises(RunError, match=r"in use by process 4 on .*-other, last seen"):
        run.lock()
    old = time.time() - 3600
    os.utime(run.status, (old, old))
    run.lock()
    run.release()


def test_two_locks_in_one_process_exclude_each_other(tmp_path: Path) -> None:
    run = make(tmp_path / "a")
    with pytest.raises(RunError, match="in use"):
        RunDir(run.path).lock()
    run.release()


def test_status_is_replaced_whole(tmp_path: Path) -> None:
    run = make(tmp_path / "a")
    assert run.read_status() == {}
    run.write_status("running", 3, 10, phase="1")
    status = run.read_status()
    assert (status["state"], status["step"], status["total_steps"]) == ("running", 3, 10)
    assert (status["phase"], status["pid"], status["error"]) == ("1", os.getpid(), None)
    run.write_status("done", 10, 10)
    assert not run.finished()
    write_json(run.summary, {})
    assert run.finished()
    run.release()


def test_sweep_removes_only_leftovers(tmp_path: Path) -> None:
    run = make(tmp_path / "a")
    for name in (".tmp-step_000001-ab", ".trash-step_000002-cd", "step_000003"):
        (run.checkpoints / name).mkdir()
        (run.checkpoints / name / "x").write_text("x")
    assert sorted(run.sweep()) == [".tmp-step_000001-ab", ".trash-step_000002-cd"]
    assert [p.name for p in run.checkpoints.iterdir()] == ["step_000003"]
    run.release()


def test_write_atomic_keeps_the_old_file_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    write_atomic(path, "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("text", ["{", "\xff", "[" * 200_000])
def test_broken_json_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RunError, match=r"x\.json: not valid JSON"):
        read_json(path)
    with pytest.raises(RunError, match=r"y\.json: cannot be read"):
        read_json(tmp_path / "y.json")


def test_open_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        RunDir.open(tmp_path)


def test_flock_is_what_excludes(tmp_path: Path) -> None:
    """A held kernel lock is enough, even with an empty lock file."""
    run = make(tmp_path / "a")
    run.release()
    with (run.path / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="in use by process None"):
            run.lock()
