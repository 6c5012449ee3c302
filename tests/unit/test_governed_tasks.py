"""Runs through tasks under a controller: what it turns, what is measured, exact resumption."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nl.assembly import launch, load_model
from nl.cli import main
from nl.config import ConfigError
from nl.config.hydra import compose, load_config, run_config
from nl.core.output import Knobs
from nl.dist.single import Single
from nl.fit import check
from nl.run.records import read_records
from nl.train.trainer import Trainer
from tests.unit.data.conftest import build_tiny

STEPS = 18


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory of two small domains."""
    return build_tiny(tmp_path_factory.mktemp("governed"))


def told(text: Path, *more: str) -> list[str]:
    return [
        *("model.dim=16", "model.layers=2", "model.attention.heads=2", "model.vocab_size=259"),
        *("model.block=transformer", "model.mlp_hidden=16", "stream=tasks", f"stream.path={text}"),
        *("stream.tasks=3", "stream.steps=6", "stream.seq_len=16", "stream.batch_size=4"),
        *(f"train.steps={STEPS}", "train.validate_every=0", "schedule.warmup=0", "train.threads=1"),
        *("checkpoint.export=false", "checkpoint.every=0", "logging.every=1"),
        *more,
    ]


EXPERTS = [
    *("model.experts.form=low_rank", "model.experts.count=4", "model.experts.rank=4"),
    *("model.experts.k=1", "model.experts.k_max=3"),
]
GOVERNED = [
    *EXPERTS,
    *("stream.capacity=12", "stream.vocabulary=unique", "signals.every=2", "signals.rows=3"),
    *("+controller=gru", "controller.every=2", "controller.rollout=3"),
    *("controller.ranges.experts_k=[1,3]", "controller.ranges.replay=[0,0.9]"),
]


def rows_of(home: Path) -> list[dict[str, Any]]:
    rows = read_records(home / "metrics.jsonl")
    clocks = ("time", "perf/")
    return [{k: v for k, v in row.items() if not k.startswith(clocks)} for row in rows]


def test_a_governed_run_that_is_stopped_goes_on_as_the_whole_one(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = launch(compose("pilot_smoke", told(text, *GOVERNED, f"run.dir={tmp_path / 'whole'}")))
    attempt = Trainer._attempt

    def crash(self: Trainer, *args: Any) -> Any:
        if self.state.step == 11:
            os.kill(os.getpid(), signal.SIGUSR1)
        return attempt(self, *args)

    monkeypatch.setattr(Trainer, "_attempt", crash)
    place = [f"run.dir={tmp_path / 'cut'}"]
    with pytest.raises(SystemExit):
        launch(compose("pilot_smoke", told(text, *GOVERNED, *place)))
    monkeypatch.setattr(Trainer, "_attempt", attempt)
    launch(compose("pilot_smoke", told(text, *GOVERNED, *place, "resume=auto")))
    wanted = rows_of(whole)
    assert rows_of(tmp_path / "cut") == wanted
    signals = [row for row in wanted if "signal/eta" in row]
    assert [row["step"] for row in signals] == list(range(2, STEPS + 1, 2))
    assert all(math.isfinite(v) for row in signals for v in row.values() if isinstance(v, float))
    assert ["signal/memory_loss" in row for row in signals] == [False] * 3 + [True] * 6
    assert len({row["knob/replay"] for row in wanted if "knob/replay" in row}) >= 6
    assert {row["knob/experts_k"] for row in wanted if "knob/experts_k" in row} <= {1, 2, 3}


def test_losses_of_rows_reach_the_store(text: Path, tmp_path: Path) -> None:
    more = ["stream.capacity=30", "stream.replay=0.5", "stream.memory=loss", "train.grad_accum=2",
            f"run.dir={tmp_path / 'r'}", "train.steps=9"]  # fmt: skip
    home = launch(compose("pilot_smoke", told(text, *more)))
    newest = sorted((home / "checkpoints").glob("step_*"))[-1]
    found = [json.loads(p.read_text()) for p in newest.glob("*.json") if "trainer" in p.name]
    stream = found[0]["stream"]
    assert len(stream["losses"]) == 30
    assert None not in stream["losses"]
    assert 16 * 3 < np.mean(stream["losses"]) < 16 * 8, "nats of rows of 16 bytes"


TASK_LOSSES = [
    "+evals.tasks={kind: task_losses, windows: 6}",
    *("checkpoint.every=6", "checkpoint.keep=0"),
]


def test_a_run_through_tasks_writes_its_whole_matrix(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [*TASK_LOSSES, "stream.vocabulary=unique", f"run.dir={tmp_path / 'r'}", "optim.lr=1e-2"]
    home = launch(compose("pilot_smoke", told(text, *more)))
    found = json.loads((home / "artifacts/evals/tasks.json").read_text())
    page = found["details"]["context"]
    matrix = np.asarray(page["nats_per_token"])
    assert matrix.shape == (4, 3)
    assert page["rows"] == ["init", "after task_00", "after task_01", "after task_02"]
    assert np.abs(np.diff(matrix, axis=0)).min() > 1e-4
    learned = matrix[0] - np.array([matrix[i + 1, i] for i in range(3)])
    assert (learned[:2] > 0.2).all()
    rows = [json.loads(line) for line in (home / "evals.jsonl").read_text().splitlines()]
    metrics = {row["metric"]: row["value"] for row in rows}
    assert metrics["average_loss"] == pytest.approx(matrix[-1].mean())
    assert metrics["forgetting"] == page["metrics"]["forgetting"]
    lines = next((home / "artifacts").rglob("matrix_context.csv")).read_text().splitlines()
    assert len(lines) == 1 + 4 * 3
    assert main(["eval", str(home), "--suite", "tasks", "--output", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again/tasks.json").read_text())
    spent = [data["details"].pop("process") for data in (found, again)]
    assert all(used["cpu_seconds"] > 0 and used["cpu_seconds_before"] > 0 for used in spent)
    assert again["details"] == found["details"]
    capsys.readouterr()
    (home / "checkpoints/step_000006").rename(tmp_path / "away")
    assert main(["eval", str(home), "--suite", "tasks"]) == 2
    assert "no checkpoint of step 6; train with checkpoint.at=[6]" in capsys.readouterr().err


def test_validation_reads_with_the_most_likely_knobs_and_leaves_the_controller_alone(
    text: Path, tmp_path: Path
) -> None:
    evaluated = "+evals.val={kind: task_losses, split: val, windows: 4}"
    saved = ["checkpoint.every=3", "checkpoint.keep=0", evaluated]
    told_ = told(text, *GOVERNED, "train.steps=12", "model.experts.k=2", *saved)
    each = ["train.validate_every=3", "train.validate_batches=1", f"run.dir={tmp_path / 'each'}"]
    home = launch(compose("pilot_smoke", [*told_, *each]))
    plain = launch(compose("pilot_smoke", [*told_, f"run.dir={tmp_path / 'plain'}"]))
    trained = [[row for row in rows_of(run) if row["split"] == "train"] for run in (home, plain)]
    assert trained[0] == trained[1], "reading changed what the controller did"
    states = [
        json.loads((run / f"checkpoints/step_{n:06}/trainer.json").read_text())["controller"]
        for n in (3, 6, 9, 12)
        for run in (home, plain)
    ]
    assert states[::2] == states[1::2]

    run, other = run_config(load_config(home / "config.yaml")), 0
    assert run.controller is not None
    for step in (3, 6, 9, 12):
        folder = home / f"checkpoints/step_{step:06}"
        controller: Any = run.controller.build(seed=0)
        controller.load_state_dict(json.loads((folder / "trainer.json").read_text())["controller"])
        other += controller.frozen().experts_k != 2
        found = {row["split"]: row["loss"] for row in rows_of(home) if row["step"] == step}
        for name in ("val/task_00", "val/task_02"):
            known = read(folder, run.stream, name, controller.frozen())
            assert found[name] == pytest.approx(known, abs=1e-5)
    assert other, "the policy asked for another k than the configured one at least once"
    page = json.loads((home / "artifacts/evals/val.json").read_text())["details"]["context"]
    configured = read(folder, run.stream, "val/task_00", None)
    assert page["nats_per_token"][-1][0] == pytest.approx(configured, abs=1e-5)
    assert configured != found["val/task_00"]


@torch.no_grad()
def read(folder: Path, stream: Any, split: str, knobs: Knobs | None) -> float:
    """Mean loss of the first batch of a split under a checkpoint."""
    model: Any = load_model(folder)
    batch = next(iter(stream.build(split, seed=0, rank=0, world=1)))
    return float(model.nll(batch.inputs.long(), batch.targets.long(), knobs=knobs)[0].mean())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["+controller=random", "controller.ranges.replay=[0,0.5]"], "stream.capacity of 1"),
        (["+controller=random", "controller.ranges.experts_k=[1,2]"], "has no experts"),
        (["+controller=fixed", "controller.router_noise=0.3"], "router_noise: the model has no"),
        ([*EXPERTS, "+controller=fixed", "controller.router_noise=0.3"], r"model\.experts\.noise"),
        (["+controller=fixed", "controller.write_scale=0.5"], "write_scale: the model has no"),
        (["+controller=schedule"], "write_scale: the model has no levels"),
        (["+controller=random", "controller.ranges.write_scale=[0,1]"], "write_scale: the model"),
        (["model.block=hope_attention", "model.cms.inner={kind:adam}", "+controller=schedule"],
         "write_scale: a step of model.cms.inner.kind=adam has a size"),
        ([*EXPERTS, "+controller=random", "controller.ranges.experts_k=[1,4]"],
         r"room for 3; set model\.experts\.k_max=4"),
        (["+controller=gru", "stream.capacity=9", "controller.ranges.replay=[0,0.5]"],
         r"signals\.every: 0; controller=gru"),
        (["+controller=gru", "stream.capacity=9", "controller.ranges.replay=[0,0.5]",
          "signals.every=4"], r"signals\.every: 4; controller=gru follows signals every 10"),
        (["+controller=pi", "controller.signal=loss", "controller.ranges.lr_scale=[0.5,1]",
          "controller.every=5", "logging.every=2"],
         r"logging\.every: 2; controller=pi follows loss of logged steps every 5 steps"),
        ([*TASK_LOSSES, "checkpoint.keep=2"], r"checkpoint\.keep=0 and checkpoint\.every=6"),
        ([*TASK_LOSSES, "train.steps=5"], "no task ends by then"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(text: Path, more: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(run_config(compose("pilot_smoke", told(text, *more))), Single(torch.device("cpu")))


def test_task_losses_need_tasks(text: Path) -> None:
    shards = ["stream=shards", f"stream.path={text}", "model.vocab_size=259", *TASK_LOSSES]
    with pytest.raises(ConfigError, match="reads tasks made of text, stream=shards has none"):
        check(run_config(compose("pilot_smoke", shards)), Single(torch.device("cpu")))


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_task_that_could_not_be_scored_is_refused_at_the_start(
    text: Path, tmp_path: Path, split: str
) -> None:
    """Validation reads val, R reads test; where nothing reads test, it may be empty."""
    shutil.copytree(text, tmp_path / "data")
    file = tmp_path / "data/manifest.json"
    manifest = json.loads(file.read_text())
    shards = manifest["splits"][split]["prose"]["shards"]
    longest = max(shard["tokens"] for shard in shards)
    told_here = told(tmp_path / "data", "stream.passes=9", *TASK_LOSSES)

    def refused(*more: str) -> str:
        with pytest.raises(ConfigError) as error:
            check(run_config(compose("pilot_smoke", [*told_here, *more])), single)
        return str(error.value)

    single = Single(torch.device("cpu"))
    reader = "validation" if split == "val" else "evals.tasks"
    manifest["splits"][split]["prose"]["shards"] = [shards[0] | {"tokens": 16}]
    file.write_text(json.dumps(manifest))
    assert longest > 16
    found = refused()
    assert f"stream.seq_len: 16; {reader} scores task_01 on split '{split}' of domain" in found
    assert "'prose', which has no window of 16 + 1 tokens there (1 shards, the longest of" in found
    assert "16 tokens): set stream.seq_len=15 or less" in found
    check(run_config(compose("pilot_smoke", [*told_here, "stream.seq_len=15"])), single)
    check(run_config(compose("pilot_smoke", [*told_here, "stream.domains=[code]"])), single)
    del manifest["splits"][split]["prose"]
    file.write_text(json.dumps(manifest))
    assert "(0 shards, the longest of 0 tokens): hold out more text" in refused()
    if split == "test":
        plain = told(tmp_path / "data")
        check(run_config(compose("pilot_smoke", plain)), single)
