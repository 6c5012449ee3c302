"""Runs that end with floor and phases: forgetting with exact floors; an alarm fails the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nl.assembly import launch
from nl.cli import main
from nl.config import ConfigError
from nl.config.hydra import compose, run_config
from nl.eval.suite import EvaluationError

TINY = ["model.dim=24", "model.layers=1", "model.mlp_hidden=24", "model.attention.heads=2"]
TINY += ["stream.window=12", "stream.batch_size=16", "stream.test_size=12", "stream.val_size=4"]
PHASES = ["stream.order=sequential", "stream.phase_steps=15", "train.steps=30"]
PHASES += ["stream.components=[coin:0.1,coin:0.8]", "stream.library=[]"]
PHASES += ["optim.lr=0.02", "schedule.final=1.0", "+evals.phases.kind=phases"]
PHASES += ["checkpoint.at=[15,30]", "checkpoint.keep=0"]


def composed(tmp_path: Path, *changes: str) -> Any:
    name = ["experiment=ergodic/synthetic", f"run.root={tmp_path}", "schedule.warmup=2"]
    return compose("pilot_smoke", [*name, *TINY, *changes])


def test_sequential_training_has_a_forgetting_matrix_with_floors(tmp_path: Path) -> None:
    home = launch(composed(tmp_path, *PHASES))
    page = json.loads((home / "artifacts/evals/phases.json").read_text())["details"]["on"]
    matrix, floor = page["nats_per_target"], page["floor"]
    assert floor["entropy"] == pytest.approx([0.325083, 0.500402], abs=1e-6)
    assert matrix[1][0] < 0.55 < matrix[0][0], "the first coin is learned"
    assert matrix[2][0] > matrix[1][0] + 0.3, "and forgotten"
    assert matrix[2][1] < matrix[1][1] - 0.3
    for row in matrix:
        assert all(a > b - 0.02 for a, b in zip(row, floor["paired"], strict=True))
    told = json.loads((home / "artifacts/evals/floor.json").read_text())
    assert told["details"]["order"] == "sequential"
    assert not told["failures"]
    capped = ["--suite", "floor", "--limit", "3", "--set", "floor.split=val"]
    assert main(["eval", str(home), *capped, "--output", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again/floor.json").read_text())
    assert (again["details"]["split"], again["details"]["windows"]) == ("val", 6)


def test_an_alarm_fails_the_run_after_its_result_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nl.eval.floor.SIGMAS", -1e9)
    with pytest.raises(EvaluationError, match=r"evals\.floor: better than Bayes"):
        launch(composed(tmp_path, "train.steps=1"))
    (home,) = (tmp_path / "ergodic").iterdir()
    assert json.loads((home / "artifacts/evals/floor.json").read_text())["failures"]
    assert json.loads((home / "status.json").read_text())["state"] == "failed"
    assert not (home / "summary.json").exists()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (["+evals.phases.kind=phases"], "evals.phases: reads phases of rows"),
        (["+evals.probe.kind=probe"], "evals.probe: reads token rows with an oracle"),
        (["model.vocab_size=4"], "model.vocab_size: 4; the stream's token ids go up to 4"),
        ([*PHASES[:-2], "checkpoint.at=[30]"], "checkpoint.at: [30]"),
        (["+evals.floor.split=train"], "evals.floor.split: 'train'; use test or val"),
        (["objective=ewc"], "objective: ewc acts when a phase ends"),
    ],
)
def test_parts_that_do_not_fit(tmp_path: Path, changes: list[str], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        launch(run_config(composed(tmp_path, *changes)))
    assert text in str(caught.value)
    assert not (tmp_path / "ergodic").exists()
