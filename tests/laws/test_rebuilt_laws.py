"""model.cms.recompute: weights made again in the backward pass are the kept ones, bit for bit."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch

from nl.bench.kept import kept_bytes
from nl.bench.live import LiveBytes
from nl.core.state import tensors
from nl.dist.recompute import recompute_segments, recompute_units
from nl.nn import rebuilt
from tests.laws.conftest import small, tokens

WIDE: dict[str, Any] = {"dim": 48, "cms": {"hidden": 48}}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "unclipped": {"cms": {"clip": 0}},
    "never forgets": {"cms": {"retention": 1}},
    "layer": {"cms": {"norm": "layer", "bias": True, "activation": "swiglu"}},
    "independent": {"cms": {"arrangement": "independent"}},
    "surprise": {"cms": {"surprise": {"gate": "soft", "threshold": 0.01}}},
    "block": {"cms": {"signal": "block"}},
    "experts": {
        "cms": {"hidden": None},
        "experts": {"form": "low_rank", "count": 4, "rank": 9, "k": 2, "k_max": 4, "shared": 1},
    },
}
KEPT: dict[str, dict[str, Any]] = {
    "nested": {"arrangement": "nested"},
    "through": {"write_gradient": "through"},
    "shared": {"scope": "batch"},
    "momentum": {"inner": {"kind": "momentum"}},
    "delta": {"inner": {"kind": "delta"}},
    "kept": {"recompute": False},
}
"""Writes that are more than a sum over their tokens, and the option itself."""


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every level is worth it, and a span is short."""
    monkeypatch.setattr(rebuilt, "WORTH", 0)
    monkeypatch.setattr(rebuilt, "SPAN", 3)


def pair(**changes: Any) -> tuple[Any, Any]:
    """The same model making its weights again and keeping them."""
    cms = changes.pop("cms", {})
    kind = changes.pop("kind", "hope_attention")
    models = [small(kind, cms={**cms, "recompute": on}, **changes) for on in (True, False)]
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)
    return models[0], models[1]


def rebuilds(model: Any) -> list[bool]:
    """Of every level."""
    return [on for block in model.blocks for on in block.levels.rebuilds]


def trained(model: Any, starts: Any = None, calls: int = 2) -> list[torch.Tensor]:
    """Losses, gradients and the State of a stream of calls."""
    state, found = None, []
    for call in range(calls):
        x, labels = tokens(3, 41, call), tokens(3, 41, call + 7)
        labels[1, 5:30] = -100  # a row without signal for some periods
        nll, out = model.nll(x, labels, state=state, starts=starts)
        state = out.state
        found.append(nll)
    (sum(nll.square().sum() for nll in found)).backward()  # type: ignore[union-attr]
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(grads) > 10
    return [*found, *grads, *tensors(state)]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    """Bit for bit."""
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b), (a - b).abs().max()


@pytest.mark.parametrize("option", OPTIONS)
def test_gradients_are_those_of_kept_weights(always: None, option: str) -> None:
    again, kept = pair(**copy.deepcopy(OPTIONS[option]))
    assert all(rebuilds(again))
    assert not any(rebuilds(kept))
    equal(trained(again), trained(kept))


@pytest.mark.parametrize("kind", ["hope_selfmod", "hope_hybrid", ["hope_attention", "transformer"]])
def test_every_block_with_levels(always: None, kind: Any) -> None:
    again, kept = pair(kind=kind)
    equal(trained(again), trained(kept))


def test_documents_begin_inside_a_span(always: None) -> None:
    again, kept = pair()
    starts = ([6, 17], [], [33])
    equal(trained(again, starts), trained(kept, starts))


@pytest.mark.parametrize("how", ["segments", "units"])
def test_beside_what_else_is_read_again(
    always: None, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = []
    for model in pair():
        on = any(rebuilds(model))
        with caplog.at_level("WARNING", "nl"):
            recompute_segments(model, 12) if how == "segments" else recompute_units(model)
        assert ("train.recompute_every=512 keeps" in caplog.text) == (how == "units")
        assert any(rebuilds(model)) == (on and how == "segments")
        found.append(trained(model))
    equal(*found)


def test_half_precision(always: None) -> None:
    found = []
    for model in pair():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(trained(model))
    equal(*found)


def test_a_second_backward_pass_and_two_futures_of_one_state(always: None) -> None:
    found = []
    for model in pair():
        first, out = model.nll(tokens(2, 30), tokens(2, 30, 1))
        futures = [model.nll(tokens(2, 22, s), tokens(2, 22, 9), state=out.state) for s in (2, 3)]
        loss = first.sum() + sum(nll.square().sum() for nll, _ in futures)
        parameters = list(model.parameters())
        for keep in (True, False):
            grads = torch.autograd.grad(loss, parameters, retain_graph=keep, allow_unused=True)
            found.append([g for g in grads if g is not None])
    for other in found[1:]:
        equal(found[0], other)


@pytest.mark.parametrize("option", KEPT)
def test_other_writes_are_kept(always: None, option: str) -> None:
    assert not any(rebuilds(small("hope_attention", cms=KEPT[option])))


def test_only_large_writes_are_made_again() -> None:
    assert rebuilds(small("hope_attention", **WIDE)) == [True, True, False] * 2
    assert not any(rebuilds(small("hope_attention")))


def long(model: Any) -> torch.Tensor:
    """The loss of one row of many writes."""
    x = tokens(2, 129)
    nll: torch.Tensor = model.nll(x[:, :-1], x[:, 1:], keep=False)[0]
    return nll.sum()


def test_less_is_kept_and_less_is_there_going_back() -> None:
    counted, peaks = [], []
    for model in pair(**WIDE):
        counted.append(kept_bytes(lambda model=model: long(model), model.parameters()))  # type: ignore[misc]
        with LiveBytes() as live:
            long(model).backward()
        peaks.append(live.peak)
    assert counted[0] < 0.7 * counted[1]
    assert peaks[0] < 0.8 * peaks[1]


def test_nothing_outlives_the_call_and_nothing_is_noted_without_gradients() -> None:
    model = small("hope_attention", **WIDE)
    with torch.no_grad():
        state = model.nll(tokens(2, 40), tokens(2, 40, 1))[1].state
    gc.collect()
    assert not len(rebuilt._writes)
    nll, out = model.nll(tokens(2, 41), tokens(2, 41, 1), state=state)
    nll.sum().backward()
    del nll
    gc.collect()
    assert out.state.blocks[0].levels[0].fast_up is not None
    assert not len(rebuilt._writes)
    assert not len(rebuilt._sums)
