"""Checkpoints on disk: whole or absent, retention, fallback, another model."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import nl.dist.checkpoint as checkpoint
from nl.assembly import build
from nl.config import ConfigError
from nl.config.run import RunConfig
from nl.core.protocols import Capabilities
from nl.dist.base import Strategy
from nl.dist.single import Single
from nl.run import RunDir, RunError, checkpoints, newest_valid
from nl.run.files import write_json


@pytest.fixture
def place(tmp_path: Path) -> Iterator[RunDir]:
    run = RunDir.create(tmp_path / "run")
    run.config.write_text("name: x\n")
    write_json(run.meta, {})
    yield run
    run.release()


def started(run: RunConfig) -> Strategy:
    strategy = Single.start("cpu")
    build(run, strategy)
    return strategy


def save(strategy: Strategy, place: RunDir, run: RunConfig, step: int, state: Any = None) -> Path:
    snapshot = checkpoint.Snapshot(step=step, trainer={"tokens": 5}, state=state)
    return checkpoint.save(strategy, place, run, snapshot)


def test_what_is_saved_comes_back(tiny: ModuleType, place: RunDir) -> None:
    run = tiny.tiny_run()
    ours, theirs = started(run), started(tiny.tiny_run(seed=1))
    for strategy in (ours, theirs):
        batch = tiny.TinyStreamConfig().build("train", seed=strategy is ours, rank=0, world=1)
        out = strategy.forward(next(iter(batch)), None, None)
        strategy.backward(out.loss)
        strategy.step(1.0)
    state = tiny.TinyState(torch.randn(4, 8), 7)
    folder = save(ours, place, run, 100, state)
    assert folder.name == "step_000100"
    assert (folder.parent / "latest").read_text() == "step_000100\n"
    drawn = torch.rand(2)
    back = checkpoint.load(theirs, folder)
    assert torch.equal(torch.rand(2), drawn)
    assert back.trainer["tokens"] == 5
    assert back.state.position == 7
    assert torch.equal(back.state.hidden, state.hidden)
    for name, value in ours.objective.state_dict().items():
        assert torch.equal(theirs.objective.state_dict()[name], value)
    mine, other = (s.optimizer.state_dict()["state"] for s in (ours, theirs))
    for index, moments in mine.items():
        assert all(torch.equal(other[index][k], v) for k, v in moments.items())
    files = {p.name for p in folder.iterdir()}
    assert files == {
        "model.safetensors",
        "optim.safetensors",
        "optim.json",
        "state.safetensors",
        "trainer.json",
        "config.yaml",
        "manifest.json",
    }


def test_every_flipped_byte_is_caught(tiny: ModuleType, place: RunDir) -> None:
    run = tiny.tiny_run()
    strategy = started(run)
    folder = save(strategy, place, run, 1)
    before = {k: v.clone() for k, v in strategy.objective.state_dict().items()}
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        for position in range(0, len(data), max(1, len(data) // 6)):
            damaged = bytearray(data)
            damaged[position] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(ConfigError, match="step_000001/"):
                checkpoint.load(strategy, folder)
        path.write_bytes(data)
    for name, value in strategy.objective.state_dict().items():
        assert torch.equal(value, before[name])
    checkpoint.load(strategy, folder)


def test_a_failed_save_leaves_nothing_and_the_previous_one(
    tiny: ModuleType, place: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny.tiny_run()
    strategy = started(run)
    save(strategy, place, run, 1)
    real, calls = os.fsync, [0]
    for fail_at in range(9):

        def fsync(handle: int, fail_at: int = fail_at) -> None:
            calls[0] += 1
            if calls[0] > fail_at:
                raise OSError(errno.EIO, "Input/output error")
            real(handle)

        calls[0] = 0
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(checkpoint.CheckpointError, match="Input/output error"):
            save(strategy, place, run, 2)
        monkeypatch.setattr(os, "fsync", real)
        names = sorted(p.name for p in place.checkpoints.iterdir())
        assert names == ["latest", "step_000001"]
    save(strategy, place, run, 2)
    assert newest_valid(place.path)[0] == place.checkpoints / "step_000002"


def test_a_renamed_or_swapped_directory_is_refused(tiny: ModuleType, place: RunDir) -> None:
    run = tiny.tiny_run()
    strategy = started(run)
    folder = save(strategy, place, run, 1)
    moved = folder.rename(folder.with_name("step_000009"))
    with pytest.raises(ConfigError, match=r"not of step_000009; was it renamed"):
        checkpoint.load(strategy, moved)


def test_retention_keeps_newest_best_and_what_is_read(tiny: ModuleType, place: RunDir) -> None:
    run = tiny.tiny_run()
    strategy = started(run)
    folders = [save(strategy, place, run, step) for step in range(1, 7)]
    checkpoint.mark_best(folders[0])
    with contextlib.ExitStack() as stack:
        stack.enter_context(checkpoint.reading(folders[1]))
        gone = checkpoint.retain(place.path, 2)
    assert gone == folders[2:4]
    kept = [folders[0], folders[1], folders[4], folders[5]]
    assert checkpoints(place.path) == kept
    assert checkpoint.retain(place.path, 0) == []
    assert checkpoint.retain(place.path, 1) == [folders[1], folders[4]]
    assert checkpoint.pointed(place.path, "best") == folders[0]
    assert checkpoint.pointed(place.path, "latest") == folders[5]


def test_another_model_is_refused_by_name(tiny: ModuleType, place: RunDir) -> None:
    run = tiny.tiny_run()
    folder = save(started(run), place, run, 1)
    with pytest.raises(ConfigError, match=r"(?s)model\.safetensors: .*size mismatch"):
        checkpoint.load(started(tiny.tiny_run(model__dim=16)), folder)
    other = started(run)
    other.objective.register_parameter("extra", torch.nn.Parameter(torch.zeros(2)))
    with pytest.raises(ConfigError, match="Missing: extra"):
        checkpoint.load(other, folder)


def test_saving_one_step_twice_replaces_it(tiny: ModuleType, place: RunDir) -> None:
    run = tiny.tiny_run()
    strategy = started(run)
    save(strategy, place, run, 1)
    save(strategy, place, run, 1)
    assert sorted(p.name for p in place.checkpoints.iterdir()) == ["latest", "step_000001"]


def test_a_carried_state_needs_rows_that_can_be_shared(tiny: ModuleType, place: RunDir) -> None:
    run = tiny.tiny_run()
    strategy = started(run)
    carried = save(strategy, place, run, 1, tiny.TinyState(torch.zeros(4, 8), 1))
    fresh = save(strategy, place, run, 2)
    strategy.world = 3
    with pytest.raises(ConfigError, match=r"State of 4 rows, which 3 processes.*train\.carry"):
        checkpoint.load(strategy, carried)
    assert checkpoint.load(strategy, fresh).state is None


def test_an_unverified_folder_is_no_checkpoint(tmp_path: Path, tiny: ModuleType) -> None:
    with pytest.raises(ConfigError, match=r"manifest\.json: No such file"):
        checkpoint.load(started(tiny.tiny_run()), tmp_path)
    (tmp_path / "trainer.json").write_text("{}")
    with pytest.raises(RunError, match="not of"):
        checkpoint.trainer_facts(tmp_path)


def test_a_strategy_that_cannot_is_refused_before_building(tiny: ModuleType) -> None:
    class Poor(Single):
        name = "poor"
        capabilities = Capabilities(inner_autograd=False, grad_through_write=False)

    class Demanding(type(tiny.tiny_run().objective)):  # type: ignore[misc]
        requires = {"grad_through_write": "change objective"}  # noqa: RUF012

        def build(self, model: Any) -> Any:
            raise AssertionError("built")

    run = tiny.tiny_run()
    object.__setattr__(run, "objective", Demanding())
    with pytest.raises(ConfigError, match="objective: tiny needs grad_through_write, which poor"):
        build(run, Poor.start("cpu"))
    model = {"kind": "language", "vocab_size": tiny.VOCAB, "dim": 8, "layers": 1}
    model |= {"block": "hope_attention", "attention": {"heads": 1}}
    for key, value, need in (
        ("write_gradient", "through", "grad_through_write"),
        ("signal", "block", "inner_autograd"),
    ):
        wanted = tiny.tiny_run(model=model | {"cms": {key: value}})
        told = rf"model: language needs {need}, which poor cannot do; set model\.cms\.{key}="
        with pytest.raises(ConfigError, match=told):
            build(wanted, Poor.start("cpu"))
    compiled = tiny.tiny_run(model=model | {"cms": {"signal": "block"}}, train__compile=True)
    with pytest.raises(ConfigError, match=r"^train\.compile: true; .*(C\+\+|signal=head)"):
        build(compiled, Single.start("cpu"))
