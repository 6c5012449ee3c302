"""Which steps are refused: non-finite numbers, spikes, and when there are too many of them."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import nl
from nl.assembly import build
from nl.config.guards import NonfiniteConfig, SpikeConfig
from nl.config.run import TrainConfig
from nl.dist.single import Single
from nl.run import RunDir, read_records
from nl.train.guard import Guard, NonFiniteError, SpikeError, is_outlier
from nl.train.hooks.stop import StopSignals
from nl.train.state import TrainState
from nl.train.trainer import Trainer


def guard(policy: str = "skip", spike: str = "off", **limits: Any) -> Guard:
    return Guard(
        TrainConfig(
            nonfinite=NonfiniteConfig(policy=policy, **limits),  # type: ignore[arg-type]
            spike=SpikeConfig(policy=spike, window=50),  # type: ignore[arg-type]
        )
    )


def test_an_outlier_is_far_in_medians_and_in_deviations() -> None:
    quiet, wild = [1.0, 1.01, 0.99, 1.0], [1.0, 9.0, 0.1, 20.0, 5.0]
    assert is_outlier(quiet, 2.1, multiplier=2, z=6)
    assert not is_outlier(quiet, 1.9, multiplier=2, z=6)
    assert not is_outlier(wild, 12.0, multiplier=2, z=6)
    assert not is_outlier([0.0, 0.0], 0.0, multiplier=2, z=6)


@pytest.mark.parametrize(("length", "fires"), [(1, 0), (3, 0), (4, 1), (5, 1), (50, 1)])
def test_the_detector_fires_once_and_from_patience_on(length: int, fires: int) -> None:
    judge, state = guard(spike="log"), TrainState()
    losses = [1.0 + 0.01 * (i % 7) for i in range(60)]
    losses += [10.0 + 0.01 * i for i in range(length)] + losses[:20]
    for step, loss in enumerate(losses, 1):
        assert judge.judge(False, loss, step, state) == ("commit", "")
    assert judge.seen["spikes"] == fires
    assert len(state.losses) == 50


def test_skip_leaves_out_what_follows_patience_and_then_ends() -> None:
    judge, state = guard(spike="skip", max_consecutive=3), TrainState()
    for step in range(1, 31):
        judge.judge(False, 1.0, step, state)
    before = list(state.losses)
    actions = [judge.judge(False, 10.0, 31 + min(i, 3), state)[0] for i in range(7)]
    assert actions == ["commit"] * 3 + ["skip"] * 3 + ["abort"]
    assert state.losses == [*before, 10.0, 10.0, 10.0][-50:]
    assert isinstance(judge.ending("loss spike at step 34"), SpikeError)


def test_ten_in_a_thousand_are_tolerated_and_eleven_are_not() -> None:
    judge, state = guard(), TrainState()
    found = []
    for step in range(1, 2200, 100):
        found.append(judge.judge(True, 0.0, step, state)[0])
        assert judge.judge(False, 1.0, step, state)[0] == "commit"
    assert found == ["skip"] * len(found)
    judge, state, found = guard(), TrainState(), []
    for step in range(1, 23, 2):
        found.append(judge.judge(True, 0.0, step, state))
        judge.judge(False, 1.0, step, state)
    assert [action for action, _ in found] == ["skip"] * 10 + ["abort"]
    assert found[-1][1] == "non-finite numbers at step 21, 11 bad steps in 1000"


def test_after_the_limit_it_rolls_back_so_often_and_no_more() -> None:
    judge, state = guard(max_consecutive=2, after_limit="rollback"), TrainState()
    actions = [judge.judge(True, 0.0, 5, state)[0] for _ in range(9)]
    assert actions == ["skip", "skip", "rollback"] * 2 + ["skip", "skip", "abort"]
    assert isinstance(judge.ending("non-finite numbers at step 5"), NonFiniteError)


def test_a_spike_rolls_back_and_says_what_was_left_out(tiny: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    changes = {
        "train__spike": {"policy": "rollback", "window": 20, "patience": 2},
        "stream__bad_rows": [14, 15],
        "stream__bad_scale": "30",
        "train__validate_every": 0,
        "checkpoint__every": 6,
    }
    nl.launch(tiny.tiny_run(run__dir=str(folder), **changes))
    steps = [r["step"] for r in read_records(folder / "metrics.jsonl") if r["split"] == "train"]
    assert steps == list(range(1, 21))
    left_out = read_records(folder / "artifacts" / "left_out.jsonl")
    assert left_out == [
        {
            "step": 15,
            "action": "rollback",
            "why": "loss spike at step 16",
            "stream": {"index": 16},
        }
    ]
    trainer = json.loads((folder / "checkpoints" / "step_000020" / "trainer.json").read_text())
    assert (trainer["rollbacks"], trainer["outliers"]) == (1, 0)
    assert trainer["stream"]["index"] == 24  # 20 steps, 14 and 15 left out, 12 and 13 in vain


def test_a_spike_is_logged_and_changes_nothing(tiny: ModuleType, tmp_path: Path) -> None:
    changes = {"stream__bad_rows": [14, 15], "stream__bad_scale": "30"}
    for policy in ("log", "off"):
        spike = {"policy": policy, "window": 20, "patience": 2}
        run = tiny.tiny_run(run__dir=str(tmp_path / policy), train__spike=spike, **changes)
        nl.launch(run)
    text = (tmp_path / "log" / "logs" / "rank_00.log").read_text()
    assert "at step 16, 2 outliers in a row" in text
    losses = [
        [r["loss"] for r in read_records(tmp_path / policy / "metrics.jsonl")]
        for policy in ("log", "off")
    ]
    assert losses[0] == losses[1]


class Behind(str):
    """A device whose numbers are read late, as a GPU's are."""

    type = "cuda"


def test_verdicts_that_are_read_late_name_the_step(tiny: ModuleType, tmp_path: Path) -> None:
    changes = {"stream__bad_rows": [6], "logging__every": 10, "train__validate_every": 0}
    strategy = Single.start("cpu")
    run = tiny.tiny_run(checkpoint__every=0, **changes)
    trainer = Trainer(build(run, strategy), RunDir.create(tmp_path / "r"))
    strategy.device = Behind("cpu")
    with pytest.raises(NonFiniteError, match="non-finite numbers at step 7 "):
        trainer.fit(StopSignals())
    assert trainer.state.step == 9  # read when step 10 was to be logged
    assert len(trainer.state.losses) == 6
    trainer.run_dir.release()
