"""Plans of sequential runs: what is trained, kept, continued, measured and written."""

from __future__ import annotations

import csv
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import nl.train.trainer
from nl.config import structure
from nl.config.hydra import load_config
from nl.eval.sequential import ContinualPlan, Measured, Results, planned_runs
from tests.unit.data.conftest import build_tiny

ROOT = Path(__file__).resolve().parents[3]
SMALL = [
    *("model.dim=16", "model.layers=1", "model.vocab_size=259", "model.attention.heads=2"),
    *("stream.seq_len=32", "stream.batch_size=4", "schedule=constant", "schedule.warmup=1"),
    *("model.cms.hidden=16", "train.validate_batches=1"),
]
PLAN: dict[str, Any] = {
    "overrides": SMALL,
    "phases": [{"domain": "prose", "steps": 2}, {"domain": "code", "tokens": 300}],
    "models": {
        "plain": ["model.block=transformer"],
        "hope": ["model.block=hope_attention"],
    },
    "methods": {
        "naive": {},
        "joint": {"order": "joint"},
        "scratch": {"order": "scratch"},
        "replay": {"stream": "replay", "overrides": ["stream.capacity=8"]},
        "ewc": {"overrides": ["objective=ewc", "objective.rows=4", "objective.strength=100"]},
        "frozen": {"freeze_after": 1},
    },
    "runs": {"plain": ["naive", "joint", "scratch", "replay", "ewc"], "hope": ["naive", "frozen"]},
    "seeds": [0, 1],
    "documents": 3,
    "max_tokens": 40,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("sequential"))


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    path = str(ROOT / "scripts" / "eval" / "continual.py")
    monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(path, run_name="__main__")
    return int(stop.value.code or 0)


def flags(data: Path, place: Path, **changes: Any) -> list[object]:
    plan = place / "plan.yaml"
    plan.write_text(yaml.safe_dump(PLAN | {"path": str(data)} | changes))
    return ["--plan", plan, "--root", place / "runs", "--output", place / "c.json"]


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every row of the plan for one seed."""
    place = tmp_path_factory.mktemp("done")
    with pytest.MonkeyPatch.context() as patch:
        assert call(patch, *flags(data, place), "--seeds", 1) == 0
    return place


def entries(place: Path) -> dict[tuple[str, str, int], Any]:
    record = json.loads((place / "c.json").read_text())
    return {(run["model"], run["method"], run["seed"]): run for run in record["runs"]}


def matrix(entry: Any, mode: str = "off") -> Any:
    return entry["memorize"][mode]["nats_per_token"]


def test_every_row_is_a_training_run_and_a_full_matrix(done: Path) -> None:
    record, found = json.loads((done / "c.json").read_text()), entries(done)
    assert record["rows"] == ["init", "1:prose", "2:code"]
    assert record["segments"] == record["phases"] == ["prose", "code"]
    assert len(found) == 7
    for entry in found.values():
        for mode in ("off", "context"):
            table = matrix(entry, mode)
            assert [len(row) for row in table] == [2, 2, 2]
            assert table[0] == matrix(found[entry["model"], "naive", 0], mode)[0]
        assert entry["cpu_seconds"] > 0
        assert all((Path(run) / "summary.json").is_file() for run in entry["runs"])
    naive = matrix(found["plain", "naive", 0])
    for method in ("replay", "ewc"):  # the first phase is the same
        assert matrix(found["plain", method, 0])[1] == naive[1]
        assert matrix(found["plain", method, 0])[2] != naive[2]
    hope, frozen = (found["hope", method, 0] for method in ("naive", "frozen"))
    assert matrix(frozen, "context")[1] == matrix(hope, "context")[1]
    assert matrix(frozen, "context")[2] != matrix(hope, "context")[2]
    assert any(row["metric"].startswith("memory/") for row in hope["written"])
    scratch = found["plain", "scratch", 0]
    assert len(scratch["runs"]) == 2
    assert matrix(scratch)[1] == naive[1]
    assert matrix(scratch)[2] != naive[2]
    assert scratch["memorize"]["off"]["metrics"] == {
        "plasticity_loss": pytest.approx((naive[1][0] + matrix(scratch)[2][1]) / 2)
    }


def test_references_come_from_joint_and_scratch(done: Path) -> None:
    found = entries(done)
    naive, joint, scratch = (
        matrix(found["plain", method, 0]) for method in ("naive", "joint", "scratch")
    )
    metrics = found["plain", "naive", 0]["memorize"]["off"]["metrics"]
    gap = (naive[2][0] - joint[2][0] + naive[2][1] - joint[2][1]) / 2
    assert metrics["joint_gap"] == pytest.approx(gap)
    late = (naive[1][0] - joint[2][0] + naive[2][1] - joint[2][1]) / 2
    assert metrics["intransigence"] == pytest.approx(late)
    assert metrics["plasticity_gap"] == pytest.approx((naive[2][1] - scratch[2][1]) / 2)
    assert found["hope", "naive", 0]["memorize"]["off"]["metrics"]["joint_gap"] is None


def test_the_tables_beside_the_record(done: Path) -> None:
    with (done / "c.matrix.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert len(cells) == 7 * 2 * 3 * 2
    one = next(c for c in cells if c["method"] == "joint" and c["row"] == "2:code")
    assert float(one["nats_per_token"]) == matrix(entries(done)["plain", "joint", 0])[2][0]
    with (done / "c.metrics.csv").open() as file:
        rows = {
            (r["model"], r["method"], r["memorize"], r["metric"]): r for r in csv.DictReader(file)
        }
    row = rows["plain", "naive", "off", "forgetting"]
    assert (row["n"], row["better"], row["unit"]) == ("1", "lower", "nats")
    assert ("plain", "joint", "off", "forgetting") not in rows


def test_finished_runs_are_kept_and_a_second_seed_gives_intervals(
    data: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (done / "runs").rglob("*")}
    first = (done / "c.json").read_text()
    only = ("--only", "plain/naive", "plain/joint")
    given = flags(data, done)
    given[-1] = done / "two.json"
    assert call(monkeypatch, *given, *only, "--report-only") == 0
    assert {path: path.stat().st_mtime_ns for path in (done / "runs").rglob("*")} == before
    record = json.loads((done / "two.json").read_text())
    assert [run["seed"] for run in record["runs"]] == [0, 0]  # the second is not trained yet
    assert call(monkeypatch, *given, *only) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if path.is_file())
    summary = json.loads((done / "two.json").read_text())["summary"]
    chosen = [r for r in summary if (r["method"], r["metric"]) == ("naive", "forgetting")]
    assert [(row["n"], sorted(row["seeds"])) for row in chosen] == [(2, ["0", "1"])] * 2
    mean = sum(chosen[0]["seeds"].values()) / 2
    assert chosen[0]["mean"] == pytest.approx(mean)
    assert chosen[0]["high"] - mean == pytest.approx(12.706 * chosen[0]["std"] / 2**0.5)
    assert (done / "c.json").read_text() == first


def test_a_stopped_plan_goes_on_where_it_was(
    data: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, seen = nl.train.trainer.Trainer._commit, []

    def stop_in_the_second_phase(self: Any, step: Any) -> None:
        commit(self, step)
        seen.append(self.state.step)
        if seen == [1, 2, 3]:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)

    given = [*flags(data, tmp_path), "--only", "plain/replay", "--seeds", 1]
    with monkeypatch.context() as patch:
        patch.setattr(nl.train.trainer.Trainer, "_commit", stop_in_the_second_phase)
        assert call(patch, *given) == 130
        assert not (tmp_path / "c.json").exists()
        assert call(patch, *given) == 0
    assert seen[:4] == [1, 2, 3, 4]
    assert len(seen) == 5
    wanted = matrix(entries(done)["plain", "replay", 0], "context")
    assert matrix(entries(tmp_path)["plain", "replay", 0], "context") == wanted


def test_what_train_py_is_told() -> None:
    plan = structure(ContinualPlan, PLAN | {"path": "x"}, "")
    options = {"tokens_per_step": 128, "accum": 2}
    (one,) = planned_runs(plan, "plain", "naive", 3, **options)
    assert one.ends == (2, 5)  # 300 tokens: three steps
    assert "stream.phases=[{domain:prose,steps:4},{domain:code,steps:6}]" in one.overrides
    assert {"seed=3", "train.steps=5", "checkpoint.at=[2,5]"} <= set(one.overrides)
    (mixed,) = planned_runs(plan, "plain", "joint", 3, **options)
    assert {"stream=shards", "stream.domains=[prose,code]", "stream.weights=[2,3]"} <= set(
        mixed.overrides
    )
    first, second = planned_runs(plan, "plain", "scratch", 3, **options)
    assert (first.ends, second.ends) == ((2,), (3,))
    assert "stream.phases=[{domain:code,steps:6}]" in second.overrides
    (frozen,) = planned_runs(plan, "hope", "frozen", 3, **options)
    assert {"optim=frozen_backbone", "optim.full_steps=2"} <= set(frozen.overrides)


def test_results_without_references() -> None:
    plan = structure(ContinualPlan, PLAN | {"path": "x"}, "")
    values: Any = {"off": [[4.0, 4.0], [2.0, 3.0], [3.0, 1.0]]}
    one = Measured("plain", "naive", 0, "sequential", ("r",), 10, None, values)
    result = Results(plan, (one,))
    assert result.metrics(one, "off")["forgetting"] == 1.0
    assert result.by_seed("plain", "naive", "off", "joint_gap") == {}
    assert "2.000" in result.table()


@pytest.mark.parametrize("name", ["smoke", "three_domains"])
def test_plans_compose(name: str) -> None:
    import argparse

    from nl.cli_sequential import read_plan

    path = str(ROOT / "configs" / "continual" / f"{name}.yaml")
    options = argparse.Namespace(plan=path, data=None, only=None, seeds=0)
    plan = read_plan(options)
    assert plan.pairs()
    assert load_config(Path(path))["phases"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"phases": []}, "phases: empty"),
        ({"phases": [{"domain": "prose"}]}, "give steps or tokens"),
        ({"phases": [{"domain": "prose", "steps": 0}]}, "prose: 0; must be >= 1"),
        ({"models": {}}, "models: empty"),
        ({"methods": {"naive": {"order": "mixed"}}}, "mixed"),
        ({"methods": {"j": {"order": "joint", "freeze_after": 1}}}, "freeze_after are for"),
        ({"runs": {"other": ["naive"]}}, "'other' is none of"),
        ({"runs": {"plain": ["other"]}}, "'other' is none of"),
        ({"seeds": [1, 1]}, "each once"),
        ({"segments": [{"name": "prose"}]}, "none has domain 'code'"),
        ({"phase": []}, "Did you mean 'phases'"),
        ({"models": {"plain": ["model.blok=x"]}, "runs": {}}, "plain/ewc: model: unknown 'blok'"),
    ],
)
def test_a_bad_plan_is_refused(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    words: str,
) -> None:
    assert call(monkeypatch, *flags(data, tmp_path, **changes)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_bad_flags_are_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = flags(data, tmp_path)
    assert call(monkeypatch, *given, "--only", "plain/frozen") == 2
    assert "plain/frozen; this plan has hope/frozen, hope/naive" in capsys.readouterr().err
    assert call(monkeypatch, *given, "--checkpoints", "x") == 2
    assert "give one of the two" in capsys.readouterr().err
    assert call(monkeypatch, "--checkpoints", "x") == 2
    assert "--segments-yaml: missing" in capsys.readouterr().err
