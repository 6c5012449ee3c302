"""Perplexity equals a direct loop over documents; windows, sampling and bytes are what they say."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

from nl.config import ConfigError, structure
from nl.config.groups import EvaluatorConfig
from nl.eval.context import EvalContext
from nl.eval.perplexity import PerplexityConfig, document_losses, sample_documents
from nl.eval.suite import run_suite
from tests.laws.conftest import small

VOCABULARY = 128


def direct(model: torch.nn.Module, text: str, write: bool, window: int = 0) -> float:
    """Nats of a text: whole-window forwards, batch of one."""
    tokens = [0, *map(ord, text)]
    size = window or len(text)
    total = 0.0
    for start in range(0, len(text), size):
        part = torch.tensor([tokens[start : start + size + 1]])
        with torch.no_grad():
            found = model(part[:, :-1], write=write).pred[0].log_softmax(-1)
        total -= float(found.gather(1, part[0, 1:, None]).sum())
    return total


@pytest.mark.parametrize(("state", "window"), [("document", 0), ("window", 6)])
def test_equals_direct(fakes: ModuleType, context: EvalContext, state: str, window: int) -> None:
    model = fakes.RecurrentModel()
    config = PerplexityConfig(splits=("test",), state=state, window=window or 512)
    rows = {(r.task, r.metric, r.memorize): r for r in config.build()(model, context)}
    nats_all, count_all = 0.0, 0
    for domain in ("prose", "code"):
        texts = list(context.corpus.documents("test", domain))
        for mode in ("off", "context"):
            nats = [direct(model, text, mode == "context", window) for text in texts]
            count = sum(map(len, texts))
            loss = sum(nats) / count
            row = rows[f"test/{domain}", "nats_per_token", mode]
            assert row.value == pytest.approx(loss, abs=1e-6)
            assert row.n == len(texts)
            assert row.chance == pytest.approx(math.log(128))
            spread = [(a - loss * len(t)) ** 2 for a, t in zip(nats, texts, strict=True)]
            error = math.sqrt(sum(spread) * len(texts) / (len(texts) - 1)) / count
            assert row.stderr == pytest.approx(error, rel=1e-5)
            assert rows[f"test/{domain}", "perplexity", mode].value == pytest.approx(
                math.exp(loss), rel=1e-6
            )
            bits = sum(nats) / math.log(2) / count  # one byte per token here
            assert rows[f"test/{domain}", "bits_per_byte", mode].value == pytest.approx(bits)
        nats_all, count_all = nats_all + sum(nats), count_all + count
    everything = rows["test/all", "nats_per_token", "context"]
    assert everything.value == pytest.approx(nats_all / count_all, abs=1e-6)


@pytest.mark.parametrize("kind", ["transformer", "hope_attention", "hope_selfmod", "titan_mac"])
@pytest.mark.parametrize("write", [False, True])
def test_blocks_equal_a_plain_loop_in_float64(
    fakes: ModuleType, context: EvalContext, kind: str, write: bool
) -> None:
    """One forward pass per document on the whole text; the evaluator reads it in segments."""
    model = small(kind, vocab_size=VOCABULARY).double()
    documents = sample_documents(context, "test", "prose", max_documents=0, max_tokens=0)
    mode: Any = "context" if write else "off"
    found = document_losses(model, documents, context, memorize=mode)
    for text, nats in zip(context.corpus.documents("test", "prose"), found.nats, strict=True):
        assert nats == pytest.approx(direct(model, text, write), rel=1e-6)


def test_uniform_model_scores_chance(fakes: ModuleType, context: EvalContext) -> None:
    rows = PerplexityConfig(splits=("test",)).build()(fakes.UniformModel(), context)
    assert rows
    assert all(row.value == pytest.approx(row.chance, rel=1e-5) for row in rows)


def test_batch_size_changes_nothing(fakes: ModuleType, context: EvalContext) -> None:
    model = fakes.RecurrentModel()
    evaluator = PerplexityConfig(splits=("test",)).build()
    values = [
        [row.value for row in evaluator(model, replace(context, batch_size=b, segment=s))]
        for b, s in ((1, 4), (8, 100))
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-5)


def test_bytes_of_text_beyond_ascii(fakes: ModuleType, context: EvalContext) -> None:
    corpus = fakes.ListCorpus({"only": ["\u00e9\u00e9\u00e9a"]})
    rows = PerplexityConfig(splits=("test",), memorize=("off",)).build()(
        fakes.UniformModel(), replace(context, corpus=corpus)
    )
    bits = {row.metric: row.value for row in rows}["bits_per_byte"]
    assert bits == pytest.approx(4 * 7 / 7)  # four tokens of log2(128) bits, seven bytes


def test_oracle_is_not_worse_than_context_for_a_copier(
    fakes: ModuleType, context: EvalContext
) -> None:
    config = PerplexityConfig(splits=("test",), memorize=("context", "oracle"))
    rows = {
        (r.task, r.memorize): r.value
        for r in config.build()(fakes.InductionModel(), context)
        if r.metric == "nats_per_token"
    }
    assert rows["test/prose", "oracle"] < rows["test/prose", "context"] / 2


def test_limits_draw_the_same_documents_every_time(fakes: ModuleType, context: EvalContext) -> None:
    first = context.texts("test", "prose", 2)
    assert len(first) == 2
    assert first == context.texts("test", "prose", 2)
    everything = list(context.corpus.documents("test", "prose"))
    assert set(first) < set(everything)
    drawn = {tuple(replace(context, seed=s).texts("test", "prose", 2)) for s in range(20)}
    assert len(drawn) > 3
    config = PerplexityConfig(splits=("test",), max_tokens=4)
    rows = config.build()(fakes.UniformModel(), replace(context, limit=2))
    assert {row.n for row in rows if row.task != "test/all"} == {2}
    assert rows[0].note.startswith(("8 tokens", "5 tokens"))


def test_refusals(fakes: ModuleType, context: EvalContext) -> None:
    model = fakes.UniformModel()
    with pytest.raises(ConfigError, match="unknown 'val'; the data has test"):
        PerplexityConfig().build()(model, context)
    empty = replace(context, corpus=fakes.ListCorpus({}, "val"))
    with pytest.raises(ConfigError, match="'val' of the data holds no documents"):
        PerplexityConfig().build()(model, empty)
    with pytest.raises(ConfigError, match="--data"):
        PerplexityConfig().build()(model, replace(context, corpus=None))
    with pytest.raises(ConfigError, match="memorize: empty"):
        PerplexityConfig(memorize=())
    data = {"kind": "perplexity", "memorize": ["sometimes"]}
    with pytest.raises(ConfigError, match=r"evals\.memorize\[0\]: unknown 'sometimes'"):
        structure(EvaluatorConfig, data, "evals")


def test_suite_writes_rows_and_names_them(fakes: ModuleType, context: EvalContext) -> None:
    context = replace(context, step=12)
    evaluators = {"ppl": PerplexityConfig(splits=("test",), memorize=("off",)).build()}
    rows = run_suite(fakes.UniformModel(), evaluators, context)
    record = json.loads((context.output / "ppl.json").read_text())
    assert [row.suite for row in rows] == ["ppl"] * len(rows)
    assert record["rows"][0]["value"] == rows[0].value
    assert {row["step"] for row in record["rows"]} == {12}
