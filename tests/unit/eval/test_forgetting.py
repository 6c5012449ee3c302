"""R over several models: rows, the initial row, the plan of segments, the table."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch

from nl.config import ConfigError, structure
from nl.eval.context import EvalContext
from nl.eval.forgetting import Segment, SegmentsFile, evaluate_segments, forgetting_matrix
from nl.eval.perplexity import sample_documents


def segments(context: EvalContext) -> list[Segment]:
    return [
        Segment(name, tuple(sample_documents(context, "test", name, max_documents=0, max_tokens=0)))
        for name in ("prose", "code")
    ]


def direct(model: torch.nn.Module, context: EvalContext, domain: str, write: bool) -> float:
    total, count = 0.0, 0
    for text in context.corpus.documents("test", domain):
        tokens = torch.tensor([[0, *map(ord, text)]])
        with torch.no_grad():
            found = model(tokens[:, :-1], write=write).pred[0].log_softmax(-1)
        total -= float(found.gather(1, tokens[0, 1:, None]).sum())
        count += len(text)
    return total / count


def test_one_row_equals_direct(fakes: ModuleType, context: EvalContext) -> None:
    model = fakes.RecurrentModel()
    for mode in ("off", "context"):
        row = evaluate_segments(model, segments(context), context, memorize=mode)
        wanted = [direct(model, context, name, mode == "context") for name in ("prose", "code")]
        assert row == pytest.approx(wanted, abs=1e-6)


def test_matrix_over_models(fakes: ModuleType, context: EvalContext) -> None:
    models = [fakes.RecurrentModel() for _ in range(4)]
    before = [[p.clone() for p in model.parameters()] for model in models]
    pairs = [(f"m{i}", lambda model=model: model) for i, model in enumerate(models)]
    phases = ("prose", "code", "prose")
    result = forgetting_matrix(pairs, segments(context), phases, context)
    for mode in ("off", "context"):
        matrix = result.matrices[mode]
        for i, model in enumerate(models):
            wanted = [direct(model, context, name, mode == "context") for name in ("prose", "code")]
            assert matrix.values[i].tolist() == pytest.approx(wanted, abs=1e-6)
    for model, saved in zip(models, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), saved, strict=True))
    rows = {(row.task, row.metric, row.memorize): row.value for row in result.rows()}
    off = result.matrices["off"].values
    assert rows["init/code", "nats_per_token", "off"] == off[0, 1]
    assert rows["prose->code->prose", "backward_transfer", "off"] == off[2, 1] - off[3, 1]
    assert "3:prose" in result.table()
    assert result.as_data()["memorize"]["off"]["nats_per_token"] == off.tolist()


def test_without_initial_row(fakes: ModuleType, context: EvalContext) -> None:
    pairs = [("a", fakes.UniformModel), ("b", fakes.UniformModel)]
    result = forgetting_matrix(pairs, segments(context), ("prose", "code"), context, ("off",))
    matrix = result.matrices["off"]
    assert math.isnan(matrix.values[0, 0])
    assert matrix.values[1:] == pytest.approx(math.log(128), rel=1e-6)
    metrics = {row.metric: row for row in result.rows()}
    assert metrics["forward_transfer"].value is None
    assert "not defined" in metrics["forward_transfer"].note
    assert not any(row.task.startswith("init") for row in result.rows())
    with pytest.raises(ConfigError, match="2 for 4 phases"):
        forgetting_matrix(pairs, segments(context), ("prose", "code") * 2, context)


def test_segments_file() -> None:
    plan = structure(SegmentsFile, {"segments": [{"name": "a"}, {"name": "b", "domain": "x"}]}, "")
    assert [segment.split for segment in plan.segments] == ["test", "test"]
    with pytest.raises(ConfigError, match="each name once"):
        structure(SegmentsFile, {"segments": [{"name": "a"}, {"name": "a"}]}, "")
    with pytest.raises(ConfigError, match=r"unknown 'shard_dir'.*Did you mean 'shards_dir'"):
        structure(SegmentsFile, {"segments": [{"name": "a", "shard_dir": "x"}]}, "")
