"""Floor: the exact predictor loses nothing, a guesser what theory says, a leak is told."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

import nl.assembly  # noqa: F401 - registers every part
from nl.assembly import build_model
from nl.config import ConfigError, structure
from nl.config.groups import EvaluatorConfig, StreamConfig
from nl.core.ergodic import bayes_filter
from nl.core.output import Output
from nl.eval.causality import look_ahead, require_causal
from nl.eval.context import EvalContext, NoText, OwnRows
from nl.eval.floor_curves import Stratum, adapted, curve
from nl.eval.floor_read import digest
from nl.eval.suite import EvaluationError, run_suite

CHAINS = ["chain:5:1:0.5:3@p0..3"]


def stream(**fields: Any) -> Any:
    data = {"kind": "ergodic", "window": 16, "test_size": 30, **fields}
    return structure(StreamConfig, data)


def evaluator(**fields: Any) -> Any:
    return structure(EvaluatorConfig, {"kind": "floor", **fields})


def context(path: Path, task: Any, **more: Any) -> EvalContext:
    return EvalContext(tokenizer=NoText(), probe=OwnRows(task, 5), output=path, **more)


def run(path: Path, task: Any, model: Any, **fields: Any) -> tuple[dict[str, Any], Any]:
    told = context(path, task)
    rows = evaluator(**fields).build()(model, told)
    return {f"{row.task}:{row.metric}": row for row in rows}, told


class Exact(torch.nn.Module):
    """Says what the exact predictor says, with some weight on what follows, or on the first id."""

    def __init__(self, task: Any, *, leak: float = 0.0, mass: float = 0.0) -> None:
        super().__init__()
        self.task, self.leak, self.mass = task, leak, mass
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def memory_paths(self) -> list[str]:
        return []

    def said(self, tokens: Any) -> Any:
        """Predictions (B, T, V) of T - 1 known symbols and one that is not looked at."""
        return bayes_filter(self.task.exact, tokens).predicted

    def forward(self, inputs: Any, state: Any, *, targets: Any, write: bool) -> Output:
        tokens = np.concatenate([inputs[:, 1:].numpy(), np.zeros((len(inputs), 1), int)], axis=1)
        mark = self.task.alphabet
        tokens = np.where(tokens == mark, 0, tokens)
        found = self.said(tokens)
        if self.leak:
            truth = np.eye(mark)[tokens]
            truth[:, -1] = found[:, -1]
            found = (1 - self.leak) * found + self.leak * truth
        outside = np.full((*found.shape[:2], 1), self.mass)
        found = np.concatenate([found * (1 - self.mass), outside], axis=2)
        return Output(torch.log(torch.from_numpy(found) + 1e-300), (inputs.float(),))


def test_the_exact_predictor_stands_on_the_floor(tmp_path: Path) -> None:
    task = stream(components=CHAINS)
    found, told = run(tmp_path, task, Exact(task))
    assert abs(found["test:excess"].value) < 1e-9
    assert abs(found["test:kl"].value) < 1e-9
    assert found["test:xe"].value == pytest.approx(found["test:bayes_xe"].value)
    assert found["test:excess_z"].value == 0
    page = told.record.details["on"]
    assert not page["alarm"]["fired"]
    assert (np.diff(page["all"]["own_kl"]["at"])[3:].mean()) < 0
    adapt = page["adapted"]["chain:5:1:0.5:3@p1"]
    assert adapt["model"] == adapt["bayes"]
    low, high = adapt["bayes_interval"]
    assert low <= adapt["bayes"] <= high
    exact = told.record.details["exact"]["entropy"]
    near = page["all"]["bayes_entropy"]
    for t, value in enumerate(exact):
        assert abs(near["at"][t] - value) <= 4.5 * near["stderr_at"][t] + 1e-9
    assert sum(one["n"] for one in page["posterior"]) == 120 * 16
    assert json.loads((tmp_path / "sources.json").read_text()).keys() == set(task.all_names)


def test_what_is_said_of_other_ids_counts_against_a_model(tmp_path: Path) -> None:
    task = stream(components=CHAINS)
    found, _ = run(tmp_path, task, Exact(task, mass=0.2))
    assert found["test:kl"].value == pytest.approx(-math.log(0.8))
    assert found["test:excess"].value == pytest.approx(-math.log(0.8))
    assert "test/frozen:kl" not in found, "nothing to freeze"


def test_kept_losses(tmp_path: Path) -> None:
    task = stream(components=["chain:5:1:0.5:3@p2", "chain:5:1:0.5:3@p1"], library=CHAINS)
    found, told = run(tmp_path, task, Exact(task))
    with safe_open(tmp_path / "nll.safetensors", "np") as file:
        facts = {key: json.loads(value) for key, value in file.metadata().items()}
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert facts["components"] == list(task.all_names)
    assert facts["trained_on"] == ["chain:5:1:0.5:3@p2", "chain:5:1:0.5:3@p1"]
    assert (facts["split"], facts["seed"]) == ("test", 0)
    windows = task.windows("test")
    assert facts["windows_digest"] == digest(task.all_names, windows.tokens, windows.component)
    assert facts["windows_digest"] == told.record.details["windows_digest"]
    assert kept["nll"].shape == kept["bayes_kl"].shape == (120, 16)
    assert kept["nll"].dtype == kept["posterior"].dtype == np.float32
    assert kept["component"].tolist() == windows.component[:, 0].tolist()
    assert kept["context"].tolist() == list(range(16))
    assert len(set(kept["document"].tolist())) == 120
    trained = np.isin(kept["component"], [1, 2])
    assert np.isnan(kept["bayes_nll"][~trained]).all()
    assert np.isnan(kept["posterior"][~trained]).all()
    assert np.isfinite(kept["own_nll"]).all()
    assert np.isfinite(kept["bayes_nll"][trained]).all()
    assert (kept["posterior"][trained][:, 0] == 0.5).all()
    assert kept["posterior"][trained][:, -1].mean() > 0.9
    assert found["test:xe"].value == pytest.approx(float(kept["nll"][trained].mean()), abs=1e-6)
    assert "test/chain:5:1:0.5:3@p0:excess" not in found
    assert found["test/chain:5:1:0.5:3@p0:xe"].n == 30
    for name in ("chain:5:1:0.5:3@p1", "chain:5:1:0.5:3@p0"):
        lines = [
            one["values"]["xe"] for one in told.record.samples if one["task"] == f"test/{name}"
        ]
        assert np.mean(lines) == pytest.approx(found[f"test/{name}:xe"].value, abs=1e-5)


def test_a_leak_that_looks_causal_is_told_by_the_floor(tmp_path: Path) -> None:
    task = stream(components=CHAINS)
    built = {"floor": evaluator(causality=False).build()}
    with pytest.raises(EvaluationError, match="better than Bayes: memory writes on"):
        run_suite(Exact(task, leak=0.05), built, context(tmp_path, task))
    page = json.loads((tmp_path / "floor.json").read_text())
    assert page["failures"]
    assert page["failures"][0].startswith("better than Bayes")
    assert page["details"]["on"]["alarm"]["fired"]
    z = next(row["value"] for row in page["rows"] if row["metric"] == "excess_z")
    assert z < -4
    run_suite(Exact(task), {"floor": evaluator().build()}, context(tmp_path, task))
    assert json.loads((tmp_path / "floor.json").read_text())["failures"] == []


def test_a_model_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    task = stream(components=CHAINS)
    with pytest.raises(ConfigError, match="model: not causal; with another token at"):
        run(tmp_path, task, Exact(task, leak=0.05))
    inputs = torch.from_numpy(task.windows("test").inputs[:4])
    assert look_ahead(Exact(task), inputs)[1] == 0


@pytest.mark.parametrize("block", ["transformer", "hope_selfmod", "titan_lmm"])
def test_models_are_causal_and_a_wrapper_that_shifts_is_not(block: str) -> None:
    model = build_model("pilot_smoke", [f"model.block={block}", "model.dim=32",
                                        "model.vocab_size=8", "model.layers=1",
                                        "model.titan.head_size=16"])  # fmt: skip

    class Shifted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, inputs: Any, state: Any, **more: Any) -> Output:
            out: Output = self.inner(torch.cat([inputs[:, 1:], inputs[:, :1]], 1), state, **more)
            return out

    inputs = torch.randint(0, 6, (4, 24))
    require_causal(model, inputs)
    with pytest.raises(ConfigError, match="not causal"):
        require_causal(Shifted(), inputs)


def test_switching(tmp_path: Path) -> None:
    task = stream(components=CHAINS, order="switching", hazard=0.1, window=40)
    found, told = run(tmp_path, task, Exact(task))
    assert abs(found["test:kl"].value) < 1e-9
    assert "test:own_kl" not in found
    since = told.record.details["on"]["since_change"]
    assert since[0]["since"] == 0
    assert since[0]["posterior"]["mean"] < 0.4 < since[8]["posterior"]["mean"]
    assert since[0]["bayes_xe"]["mean"] > since[8]["bayes_xe"]["mean"] + 0.3
    assert found["test/chain:5:1:0.5:3@p1:kl"].value == pytest.approx(0, abs=1e-9)
    with safe_open(tmp_path / "nll.safetensors", "np") as file:
        at, first = file.get_tensor("component_at"), file.get_tensor("component")
    assert (at[:, 0] == first).all()
    assert (at != first[:, None]).any()


def test_without_a_mark_the_first_symbol_is_context_alone(tmp_path: Path) -> None:
    task = stream(components=CHAINS, bos=False)

    class Plain(Exact):
        def forward(self, inputs: Any, state: Any, *, targets: Any, write: bool) -> Output:
            padded = np.concatenate([inputs.numpy(), np.zeros((len(inputs), 1), int)], axis=1)
            return Output(torch.log(torch.from_numpy(self.said(padded)[:, 1:])), (inputs.float(),))

    found, told = run(tmp_path, task, Plain(task))
    assert abs(found["test:kl"].value) < 1e-9
    assert told.record.details["context"] == list(range(1, 16))


def test_curves_weigh_strata_and_their_errors() -> None:
    values = np.array([[1.0, 3.0], [3.0, 5.0], [0.0, 0.0], [2.0, 0.0]])
    strata = (Stratum("a", 0.25, np.array([0, 1])), Stratum("b", 0.75, np.array([2, 3])))
    found = curve(values, strata)
    assert found["at"] == [0.25 * 2 + 0.75, 0.25 * 4]
    assert found["mean"] == pytest.approx(0.25 * 3 + 0.75 * 0.5)
    assert found["stderr"] == pytest.approx(math.sqrt(0.25**2 * 2 / 2 + 0.75**2 * 0.5 / 2))
    assert curve(values, (Stratum("a", 1.0, np.array([0])),))["stderr"] is None


def test_adaptation_is_for_good() -> None:
    best = np.tile([[0.2, 1.0, 0.6, 0.2, 0.1]], (4, 1))
    model = np.tile([[0.2, 1.2, 0.2, 0.4, 0.1]], (4, 1))
    found = adapted(model, best, 0.25, range(5))
    assert (found["threshold"], found["bayes"], found["model"]) == (0.25, 3, 4)
    assert found["model_interval"] == [4, 4]
    assert adapted(model + 1, best, 0.25, range(5))["model"] is None
    assert adapted(model, best * 0, 0.25, range(5))["threshold"] is None


def test_refusals() -> None:
    for fields, text in (
        ({"split": "train"}, "split: 'train'; use test or val"),
        ({"writes": []}, "writes: empty"),
        ({"adapted": 1.0}, "adapted: 1.0"),
    ):
        with pytest.raises(ConfigError, match=text):
            evaluator(**fields).check_parts(stream(), None)
