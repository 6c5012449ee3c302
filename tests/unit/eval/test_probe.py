"""Probes are scored as counted by hand; memories on, frozen, reset; refusals; kept files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nl.assembly  # noqa: F401 - registers every part
from nl.assembly import build_model, launch
from nl.cli import main
from nl.config import ConfigError, structure
from nl.config.groups import EvaluatorConfig, StreamConfig
from nl.config.hydra import compose
from nl.core.batch import IGNORE
from nl.core.output import Output
from nl.core.state import tensors
from nl.eval.context import EvalContext, NoText, OwnRows, check_reads
from nl.eval.probe import Measured, ProbeEvalConfig, bootstrap
from nl.eval.probe_read import Reading, read_rows

SMALL = ["experiment=probes/medium", "model.dim=32", "model.vocab_size=64", "stream.vocab=32"]


def stream(**fields: Any) -> Any:
    return structure(StreamConfig, {"kind": "mqar", "vocab": 32, "test_size": 40, **fields})


def evaluator(**fields: Any) -> ProbeEvalConfig:
    found = structure(EvaluatorConfig, {"kind": "probe", **fields})
    assert isinstance(found, ProbeEvalConfig)
    return found


def context(path: Path, task: Any, **more: Any) -> EvalContext:
    return EvalContext(tokenizer=NoText(), probe=OwnRows(task, 0), output=path, **more)


def values(rows: list[Any]) -> dict[str, Any]:
    return {f"{row.task}:{row.metric}": row.value for row in rows}


class Says(torch.nn.Module):
    """The oracle's answer, or token 0 where ``wrong`` says so; it has no memories."""

    def __init__(self, task: Any, every: int = 0) -> None:
        super().__init__()
        self.task, self.every, self.shown = task, every, False
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def memory_paths(self) -> list[str]:
        return []

    def answers(self, inputs: Any, targets: Any) -> Any:
        told = torch.from_numpy(self.task.oracle(inputs.numpy()))
        return torch.where(targets == IGNORE, 0, told)

    def forward(self, inputs: Any, state: Any, *, targets: Any, write: bool) -> Output:
        assert write
        assert (targets is not None) == self.shown
        assert targets is None or torch.equal(targets.clamp(min=0), self.answers(inputs, targets))
        answer = torch.from_numpy(self.task.oracle(inputs.numpy())).clamp(min=0)
        if self.every:
            answer[:: self.every] = 0
        pred = torch.full((*inputs.shape, 32), -20.0).scatter(2, answer[..., None], 20.0)
        return Output(pred, (inputs.float(),))


def test_the_oracle_scores_one_and_every_fourth_row_can_be_wrong(tmp_path: Path) -> None:
    task = stream()
    told = context(tmp_path, task)
    harder = {"longer": {"length": 128}, "more": {"pairs": 8}}
    found = values(evaluator(harder=harder).build()(Says(task, 4), told))
    assert (found["test:accuracy"], found["test:exact"]) == (0.75, 0.75)
    assert found["test:score"] == pytest.approx((0.75 - 0.25) / 0.75)
    assert found["test:nll"] == pytest.approx(10.0, abs=1e-6)  # a quarter of 40 nats
    assert found["test:state_bytes"] == 64 * 4
    assert found["longer:state_bytes"] == 128 * 4
    assert found["test/oracle:accuracy"] == 1.0
    assert found["test/chance:accuracy"] == 0.25
    assert 0 < found["test/shortcut last value:accuracy"] < 0.5
    assert "test/frozen:accuracy" not in found, "nothing to freeze"
    case = told.record.details["test"]
    low, high = case["on"]["accuracy_interval"]
    assert low < 0.75 < high
    slices = case["on"]["slices"]["gap"]
    assert sum(line["n"] for line in slices.values()) == 160
    assert {f"test:accuracy/gap={key}" for key in slices} <= set(found)
    samples = [line["values"] for line in told.record.samples if line["task"] == "test"]
    assert sum(line["accuracy"][0] for line in samples) / 160 == found["test:accuracy"]
    page = json.loads((tmp_path / "examples.json").read_text())
    assert (page["wrong"], len(page["errors"]), len(page["right"])) == (10, 8, 8)
    assert page["errors"][0]["guesses"] == [0, 0, 0, 0]
    assert (
        task.oracle(np.asarray([page["right"][0]["inputs"]]))[0][
            page["right"][0]["places"]
        ].tolist()
        == page["right"][0]["targets"]
    )


def test_answers_are_handed_out_on_request_alone(tmp_path: Path) -> None:
    task = stream()
    model = Says(task)
    hidden = evaluator().build()(model, context(tmp_path, task))
    model.shown = True
    shown = evaluator(labels=True).build()(model, context(tmp_path, task))
    assert [row.value for row in shown] == [row.value for row in hidden]


def test_errors_are_named_where_the_probe_knows_kinds(tmp_path: Path) -> None:
    class Kinds:
        def chance(self) -> float:
            return 0.25

        def errors(self, inputs: Any, guess: Any) -> dict[str, Any]:
            return {"even": (guess % 2 == 0) * 1, "odd": guess % 2}

    from nl.eval.probe import Asked
    from nl.eval.probe_read import Answers

    targets = np.asarray([[IGNORE, 1, 2], [IGNORE, 3, 4]])
    guess = np.asarray([[9, 1, 3], [9, 2, 6]])
    asked = Asked("test", Kinds(), targets, targets, {})
    answers = Answers(guess, np.zeros((2, 3)), np.ones((2, 3)), 0, [])
    page: dict[str, Any] = {}
    found = values(Measured(asked, answers, "on").rows(page, slices=True))
    assert page["mistakes"] == {"even": 2, "odd": 1}
    assert found["test:mistake/even"] == pytest.approx(2 / 3)
    assert found["test:accuracy"] == 0.25


@pytest.mark.parametrize("block", ["gated_delta", "hope_attention", "hope_selfmod", "transformer"])
def test_memories_on_frozen_and_thrown_away(block: str) -> None:
    own = ["model.cms.signal=self", "model.cms.write_gradient=through", "model.cms.periods=[16,32]"]
    model: Any = build_model("pilot_smoke", [*SMALL, f"model.block={block}", *own])
    probe = stream(length=32).examples("test", 0)
    tokens = torch.from_numpy(probe.inputs[:4])
    rows = (probe.inputs[:4], probe.targets[:4])
    told = {mode: read_rows(model, *rows, Reading(mode, 16)) for mode in ("on", "frozen", "reset")}
    same = {name: np.allclose(told["on"].nats, told[name].nats, atol=1e-5) for name in told}
    if block == "transformer":
        assert same == dict.fromkeys(told, True)
        return
    assert same == {"on": True, "frozen": False, "reset": False}
    writes = {line["path"]: line["writes"] for line in told["on"].memories}
    assert min(writes.values()) > 0
    # What is read after a loss of memory is what a fresh memory reads, attention aside.
    with torch.no_grad():
        after = model(tokens[:, :16]).state
        fresh = model.without_memories(after)
        assert fresh.position == 16
        if block == "hope_attention":
            assert torch.equal(fresh.blocks[0].mixers[0].keys, after.blocks[0].mixers[0].keys)
            assert all(level.fast_up is None for level in fresh.blocks[0].levels)
            return
        start = model.init_state(4, position=16)
        assert [t.shape for t in tensors(fresh)] == [t.shape for t in tensors(start)]
        one, other = (model(tokens[:, 16:], state).pred for state in (fresh, start))
        assert torch.allclose(one, other, atol=1e-6)


def test_refusals() -> None:
    task, model = stream(), build_model("pilot_smoke", SMALL).config
    check_reads({"probe": evaluator(harder={"long": {"length": 128}})}, task, model)
    fields: dict[str, Any]
    for fields, words in (
        ({"harder": {"x": {"lengths_": 3}}}, "evals.probe.harder.x.*lengths_.*length"),
        ({"harder": {"x": {"length": 3}}}, "evals.probe.harder.x.length: 3; must be even"),
        ({"harder": {"x": {"vocab": 128}}}, "evals.probe.harder.x: token ids go up to 127"),
        ({"split": "tset"}, "evals.probe.split: .*tset"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_reads({"probe": evaluator(**fields)}, task, model)
    for fields, words in (
        ({"harder": {"test": {}}}, "harder.test"),
        ({"writes": []}, "writes: empty"),
        ({"writes": ["on", "on"]}, "each once"),
        ({"reset_every": 0}, "reset_every: 0"),
        ({"rows": -1}, "rows: -1"),
        ({"examples": -1}, "examples: -1"),
    ):
        with pytest.raises(ConfigError, match=words):
            evaluator(**fields)
    ladder = structure(StreamConfig, {"kind": "ladder", "task": "aa_bb_cc"})
    with pytest.raises(ConfigError, match=r"evals\.probe: reads token rows with an oracle"):
        check_reads({"probe": evaluator()}, ladder)
    classes = structure(EvaluatorConfig, {"kind": "classification"})
    with pytest.raises(ConfigError, match=r"evals\.c: reads labelled examples, stream=mqar"):
        check_reads({"c": classes}, task)
    bare = EvalContext(tokenizer=NoText(), output=Path())
    with pytest.raises(ConfigError, match="this run's stream has none"):
        evaluator().build()(torch.nn.Linear(1, 1), bare)
    with pytest.raises(ConfigError, match="reads with a language model"):
        evaluator().build()(torch.nn.Linear(1, 1), context(Path(), task))


def test_the_interval_is_the_same_every_time_and_holds_the_share() -> None:
    hits, counts = np.arange(50) % 5, np.full(50, 4)
    low, high = bootstrap(hits, counts)
    assert (low, high) == bootstrap(hits, counts)
    assert low < 0.5 < high
    assert 0.1 < high - low < 0.3  # 1.96 * 2 * 0.354 / sqrt(50) = 0.196


def test_a_run_measures_itself_at_its_end_and_nl_eval_says_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = [
        "+evals.probe={kind: probe, rows: 16, harder: {long: {length: 128}}}",
        "train.threads=1",
    ]
    more = ["train.steps=2", "schedule.warmup=0", "stream.test_size=32", "stream.val_size=8"]
    place = [f"run.dir={tmp_path / 'run'}", "train.device=cpu"]
    data = compose("pilot_smoke", [*SMALL, *told, *more, *place])
    home = launch(data)
    summary = json.loads((home / "summary.json").read_text())
    found = {f"{row['task']}:{row['metric']}": row["value"] for row in summary["evals"]}
    assert {"test:accuracy", "test/frozen:accuracy", "test/reset:nll", "long:exact"} <= set(found)
    kept = json.loads((home / "artifacts/evals/probe.json").read_text())
    assert kept["details"]["test"]["rows"] == 16
    assert kept["details"]["long"]["length"] == 128
    assert main(["eval", str(home), "--output", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again/probe.json").read_text())
    for row in again["rows"]:
        assert row["value"] == found[f"{row['task']}:{row['metric']}"]
    assert "test/oracle" in capsys.readouterr().out
    assert main(["eval", str(home), "--set", "probe.split=tset"]) == 2
