"""Manifests, finding runs and checkpoints, provenance."""

from __future__ import annotations

import json
import os
import platform
import socket
from pathlib import Path

import pytest

from nl.run import (
    RunDir,
    RunError,
    checkpoints,
    find_runs,
    newest_run,
    newest_valid,
    verify,
    write_manifest,
)
from nl.run.discover import is_checkpoint, run_of, step_of
from nl.run.files import write_json
from nl.run.provenance import provenance


def make_run(path: Path, started: float, config_hash: str = "a" * 12) -> RunDir:
    run = RunDir.create(path)
    run.config.write_text("name: x\n")
    write_json(run.meta, {"config_hash": config_hash, "started": started})
    run.release()
    return run


def make_checkpoint(run: RunDir, step: int) -> Path:
    folder = run.checkpoints / f"step_{step:06d}"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(range(100)))
    (folder / "trainer.json").write_text(json.dumps({"step": step}))
    write_manifest(folder)
    return folder


def test_every_damage_is_found_and_named(tmp_path: Path) -> None:
    folder = make_checkpoint(make_run(tmp_path / "r", 1.0), 5)
    verify(folder)
    for name in ("model.safetensors", "trainer.json"):
        data = (folder / name).read_bytes()
        for position in (0, len(data) // 2, len(data) - 1):
            flipped = bytearray(data)
            flipped[position] ^= 64
            (folder / name).write_bytes(flipped)
            with pytest.raises(RunError, match=f"{name}: sha256 differs"):
                verify(folder)
        for size in (0, 1, len(data) // 2, len(data) - 1):
            (folder / name).write_bytes(data[:size])
            with pytest.raises(RunError, match=f"{name}: {size} bytes, manifest says {len(data)}"):
                verify(folder)
        (folder / name).unlink()
        with pytest.raises(RunError, match=f"{name}: missing"):
            verify(folder)
        (folder / name).symlink_to(tmp_path / "r" / "config.yaml")
        with pytest.raises(RunError, match=f"{name}: missing"):
            verify(folder)
        (folder / name).unlink()
        (folder / name).write_bytes(data)
    verify(folder)


@pytest.mark.parametrize(
    ("manifest", "complaint"),
    [
        ("{", "not valid JSON"),
        ("[]", "lists no files"),
        ('{"schema": 1, "files": {}}', "lists no files"),
        ('{"schema": 9, "files": {"a": {}}}', "schema 9"),
        ('{"schema": 1, "files": {"../../x": {}}}', "not a plain file name"),
        ('{"schema": 1, "files": {"model.safetensors": 3}}', "manifest says None"),
    ],
)
def test_a_bad_manifest_is_refused(tmp_path: Path, manifest: str, complaint: str) -> None:
    folder = make_checkpoint(make_run(tmp_path / "r", 1.0), 5)
    (folder / "manifest.json").write_text(manifest + "\n")
    with pytest.raises(RunError, match=complaint):
        verify(folder)


def test_a_manifest_without_its_last_byte_is_refused(tmp_path: Path) -> None:
    path = make_checkpoint(make_run(tmp_path / "r", 1.0), 5) / "manifest.json"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"manifest\.json: does not end with a line end"):
        verify(path.parent)


def test_newest_valid_passes_over_damage_and_other_names(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", 1.0)
    for step in (2, 10, 1_000_000):
        make_checkpoint(run, step)
    for name in ("step_12", "backup-step_000099", "step_000099.tmp", "abandoned-step_000099"):
        (run.checkpoints / name).mkdir()
    assert [step_of(p) for p in checkpoints(run.path)] == [2, 10, 1_000_000]
    os.truncate(run.checkpoints / "step_1000000" / "model.safetensors", 3)
    folder, complaints = newest_valid(run.path)
    assert folder == run.checkpoints / "step_000010"
    assert len(complaints) == 1
    assert "step_1000000/model.safetensors" in complaints[0]
    assert newest_valid(tmp_path) == (None, [])


def test_runs_are_found_by_what_they_hold(tmp_path: Path) -> None:
    late = make_run(tmp_path / "x" / "a", 20.0, "b" * 12)
    early = make_run(tmp_path / "x" / "deep" / "b", 10.0)
    (tmp_path / "x" / "other").mkdir()
    assert [run.path for run in find_runs(tmp_path)] == [early.path, late.path]
    assert find_runs(tmp_path / "nowhere") == []

    def unread(path: Path) -> None:
        """No ``config.yaml`` says another hash than was written."""

    found = newest_run(tmp_path, "a" * 12, unread)
    assert found is not None
    assert found.path == early.path
    assert newest_run(tmp_path, "c" * 12, unread) is None
    again = newest_run(tmp_path, "c" * 12, lambda path: "c" * 12 if path == late.config else None)
    assert again is not None
    assert again.path == late.path


def test_a_checkpoint_knows_its_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", 1.0)
    folder = make_checkpoint(run, 3)
    assert run_of(folder) == run.path.resolve()
    assert is_checkpoint(folder)
    assert run_of(tmp_path) is None
    assert not is_checkpoint(run.path)


def test_provenance_names_code_and_versions_but_no_host() -> None:
    facts = provenance()
    assert facts["python"] == platform.python_version()
    assert facts["versions"]["torch"]
    assert set(facts["git"]) == {"sha", "dirty", "diff_sha256"}
    assert facts["git"]["sha"] is None or len(facts["git"]["sha"]) == 40
    text = json.dumps({k: v for k, v in facts.items() if k != "argv"})
    assert json.dumps(socket.gethostname()) not in text
    assert str(Path.home()) not in text
