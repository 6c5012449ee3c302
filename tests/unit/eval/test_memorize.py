"""How memories are written while evaluating: every control against the model called by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from nl.config import ConfigError
from nl.core.output import Knobs
from nl.eval.context import EvalContext
from nl.eval.memorize import MemoryConfig, measure_writes, memory_rows
from nl.eval.needle import NeedleConfig
from nl.eval.perplexity import PerplexityConfig
from nl.eval.scoring import Item, primed, scorer
from tests.laws.conftest import block_kinds, small, tokens

ITEMS = [
    Item(
        tuple(tokens(1, length, length)[0].tolist()), tuple(tokens(1, more, more + 50)[0].tolist())
    )
    for length, more in ((19, 3), (19, 5), (8, 1), (23, 4))
]
ITEMS.insert(1, Item(ITEMS[0].context, ITEMS[1].continuation))


def likelihood(model: Any, text: tuple[int, ...], first: int, state: Any = None, **how: Any) -> Any:
    """Log-probabilities of text[first:], everything read in one call; and the State."""
    ids = torch.tensor([text])
    with torch.no_grad():
        out = model(ids[:, :-1], state, **how)
    found = out.pred[0].log_softmax(-1)[first - 1 :]
    return found.gather(1, ids[0, first:, None])[:, 0]


@pytest.fixture
def small_context(context: EvalContext) -> EvalContext:
    return replace(context, batch_size=2, segment=7)


@pytest.mark.parametrize("kind", ["hope_hybrid", "gated_delta", "gru"])
def test_contexts_are_read_as_often_as_asked(kind: str, small_context: EvalContext) -> None:
    model = small(kind)
    memory = MemoryConfig(steps=3)
    items = [primed(item, (), "context", memory.steps) for item in ITEMS]
    scores = scorer(model, small_context, "context", memory=memory).score(items)
    for item, score in zip(ITEMS, scores, strict=True):
        text = item.context * 3 + item.continuation
        wanted = likelihood(model, text, 3 * len(item.context))
        assert (score.logprobs - wanted).abs().max() < 1e-4
    shown = primed(ITEMS[0], (1, 2), "oracle", 2)
    assert shown.context == (1, 2, 1, 2, *ITEMS[0].context)
    assert primed(ITEMS[0], (1, 2), "off", 2) == ITEMS[0]


@pytest.mark.parametrize("kind", block_kinds())
@pytest.mark.parametrize("whole", [True, False])
def test_carried_state_is_that_of_one_long_text(
    kind: str, whole: bool, small_context: EvalContext
) -> None:
    model = small(kind)
    memory = MemoryConfig(carry=True)
    judge = scorer(model, small_context, "context", memory=memory, whole=whole)
    scores = dict(zip(ITEMS, judge.score(ITEMS), strict=True))
    read: tuple[int, ...] = ()
    for context in dict.fromkeys(item.context for item in ITEMS):
        mine = [item for item in ITEMS if item.context == context]
        for item in mine:
            text = read + context + item.continuation
            wanted = likelihood(model, text, len(read) + len(context))
            assert (scores[item].logprobs - wanted).abs().max() < 1e-3
        read += context + (mine[0].continuation if whole else ())
    fresh = scorer(model, small_context, "off", memory=memory).score(ITEMS)
    for item, score in zip(ITEMS, fresh, strict=True):
        text = item.context + item.continuation
        wanted = likelihood(model, text, len(item.context), write=False)
        assert (score.logprobs - wanted).abs().max() < 1e-4


def test_only_named_memories_write(small_context: EvalContext) -> None:
    model = small("hope_hybrid")
    for memory, knobs in (
        (MemoryConfig(paths=("titan",)), Knobs(paths=("titan",))),
        (MemoryConfig(paths=("level0", "level1"), layers=(-1,)), None),
        (MemoryConfig(layers=(0,)), Knobs(layers=(0,))),
    ):
        knobs = knobs or Knobs(paths=("level0", "level1"), layers=(1,))
        scores = scorer(model, small_context, "context", memory=memory).score(ITEMS)
        for item, score in zip(ITEMS, scores, strict=True):
            text = item.context + item.continuation
            wanted = likelihood(model, text, len(item.context), knobs=knobs)
            assert (score.logprobs - wanted).abs().max() < 1e-4


def test_weak_signals_write_into_no_level(small_context: EvalContext) -> None:
    model = small("hope_hybrid")
    before = model.config
    text = tuple(tokens(1, 40, 2)[0].tolist())
    rates = {}
    for threshold in (0.0, 0.4, 1e9):
        memory = MemoryConfig(surprise=threshold)
        found = measure_writes(model, small_context, memory, text)
        rates[threshold] = found.open_rate
        if threshold == 1e9:
            score = scorer(model, small_context, "context", memory=memory).score(ITEMS[:1])[0]
            item = ITEMS[0]
            whole = item.context + item.continuation
            wanted = likelihood(model, whole, len(item.context), knobs=Knobs(paths=("titan",)))
            assert (score.logprobs - wanted).abs().max() < 1e-4
    assert rates[0.0] == 1
    assert 0 < (rates[0.4] or 0) < 1
    assert rates[1e9] == 0
    assert model.config is before


@pytest.mark.parametrize("kind", block_kinds())
def test_what_was_written_is_measured(kind: str, small_context: EvalContext) -> None:
    model, text = small(kind), tuple(tokens(1, 41, 5)[0].tolist())
    found = measure_writes(model, small_context, MemoryConfig(), text)
    ids = torch.tensor([text])
    with torch.no_grad():
        state = model(ids).state
        fresh = model.init_state(1, position=41)
        pairs = (ids[:, :-1], ids[:, 1:])
        before = float(model.nll(*pairs, fresh, write=False)[0].mean())
        blocks = tuple(
            block._replace(
                mixers=tuple(
                    empty if type(held).__name__ == "AttentionState" else held
                    for held, empty in zip(block.mixers, other.mixers, strict=True)
                )
            )
            for block, other in zip(state.blocks, fresh.blocks, strict=True)
        )
        held = fresh._replace(blocks=blocks)
        after = float(model.nll(*pairs, held, write=False)[0].mean())
    assert found.before == pytest.approx(before, abs=1e-5)
    if kind not in ("titan_mag", "titan_mac"):  # attention inside a memory's State
        assert found.after == pytest.approx(after, abs=1e-4)
    records = {(r["path"], r["layer"]): r for r in found.memories}
    assert {path for path, _ in records} == set(model.memory_paths())
    assert len(records) == 2 * len(model.memory_paths())
    expected = {"level0": 40 // 4, "level1": 40 // 8, "level2": 40 // 16}
    expected |= {"selfmod": 41 // 4, "titan": 41 // 4, "gated_delta": 41}
    expected |= {"lstm": 41, "gru": 41, "quadratic_rnn": 41}
    for (path, _), record in records.items():
        assert record["writes"] == expected[path]
        assert record["added"] > 0
    if kind == "transformer":
        assert found.after == found.before
    frozen = measure_writes(model, small_context, MemoryConfig(layers=(1,)), text)
    assert {r["layer"] for r in frozen.memories} <= {1}


def test_rows_and_file_say_what_was_written(small_context: EvalContext) -> None:
    model, texts = small("hope_attention"), [tuple(tokens(1, 30, n)[0].tolist()) for n in range(4)]
    memory = MemoryConfig(samples=3, paths=("level0",))
    rows = memory_rows("needle", "a/b", model, small_context, "context", memory, texts * 2)
    names = {row.metric for row in rows}
    assert names == {
        "memory/writes/level0",
        "memory/added/level0",
        "memory/loss_before",
        "memory/loss_after",
    }
    assert all(row.n == 3 and row.memorize == "context" and row.seconds for row in rows)
    data = json.loads((small_context.output / "memory_a_b_context.json").read_text())
    assert len(data["texts"]) == 3
    assert data["policy"]["paths"] == ["level0"]
    assert memory_rows("needle", "x", model, small_context, "off", memory, texts) == []
    none = replace(memory, samples=0)
    assert memory_rows("needle", "x", model, small_context, "context", none, texts) == []


def test_what_does_not_exist_is_refused(small_context: EvalContext) -> None:
    model = small("hope_hybrid")
    for memory, said in (
        (MemoryConfig(paths=("cms_fast",)), "titan, level0, level1, level2"),
        (MemoryConfig(layers=(2,)), "0 to 1"),
        (MemoryConfig(layers=(-3,)), "0 to 1"),
    ):
        with pytest.raises(ConfigError, match=said):
            scorer(model, small_context, "context", memory=memory).score(ITEMS)
    judge = scorer(small("titan_lmm"), small_context, "context", memory=MemoryConfig(surprise=0.1))
    with pytest.raises(ConfigError, match="no label-driven levels"):
        judge.score(ITEMS)
    for wrong in ({"steps": 0}, {"samples": -1}, {"surprise": -1.0}, {"paths": ("a", "a")}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            MemoryConfig(**wrong)
    with pytest.raises(ConfigError, match=r"memory\.steps"):
        PerplexityConfig(memory=MemoryConfig(steps=2))
    assert PerplexityConfig(memorize=("oracle",), memory=MemoryConfig(steps=2)).memory.steps == 2
    assert NeedleConfig(memory=MemoryConfig(steps=2)).memory.steps == 2


def test_a_policy_is_said_in_words() -> None:
    assert MemoryConfig().policy("sample") == "State fresh per sample"
    memory = MemoryConfig(steps=2, paths=("titan",), layers=(-1,), surprise=0.5, carry=True)
    said = memory.policy("sample")
    assert said == "State carried on; read 2 times; writes: titan; layers -1; surprise 0.5"
