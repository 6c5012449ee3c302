"""Saves that are written while training goes on: the same files, one at a time, no half left."""

from __future__ import annotations

import errno
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import nl
import nl.dist.checkpoint as checkpoint
from nl.assembly import build
from nl.config import ConfigError
from nl.core.protocols import Capabilities
from nl.dist.single import Single
from nl.fit import check
from nl.run import checkpoints, newest_valid, read_records
from nl.run.discover import step_of
from nl.run.manifest import verify

RANKS = Path(__file__).parents[2] / "resume" / "ranks.py"
FILES = ("model.safetensors", "optim.safetensors", "optim.json", "state.safetensors")


def contents(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {name: (folder / name).read_bytes() for name in FILES}
    facts = json.loads((folder / "trainer.json").read_text())
    facts.pop("seconds")
    return found | {"trainer": facts}


def trained(tiny: ModuleType, folder: Path, **changes: Any) -> Path:
    every = {"checkpoint__every": 1, "checkpoint__keep": 0} | changes
    return nl.launch(tiny.tiny_run(run__dir=str(folder), **every))


@pytest.fixture
def slow_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes longer than a step."""
    real = checkpoint.write_tensors

    def slow(*args: Any) -> None:
        threading.Event().wait(0.05)
        real(*args)

    monkeypatch.setattr(checkpoint, "write_tensors", slow)


def test_the_files_are_those_of_a_synchronous_save(
    tiny: ModuleType, tmp_path: Path, slow_writes: None, caplog: pytest.LogCaptureFixture
) -> None:
    plain = trained(tiny, tmp_path / "plain", train__steps=6)
    late = trained(tiny, tmp_path / "late", train__steps=6, checkpoint__asynchronous=True)
    assert [p.name for p in checkpoints(late)] == [p.name for p in checkpoints(plain)]
    for ours, theirs in zip(checkpoints(late), checkpoints(plain), strict=True):
        assert contents(ours) == contents(theirs)
    text = (late / "logs" / "rank_00.log").read_text()
    assert "step 2: the checkpoint of step 1 is still being written; waiting for it" in text
    assert (late / "checkpoints" / "latest").read_text() == "step_000006\n"
    assert (late / "checkpoints" / "best").read_text() == (
        plain / "checkpoints" / "best"
    ).read_text()


def test_never_two_at_once_and_retention_holds(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow_writes: None
) -> None:
    most: list[int] = []
    real = checkpoint.write_manifest

    def watched(folder: Path) -> None:
        most.append(len(list(folder.parent.glob(".tmp-step*"))))
        real(folder)

    monkeypatch.setattr(checkpoint, "write_manifest", watched)
    changes = {"train__steps": 8, "checkpoint__asynchronous": True, "checkpoint__keep": 2}
    run = trained(tiny, tmp_path / "r", **changes)
    assert set(most) == {1}
    names = {p.name for p in checkpoints(run)}
    best = (run / "checkpoints" / "best").read_text().strip()
    assert names == {"step_000007", "step_000008", best}


def test_a_failed_save_is_said_and_the_previous_one_stands(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoint.write_manifest

    def full(folder: Path) -> None:
        if "step_000003" in folder.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(folder)

    monkeypatch.setattr(checkpoint, "write_manifest", full)
    run = trained(tiny, tmp_path / "r", train__steps=5, checkpoint__asynchronous=True)
    names = [p.name for p in checkpoints(run)]
    assert names == ["step_000001", "step_000002", "step_000004", "step_000005"]
    text = (run / "logs" / "rank_00.log").read_text()
    assert "rank 0: [Errno 28] No space left on device. Training goes on" in text
    assert not list((run / "checkpoints").glob(".tmp-*"))


def test_a_run_that_fails_leaves_no_part_of_a_save(
    tiny: ModuleType, tmp_path: Path, slow_writes: None
) -> None:
    with pytest.raises(RuntimeError, match="non-finite"):
        trained(tiny, tmp_path / "r", stream__bad_rows=[4], checkpoint__asynchronous=True)
    assert not list((tmp_path / "r" / "checkpoints").glob(".tmp-*"))
    newest, complaints = newest_valid(tmp_path / "r")
    assert newest is not None
    assert newest.name in ("step_000002", "step_000003")
    assert not complaints


def test_a_programming_error_in_the_thread_is_not_swallowed(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(folder: Path) -> None:
        raise TypeError("not a number")

    monkeypatch.setattr(checkpoint, "write_manifest", broken)
    with pytest.raises(TypeError, match="not a number"):
        trained(tiny, tmp_path / "r", train__steps=3, checkpoint__asynchronous=True)
    text = (tmp_path / "r" / "logs" / "rank_00.log").read_text()
    assert "rank 0: TypeError('not a number')" in text


def test_a_strategy_that_cannot_is_refused(tiny: ModuleType) -> None:
    class Poor(Single):
        name = "poor"
        capabilities = Capabilities(
            inner_autograd=True, grad_through_write=True, asynchronous_save=False
        )

    with pytest.raises(ConfigError, match=r"checkpoint\.asynchronous: true, which poor cannot do"):
        check(tiny.tiny_run(checkpoint__asynchronous=True), Poor.start("cpu"))


def test_copies_do_not_follow_the_model(tiny: ModuleType, tmp_path: Path) -> None:
    strategy = Single.start("cpu")
    build(tiny.tiny_run(), strategy)
    write = strategy.capture()
    (tmp_path / "before").mkdir()
    write(tmp_path / "before")
    for parameter in strategy.objective.parameters():
        parameter.data.add_(1.0)
    (tmp_path / "after").mkdir()
    write(tmp_path / "after")
    name = "model.safetensors"
    assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()


def test_two_ranks_save_beside_training_and_resume(tiny: ModuleType, tmp_path: Path) -> None:
    changes = {
        "run__dir": str(tmp_path / "two"),
        "model__dropout": 0.0,
        "train__steps": 12,
        "checkpoint__every": 1,
        "checkpoint__keep": 0,
        "checkpoint__asynchronous": True,
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(RANKS), json.dumps(changes), str(port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == [[143, 143], [0, 0]], done.stderr[-3000:]
    found = checkpoints(tmp_path / "two")
    assert [step_of(folder) for folder in found] == list(range(1, 13))
    for folder in found:
        verify(folder)
        assert (folder / "state_00001.safetensors").is_file()
    one = trained(tiny, tmp_path / "one", train__steps=12, model__dropout=0.0)
    losses = [
        [r["loss"] for r in read_records(p / "metrics.jsonl")] for p in (one, tmp_path / "two")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
