"""R of a run through phases: counted by hand, and from its own checkpoints in one command."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nl.assembly import launch
from nl.cli import main
from nl.config import ConfigError, structure
from nl.config.groups import EvaluatorConfig, StreamConfig
from nl.config.hydra import compose, run_config
from nl.core.output import Output
from nl.eval.context import EvalContext, NoText, OwnRows, check_reads
from nl.eval.phases import check_phase_ends, phase_ends

SMALL = [
    "experiment=probes/medium",
    "stream=cl_remap",
    *("stream.phases=3", "stream.phase_steps=3", "stream.val_size=12", "stream.test_size=30"),
    *("stream.batch_size=4", "model.dim=32", "model.vocab_size=32", "model.block=transformer"),
    *("train.steps=9", "train.validate_every=0", "schedule.warmup=0", "checkpoint.export=false"),
    *("+evals.phases={kind: phases}", "~evals.probe", "checkpoint.at=[3,6,9]", "checkpoint.keep=0"),
]


def stream(**fields: Any) -> Any:
    fixed = {"kind": "cl_remap", "phases": 3, "phase_steps": 5, "test_size": 60}
    return structure(StreamConfig, {**fixed, **fields})


class Knows(torch.nn.Module):
    """Answers by the map of one phase; token 0 where that is none."""

    def __init__(self, task: Any, phase: int | None) -> None:
        super().__init__()
        self.task, self.phase = task, phase
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def memory_paths(self) -> list[str]:
        return []

    def forward(self, inputs: Any, state: Any, *, targets: Any, write: bool) -> Output:
        answer = torch.zeros_like(inputs)
        if self.phase is not None:
            answer = torch.from_numpy(self.task.maps[self.phase])[inputs.clamp(max=15)]
        pred = torch.full((*inputs.shape, 32), -20.0).scatter(2, answer[..., None], 20.0)
        return Output(pred, (inputs.float(),))


def context(path: Path, task: Any, step: int = 15, **more: Any) -> EvalContext:
    def after(number: int) -> torch.nn.Module:
        return Knows(task, number // 5 - 1 if number else None)

    own = OwnRows(task, 0, after, 1)
    return EvalContext(tokenizer=NoText(), probe=own, output=path, step=step, **more)


def test_a_model_that_knows_the_newest_map_alone(tmp_path: Path) -> None:
    task = stream()
    told = context(tmp_path, task)
    rows = structure(EvaluatorConfig, {"kind": "phases"}).build()(Knows(task, 2), told)  # type: ignore[attr-defined]
    values = {row.metric: row.value for row in rows}
    page = told.record.details["on"]
    assert page["accuracy"] == [[0, 0, 0], *np.eye(3).tolist()]
    assert page["rows"] == ["init", "after 0", "after 1", "after 2"]
    assert page["n"] == [20 * 16] * 3
    assert values["average_accuracy"] == pytest.approx(1 / 3)
    assert values["backward_transfer"] == -1
    assert values["forgetting"] == 1
    assert values["forward_transfer"] == 0
    assert values["plasticity"] == 1
    assert values["nats/plasticity_loss"] == pytest.approx(0, abs=1e-6)
    assert values["nats/average_loss"] == pytest.approx(40 * 2 / 3)
    later = np.asarray(page["wrong"]["value of a later phase"])
    assert later[3].tolist() == [1, 1, 0], "old values were overwritten"
    assert np.asarray(page["wrong"]["value of an earlier phase"])[1].tolist() == [0, 1, 1]
    assert page["intervals"]["average_accuracy"] == pytest.approx([1 / 3, 1 / 3])
    assert values["wrong/value of a later phase"] == 1, "of both earlier phases"
    assert values["wrong/value of an earlier phase"] == values["wrong/never its value"] == 0
    counts = {row.n for row in rows if row.metric.startswith("wrong/")}
    assert counts == {2 * 20 * 16}
    assert all(r.n == 60 for r in rows if not r.metric.startswith("wrong/"))
    assert {row.task for row in rows} == {"test"}
    cells = list(csv.DictReader((tmp_path / "matrix.csv").read_text().splitlines()))
    assert len(cells) == 4 * 3
    assert {(c["row"], c["phase"]): float(c["accuracy"]) for c in cells}["after 1", "1"] == 1


def test_phases_that_have_ended_are_measured_and_interrupted_ones_are_not(tmp_path: Path) -> None:
    task = stream()
    told = context(tmp_path, task, step=12)
    evaluator: Any = structure(EvaluatorConfig, {"kind": "phases"})
    rows = evaluator.build()(Knows(task, 1), told)
    notes = {row.note for row in rows if row.metric.startswith("wrong/")}
    assert notes == {"memory writes: on; at the end, answers on phases 0"}, "2 was not trained yet"
    first = evaluator.build()(Knows(task, 0), context(tmp_path, task, step=5))
    assert not [row for row in first if row.metric.startswith("wrong/")]
    assert told.record.details["on"]["rows"] == ["init", "after 0", "after 1"]
    with pytest.raises(ConfigError, match="step: 4; no phase has ended"):
        structure(EvaluatorConfig, {"kind": "phases"}).build()(  # type: ignore[attr-defined]
            Knows(task, 1), context(tmp_path, task, step=4)
        )


def test_a_run_writes_its_matrix_and_a_second_look_finds_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = launch(compose("pilot_smoke", [*SMALL, f"run.dir={tmp_path / 'run'}"]))
    found = json.loads((home / "artifacts/evals/phases.json").read_text())
    matrix = np.asarray(found["details"]["on"]["nats_per_target"])
    assert matrix.shape == (4, 3)
    assert np.abs(np.diff(matrix, axis=0)).min() > 1e-4, "every phase changed the model"
    rows = [json.loads(line) for line in (home / "evals.jsonl").read_text().splitlines()]
    metrics = {row["metric"]: row["value"] for row in rows if row["suite"] == "phases"}
    assert {"average_accuracy", "backward_transfer", "forward_transfer", "forgetting"} <= set(
        metrics
    )
    assert metrics["nats/average_loss"] == pytest.approx(matrix[-1].mean())
    assert all(math.isfinite(value) for value in metrics.values())
    assert main(["eval", str(home), "--suite", "phases", "--output", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again/phases.json").read_text())
    assert again["details"]["on"] == found["details"]["on"]
    capsys.readouterr()
    for folder in ("step_000003",):
        (home / "checkpoints" / folder).rename(tmp_path / folder)
    assert main(["eval", str(home), "--suite", "phases"]) == 2
    assert "no checkpoint of step 3; train with checkpoint.at=[3]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["checkpoint.at=[3]"], r"set checkpoint\.at=\[3,6,9\] checkpoint\.keep=0"),
        (["checkpoint.keep=3"], r"set checkpoint\.at=\[3,6,9\] checkpoint\.keep=0"),
        (
            ["train.steps=2"],
            r"train\.steps: 2; no phase ends by then, the first one does at step 3:",
        ),
        (["train.grad_accum=2"], r"stream\.phase_steps: 3; must be a multiple of train\.grad_acc"),
    ],
)
def test_phase_ends_without_a_checkpoint_are_refused(more: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        check_phase_ends(run_config(compose("pilot_smoke", [*SMALL, *more])))


def test_ends_and_what_else_is_refused() -> None:
    assert phase_ends(stream(), 1, 16) == [5, 10, 15]
    check_phase_ends(run_config(compose("pilot_smoke", [*SMALL, "checkpoint.at=[3,6]"])))
    every = ["checkpoint.at=[]", "checkpoint.every=3"]
    check_phase_ends(run_config(compose("pilot_smoke", [*SMALL, *every])))
    evals = {"p": structure(EvaluatorConfig, {"kind": "phases"})}
    mqar = structure(StreamConfig, {"kind": "mqar"})
    with pytest.raises(ConfigError, match=r"evals\.p: reads phases .* stream=mqar has none"):
        check_reads(evals, mqar)
    wrong = {"p": structure(EvaluatorConfig, {"kind": "phases", "split": "dev"})}
    with pytest.raises(ConfigError, match=r"evals\.p\.split: 'dev'; choose from train, val, test"):
        check_reads(wrong, stream())
