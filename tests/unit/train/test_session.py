"""Around the loop: second signal, two jobs in one place, hooks, controllers, last evaluations."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import nn

import nl
import nl.assembly
from nl.config import ConfigError, register
from nl.config.groups import ControllerConfig, EvaluatorConfig, HookConfig
from nl.core.output import Knobs, StepInfo
from nl.core.protocols import EvalRow
from nl.run import RunDir, newest_valid, read_records
from nl.train.hooks.stop import StopSignals, exit_code

SEEN: list[tuple[int, float, bool]] = []


@dataclass(frozen=True, kw_only=True)
class TinyHookConfig(HookConfig):
    every: int = 3

    def build(self) -> TinyHook:
        return TinyHook(self.every)


class TinyHook:
    def __init__(self, every: int) -> None:
        self.every = every

    def __call__(self, info: StepInfo, model: nn.Module, run_dir: Path) -> None:
        assert run_dir.is_dir()
        SEEN.append((info.step, info.metrics["loss"], model.training))


@dataclass(frozen=True, kw_only=True)
class TinyControllerConfig(ControllerConfig):
    def build(self, *, seed: int) -> TinyController:
        return TinyController()


class TinyController:
    """Lowers the learning rate by the number of times it was asked and by what it saw."""

    def __init__(self) -> None:
        self.asked = 0

    def act(self, observations: Any, step: int) -> Knobs:
        assert (not observations) == (step == 0)
        self.asked += 1
        return Knobs(lr_scale=1 / (self.asked + observations.get("loss", 0.0)))

    def state_dict(self) -> dict[str, Any]:
        return {"asked": self.asked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.asked = state["asked"]


@dataclass(frozen=True, kw_only=True)
class TinyEvaluatorConfig(EvaluatorConfig):
    value: float = 1.0

    def build(self) -> Any:
        return lambda model, context: [EvalRow("tiny", "x", "y", self.value, 3)]


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    """At run time, not at collection: laws over all registered parts do not meet these."""
    register("hook", "tiny_hook")(TinyHookConfig)
    register("controller", "tiny_controller")(TinyControllerConfig)
    register("evaluator", "tiny_evaluator")(TinyEvaluatorConfig)


def test_hooks_run_on_their_steps_whatever_is_logged(tiny: ModuleType, tmp_path: Path) -> None:
    SEEN.clear()
    changes = {"hooks": {"h": {"kind": "tiny_hook"}}, "train__steps": 7, "logging__every": 100}
    nl.launch(tiny.tiny_run(run__dir=str(tmp_path / "r"), **changes))
    assert [(step, training) for step, _, training in SEEN] == [(3, False), (6, False)]
    plain = tmp_path / "plain"
    nl.launch(tiny.tiny_run(run__dir=str(plain), train__steps=7))
    rows = read_records(plain / "metrics.jsonl")
    losses = {r["step"]: r["loss"] for r in rows if r["split"] == "train"}
    assert [loss for _, loss, _ in SEEN] == [losses[3], losses[6]]


def test_a_controller_turns_the_rate_and_resumes(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"controller": {"kind": "tiny_controller"}, "train__steps": 9}
    nl.launch(tiny.tiny_run(run__dir=str(tmp_path / "whole"), **changes))
    monkeypatch.setenv("TINY_CRASH_AT", "4")
    monkeypatch.setenv("TINY_CRASH_SIGNAL", "SIGUSR1")
    with pytest.raises(SystemExit):
        nl.launch(tiny.tiny_run(run__dir=str(tmp_path / "cut"), **changes))
    monkeypatch.delenv("TINY_CRASH_AT")
    nl.launch(tiny.tiny_run(run__dir=str(tmp_path / "cut"), resume="auto", **changes))
    whole, cut = (
        [(r["lr"], r["loss"]) for r in read_records(tmp_path / p / "metrics.jsonl") if "lr" in r]
        for p in ("whole", "cut")
    )
    assert whole == cut
    assert whole[0][0] == pytest.approx(0.01 / 3)
    assert whole[1][0] == pytest.approx(0.01 * 2 / 3 / (2 + whole[0][1]))


def test_evaluators_run_once_at_the_end(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "r"
    run = tiny.tiny_run(run__dir=str(folder), train__steps=4)
    nl.launch(run)
    assert not (folder / "evals.jsonl").exists()

    def parts(run: Any, strategy: Any, **more: bool) -> Any:
        rows = [EvalRow("e", "x", "y", 2.0, 3), EvalRow("e", "x", "z", float("inf"), 3)]
        built = build(replace(run, evals={}), strategy, **more)
        return replace(built, run=run, evaluate=lambda name, model, output, step: rows)

    build = nl.assembly.build
    monkeypatch.setattr(nl.assembly, "build", parts)
    evals = {"evals": {"e": {"kind": "tiny_evaluator"}}}
    for steps in (4, 6, 6):
        again = tiny.tiny_run(resume=str(folder), train__steps=steps, **evals)
        (folder / "summary.json").unlink()
        nl.launch(again)
    rows = read_records(folder / "evals.jsonl")
    assert [(r["step"], r["metric"], r["value"]) for r in rows] == [
        (4, "y", 2.0),
        (4, "z", None),
        (6, "y", 2.0),
        (6, "z", None),
    ]
    summary = json.loads((folder / "summary.json").read_text())
    assert [row["value"] for row in summary["evals"]] == [2.0, None]
    assert RunDir(folder).finished()


def test_two_jobs_cannot_share_a_run(tiny: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    nl.launch(tiny.tiny_run(run__dir=str(folder), train__steps=4))
    holder = RunDir(folder)
    holder.lock()
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
        nl.launch(tiny.tiny_run(resume=str(folder), train__steps=8))
    assert (folder / "metrics.jsonl").read_bytes() == before
    holder.release()
    nl.launch(tiny.tiny_run(resume=str(folder), train__steps=8))
    assert RunDir(folder).read_status()["step"] == 8


def test_a_second_signal_ends_at_once_and_the_last_checkpoint_stands(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second signal arrives in the middle of the save that the first one asked for."""
    import nl.dist.checkpoint as checkpoint

    folder = tmp_path / "r"
    ended: list[int] = []

    class Ended(BaseException):
        pass

    def leave(code: int) -> None:
        ended.append(code)
        raise Ended

    real = checkpoint.write_manifest

    def interrupted(scratch: Path) -> None:
        if "step_000007" in scratch.name:
            signal.raise_signal(signal.SIGTERM)
        real(scratch)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(checkpoint, "write_manifest", interrupted)
    monkeypatch.setenv("TINY_CRASH_AT", "6")
    monkeypatch.setenv("TINY_CRASH_SIGNAL", "SIGINT")
    with pytest.raises(Ended):
        nl.launch(tiny.tiny_run(run__dir=str(folder)))
    assert ended == [128 + signal.SIGTERM]
    names = [p.name for p in (folder / "checkpoints").iterdir()]
    assert "step_000007" not in names
    valid, complaints = newest_valid(folder)
    assert (valid, complaints) == (folder / "checkpoints" / "step_000005", [])


def test_exit_codes() -> None:
    assert [exit_code(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == [143, 130, 0]
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGUSR1)
        assert stop.received == signal.SIGUSR1
