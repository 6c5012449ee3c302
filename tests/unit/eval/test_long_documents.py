"""Loss by position equals a plain loop over tokens; buckets, windows, errors, documents."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

from nl.config import ConfigError
from nl.eval.context import EvalContext
from nl.eval.long_documents import LongDocumentsConfig, bucket_ends
from nl.eval.memorize import MemoryConfig


def token_by_token(model: Any, text: str, write: bool, window: int = 0) -> list[float]:
    """Nats of every letter: one token a call, State handed on, fresh at every window."""
    found: list[float] = []
    last, state = 0, None
    for place, letter in enumerate(map(ord, text)):
        if window and place % window == 0:
            state = None
        with torch.no_grad():
            out = model(torch.tensor([[last]]), state=state, write=write)
        found.append(-float(out.pred[0, -1].double().log_softmax(-1)[letter]))
        last, state = letter, out.state
    return found


def test_equals_a_loop_over_tokens(fakes: ModuleType, context: EvalContext) -> None:
    model = fakes.RecurrentModel()
    for window in (0, 6):
        state: Any = "window" if window else "document"
        config = LongDocumentsConfig(
            buckets=(4, 10), least=5, state=state, window=window or 512, domains=("prose",)
        )
        rows = {(row.task, row.metric, row.memorize): row for row in config.build()(model, context)}
        texts = [t for t in context.corpus.documents("test", "prose") if len(t) >= 5]
        for mode in ("off", "context"):
            losses = [token_by_token(model, text, mode == "context", window) for text in texts]
            for first, end in ((0, 4), (4, 10), (10, 40)):
                parts = [part[first:end] for part in losses if len(part) > first]
                row = rows[f"test/prose/{first}-{end}", "nats_per_token", mode]
                count = sum(map(len, parts))
                mean = sum(map(sum, parts)) / count
                assert row.value == pytest.approx(mean, abs=1e-6)
                assert row.n == len(parts)
                assert row.note.startswith(f"{count} tokens; ")
                spread = sum((sum(part) - mean * len(part)) ** 2 for part in parts)
                error = math.sqrt(spread * len(parts) / (len(parts) - 1)) / count
                assert row.stderr == pytest.approx(error, rel=1e-4)
                assert row.chance == pytest.approx(math.log(128))
            mean = sum(map(sum, losses)) / sum(map(len, losses))
            whole = rows["test/prose", "perplexity", mode]
            assert whole.value == pytest.approx(math.exp(mean), rel=1e-6)
            assert whole.n == 4
    text = (context.output / "positions.csv").read_text()
    table = list(csv.DictReader(text.splitlines()))
    assert [line["end"] for line in table] == ["4", "10", "40"] * 2
    found = json.loads((context.output / "positions.json").read_text())
    assert found["policy"] == {"state": "window", "window": 6}
    assert found["curves"][1]["buckets"][2]["tokens"] == int(table[5]["tokens"])
    sums = [s["values"]["nats_per_token"] for s in context.record.samples if "/" in s["task"][5:]]
    assert len(sums) == 2 * 2 * (4 + 4 + 3)  # runs, modes, documents that reach each bucket


def test_oracle_reads_the_document_before(fakes: ModuleType, context: EvalContext) -> None:
    model = fakes.InductionModel()
    config = LongDocumentsConfig(buckets=(10,), memorize=("context", "oracle"), domains=("prose",))
    rows = {
        row.memorize: row.value
        for row in config.build()(model, context)
        if (row.task, row.metric) == ("test/prose", "nats_per_token")
    }
    assert rows["oracle"] < rows["context"] / 2


def test_which_documents(fakes: ModuleType, context: EvalContext) -> None:
    texts = {"d": ["a" * size for size in (3, 30, 40, 50, 70)]}
    context = replace(context, corpus=fakes.ListCorpus(texts))
    model = fakes.UniformModel()

    def sizes(**how: Any) -> list[int]:
        inner = replace(context, record=type(context.record)())
        LongDocumentsConfig(memorize=("off",), **how).build()(model, inner)
        whole = [s for s in inner.record.samples if s["task"] == "test/d"]
        return [s["values"]["nats_per_token"][1] for s in whole]

    assert sizes() == [70]  # the others do not reach the second bucket
    assert sizes(tokens=40, least=35) == [40, 40, 40]
    assert sizes(least=1) == [3, 30, 40, 50, 70]
    some = sizes(least=20, documents=2)
    assert len(some) == 2
    assert some == sizes(least=20, documents=2)
    with pytest.raises(ConfigError, match="no document of test/d has 100 tokens"):
        sizes(least=100)


def test_bucket_ends() -> None:
    assert bucket_ends(LongDocumentsConfig(), 300) == (64, 128, 256, 300)
    assert bucket_ends(LongDocumentsConfig(), 256) == (64, 128, 256)
    assert bucket_ends(LongDocumentsConfig(buckets=(5, 7)), 300) == (5, 7, 300)
    for wrong in ((7, 5), (0, 4), (3, 3)):
        with pytest.raises(ConfigError, match="rising numbers"):
            LongDocumentsConfig(buckets=wrong)
    with pytest.raises(ConfigError, match=r"memory\.steps: 2"):
        LongDocumentsConfig(memory=MemoryConfig(steps=2))
