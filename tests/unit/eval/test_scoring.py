"""Batched scoring equals one whole forward per item; padding, forks and segments change nothing."""

from __future__ import annotations

import random
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from nl.eval.context import EvalContext
from nl.eval.scoring import Item, Score, primed, scorer
from nl.models.language import LanguageConfig
from nl.nn.attention import AttentionConfig
from nl.nn.cms_config import CMSConfig


def naive(model: torch.nn.Module, item: Item, write: bool) -> Score:
    """One forward over context and continuation, batch of one, no State."""
    tokens = torch.tensor([item.context + item.continuation])
    with torch.no_grad():
        logits = model(tokens[:, :-1], write=write).pred[0]
    first = len(item.context) - 1
    wanted = tokens[0, first + 1 :]
    found = logits[first:].log_softmax(-1)
    greedy = bool((found.argmax(-1) == wanted).all())
    return Score(found.gather(1, wanted[:, None])[:, 0].float(), greedy)


def make_items(rng: random.Random) -> list[Item]:
    """Ragged contexts; some shared by several continuations, of one token and more."""
    items = []
    for _ in range(6):
        context = tuple(rng.randrange(128) for _ in range(rng.randrange(1, 30)))
        for _ in range(rng.choice((1, 1, 2, 4))):
            size = rng.choice((1, 1, 2, 5))
            items.append(Item(context, tuple(rng.randrange(128) for _ in range(size))))
    rng.shuffle(items)
    return items


@pytest.mark.parametrize("memorize", ["off", "context"])
@pytest.mark.parametrize(("batch_size", "segment"), [(1, 512), (4, 512), (64, 5), (3, 1)])
def test_equals_naive(
    fakes: ModuleType, context: EvalContext, memorize: str, batch_size: int, segment: int
) -> None:
    model = fakes.RecurrentModel()
    items = make_items(random.Random(0))
    context = replace(context, batch_size=batch_size, segment=segment)
    scores = scorer(model, context, memorize).score(items)
    for item, score in zip(items, scores, strict=True):
        wanted = naive(model, item, write=memorize == "context")
        torch.testing.assert_close(score.logprobs, wanted.logprobs, rtol=0, atol=1e-6)
        assert score.greedy == wanted.greedy


def test_texts_do_not_see_each_other_in_a_memory_that_rows_share(context: EvalContext) -> None:
    torch.manual_seed(0)
    levels = CMSConfig(periods=(4,), scope="batch", allow_short_periods=True)
    heads = AttentionConfig(heads=2)
    model = LanguageConfig(vocab_size=128, dim=8, layers=1, attention=heads, cms=levels).build()
    items = [Item(tuple(range(7 * n, 7 * n + 20 + n)), (1, 2, 3)) for n in range(4)]
    items.append(Item(items[0].context, (4, 5, 6)))
    for mode in ("off", "context"):
        judge = scorer(model, replace(context, batch_size=3), mode)
        for item, score in zip(items, judge.score(items), strict=True):
            alone = naive(model, item, write=mode == "context")
            torch.testing.assert_close(score.logprobs, alone.logprobs, rtol=0, atol=1e-5)


def test_memorisation_off_is_write_false(fakes: ModuleType, context: EvalContext) -> None:
    model = fakes.RecurrentModel()
    item = Item((5, 6, 5, 6, 5), (6, 5, 6))
    off = scorer(model, context, "off").score([item])[0]
    on = scorer(model, context, "context").score([item])[0]
    assert torch.equal(off.logprobs, naive(model, item, write=False).logprobs)
    assert on.total > off.total + 0.1  # the pair 5 6 was seen before


def test_greedy_is_what_decoding_writes(fakes: ModuleType, context: EvalContext) -> None:
    model = fakes.RecurrentModel()
    prompt, written = (3, 1, 4, 1, 5), []
    with torch.no_grad():
        for _ in range(6):
            read = torch.tensor([[*prompt, *written]])
            written.append(int(model(read, write=False).pred[0, -1].argmax()))
    wrong = (*written[:-1], (written[-1] + 1) % 128)
    right, other = scorer(model, context, "off").score(
        [Item(prompt, tuple(written)), Item(prompt, wrong)]
    )
    assert right.greedy
    assert not other.greedy


def test_shared_context_is_read_once(fakes: ModuleType, context: EvalContext) -> None:
    model = fakes.RecurrentModel()
    prompt = tuple(range(40))
    one_token = [Item(prompt, (token,)) for token in range(8)]
    wide = replace(context, batch_size=16)
    scorer(model, wide, "off").score(one_token)
    assert model.rows_read == 40
    model.rows_read = 0
    scorer(model, wide, "off").score([Item(prompt, (token, 1)) for token in range(8)])
    assert model.rows_read == 39 + 8 * 2


def test_order_progress_and_refusal(fakes: ModuleType, context: EvalContext) -> None:
    model = fakes.RecurrentModel().train()
    items = make_items(random.Random(1))
    counts: list[int] = []
    scorer(model, context, "off", counts.append).score(items)
    assert sum(counts) == len(items)
    assert model.training
    assert scorer(model, context, "off").score([]) == []
    with pytest.raises(ValueError, match="item 0"):
        scorer(model, context, "off").score([Item((), (1,))])


def test_oracle_reads_the_answer_first(fakes: ModuleType, context: EvalContext) -> None:
    item = Item((1, 2), (9,))
    assert primed(item, (7, 8), "context") == item
    assert primed(item, (7, 8), "oracle") == Item((7, 8, 1, 2), (9,))
    model = fakes.RecurrentModel(rate=5.0)
    judge = scorer(model, context, "oracle")
    shown, hidden = judge.score([primed(item, (1, 2, 9), "oracle"), item])
    assert shown.total > hidden.total


@pytest.mark.parametrize("block", ["transformer", "hope_attention", "hope_selfmod"])
@pytest.mark.parametrize("memorize", ["off", "context"])
def test_real_models_score_as_in_one_forward(
    context: EvalContext, block: str, memorize: str
) -> None:
    import nl.assembly  # noqa: F401 - registers the blocks
    from nl.config import structure
    from nl.config.groups import ModelConfig

    data = {
        "kind": "language",
        "vocab_size": 128,
        "dim": 16,
        "layers": 2,
        "block": block,
        "attention": {"heads": 2},
        "selfmod": {"head_size": 8},
        "cms": {"periods": [16, 64]},
    }
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = structure(ModelConfig, data, "model").build().double()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    rng = random.Random(2)
    long = tuple(rng.randrange(128) for _ in range(150))
    items = [*make_items(rng), *(Item(long, (token, token + 1)) for token in range(4))]
    scores = scorer(model, replace(context, batch_size=5, segment=37), memorize).score(items)
    for item, score in zip(items, scores, strict=True):
        wanted = naive(model, item, write=memorize == "context")
        torch.testing.assert_close(score.logprobs, wanted.logprobs, rtol=0, atol=1e-5)
