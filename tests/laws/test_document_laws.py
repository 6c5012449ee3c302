"""The law of documents, over every registered block kind: nothing crosses a boundary."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from nl.config import ConfigError
from nl.core import state as states
from nl.core.batch import IGNORE
from nl.models.language_state import PendingLabel
from nl.nn.attention import AttentionState
from tests.laws.conftest import VOCAB, tokens
from tests.laws.test_block_laws import Recorder

EXACT = 1e-9
LENGTH = 31
STARTS: tuple[list[int], ...] = ([], [7], [3, 14], [0, 16, 17])
PACKINGS = ((STARTS, 31), (([9], [9], [9], [9]), 31), (([1], [30], [4, 8, 20], []), 31))
CUTS = ([1] * 31, [7, 7, 17], [3, 20, 8], [16, 15])
Build = Callable[..., Any]


def local(starts: Any, at: int, length: int) -> list[list[int]]:
    """The offsets that fall into one segment of a call."""
    return [[s - at for s in row if at <= s < at + length] for row in starts]


def read_in_pieces(
    model: Any, x: torch.Tensor, starts: Any, cuts: list[int], **more: Any
) -> tuple[torch.Tensor, Any]:
    """Logits and final State of packed documents read segment by segment."""
    state, out, at = None, [], 0
    for n in cuts:
        part = slice(at, at + n)
        read = model(x[:, part], state, starts=local(starts, at, n), **more)
        state, at = read.state, at + n
        out.append(read.pred)
    return torch.cat(out, 1), state


def gap(a: Any, b: Any) -> float:
    """Largest difference of two States of one row; None is zero, hidden keys are no part of it."""
    if isinstance(a, AttentionState):
        return max(gap(x, y) for x, y in zip(visible(a), visible(b), strict=True))
    if isinstance(a, PendingLabel) and a.ended is not None and bool(a.ended):
        assert not any(tensor.any() for tensor in states.tensors(a[:2]))
        return gap(None, b)
    if a is None or b is None:
        found = states.tensors((a, b))
        return max(
            (float(t.detach().double().abs().max()) for t in found if t.numel()), default=0.0
        )
    if isinstance(a, torch.Tensor):
        return float((a - b).detach().abs().max()) if a.numel() else 0.0
    if isinstance(a, tuple):
        return max((gap(x, y) for x, y in zip(a, b, strict=True)), default=0.0)
    return 0.0


def visible(state: AttentionState) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of a State of one row that its next token may see."""
    first = 0 if state.hidden is None else int(state.hidden)
    assert not state.keys[:, :, :first].any()
    assert not state.values[:, :, :first].any()
    return state.keys[:, :, first:], state.values[:, :, first:]


def bounds(offsets: list[int], length: int) -> list[tuple[int, int]]:
    """Begin and end of every document of a row."""
    cuts = sorted({0, *offsets, length})
    return list(itertools.pairwise(cuts))


@pytest.mark.parametrize("packing", range(len(PACKINGS)))
@pytest.mark.parametrize("write", [True, False])
def test_a_document_is_read_as_from_a_fresh_state(
    kind: str, build: Build, float64: None, packing: int, write: bool
) -> None:
    starts, length = PACKINGS[packing]
    model, x = build(kind, packing), tokens(4, length, packing)
    packed = model(x, starts=starts, write=write)
    for row, offsets in enumerate(starts):
        for begin, end in bounds(offsets, length):
            fresh = model.init_state(1, position=begin)
            alone = model(x[row : row + 1, begin:end], fresh, write=write)
            assert (packed.pred[row, begin:end] - alone.pred[0]).abs().max() < EXACT
            assert alone.state.position == end
        assert gap(states.select_rows(packed.state, [row]), alone.state) < EXACT


@pytest.mark.parametrize("packing", range(len(PACKINGS)))
def test_documents_are_independent_of_the_cut(
    kind: str, build: Build, float64: None, packing: int
) -> None:
    starts, length = PACKINGS[packing]
    model, x = build(kind, packing), tokens(4, length, packing)
    for write in (True, False)[: 1 + (packing == 0)]:
        whole = model(x, starts=starts, write=write)
        for cuts in CUTS:
            pred, state = read_in_pieces(model, x, starts, cuts, write=write)
            assert (pred - whole.pred).abs().max() < EXACT
            assert state.position == length
            for row in range(4):
                pair = (states.select_rows(s, [row]) for s in (state, whole.state))
                assert gap(*pair) < EXACT


def test_nothing_of_a_document_reaches_the_next(kind: str, build: Build, float64: None) -> None:
    model, x = build(kind), tokens(4, LENGTH)
    other = x.clone()
    for row, offsets in enumerate(STARTS):
        last = max(offsets, default=0)
        other[row, :last] = (other[row, :last] + 1) % VOCAB
    for cuts in ([LENGTH], [7, 7, 17], [1] * LENGTH):
        pred, state = read_in_pieces(model, x, STARTS, cuts)
        changed, after = read_in_pieces(model, other, STARTS, cuts)
        for row, offsets in enumerate(STARTS):
            last = max(offsets, default=0)
            assert torch.equal(pred[row, last:], changed[row, last:])
            assert not last or not torch.equal(pred[row, :last], changed[row, :last])
            held, now = (states.flatten(states.select_rows(s, [row]))[0] for s in (state, after))
            assert all(torch.equal(held[key], now[key]) for key in held)


def test_no_gradient_crosses_a_boundary(kind: str, build: Build, float64: None) -> None:
    check_gradients(build(kind))


@pytest.mark.parametrize("option", [{}, {"signal": "self"}])
@pytest.mark.parametrize("arrangement", ["sequential", "nested"])
def test_no_gradient_crosses_through_a_write(
    build: Build, float64: None, option: dict[str, Any], arrangement: str
) -> None:
    through = {"write_gradient": "through"}
    model = build("hope_attention", cms=option | through | {"arrangement": arrangement})
    check_gradients(model)
    x = tokens(4, LENGTH)
    for cuts in ([LENGTH], [1] * LENGTH):
        packed, state = read_in_pieces(model, x, STARTS, cuts)
        for row, offsets in enumerate(STARTS):
            begin = max(offsets, default=0)
            alone = model(x[row : row + 1, begin:], model.init_state(1, position=begin))
            assert (packed[row, begin:] - alone.pred[0]).abs().max() < EXACT
            assert gap(states.select_rows(state, [row]), alone.state) < EXACT


def check_gradients(model: Any) -> None:
    """What is read after the last boundary of a row has no gradient in what came before it."""
    x = tokens(4, LENGTH)
    seen: list[torch.Tensor] = []
    model.embed.register_forward_hook(lambda m, i, out: seen.append(out))
    labels = tokens(4, LENGTH, 1)
    for run in ("forward", "nll"):
        seen.clear()
        if run == "forward":
            loss = model(x, starts=STARTS).pred
        else:
            loss = model.nll(x, labels, starts=STARTS)[0]
        picked = sum(loss[row, max(s, default=0) :].sum() for row, s in enumerate(STARTS))
        grads = torch.autograd.grad(picked, seen, allow_unused=True)
        parts = [torch.zeros_like(s) if g is None else g for g, s in zip(grads, seen, strict=True)]
        grad = torch.cat(parts, 1)
        assert grad.shape[1] == LENGTH
        for row, offsets in enumerate(STARTS):
            last = max(offsets, default=0)
            assert not grad[row, :last].any()
            assert grad[row, last:].any()


def test_packed_documents_are_trained_as_separate_ones(
    kind: str, build: Build, float64: None
) -> None:
    model, x, labels = build(kind), tokens(4, LENGTH), tokens(4, LENGTH, 1)
    nll, out = model.nll(x, labels, starts=STARTS)
    nll.sum().backward()
    packed = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    for row, offsets in enumerate(STARTS):
        for begin, end in bounds(offsets, LENGTH):
            target = labels[row : row + 1, begin:end].clone()
            if end < LENGTH:
                target[:, -1] = IGNORE
                assert nll[row, end - 1] == 0
            fresh = model.init_state(1, position=begin)
            alone, own = model.nll(x[row : row + 1, begin:end], target, fresh)
            assert (nll[row, begin:end] - alone[0]).abs().max() < EXACT
            alone.sum().backward()
        assert gap(states.select_rows(out.state, [row]), own.state) < EXACT
    for name, parameter in model.named_parameters():
        assert (parameter.grad - packed[name]).abs().max() < 1e-8, name
    dropped, _ = model.nll(x, labels, starts=STARTS, keep=False)
    assert torch.equal(dropped, nll)


@pytest.mark.parametrize("gate", [{"gate": "none"}, {"gate": "soft", "quantile": 0.6}])
@pytest.mark.parametrize("arrangement", ["sequential", "nested", "independent"])
@pytest.mark.parametrize("inner", ["sgd", "momentum", "delta", "adam", "muon", "deep"])
def test_every_inner_optimizer_forgets_at_a_boundary(
    build: Build, float64: None, inner: str, gate: dict[str, Any], arrangement: str
) -> None:
    cms = {"inner": {"kind": inner}, "surprise": gate, "arrangement": arrangement}
    model, x = build("hope_attention", cms=cms), tokens(4, LENGTH)
    for cuts in ([LENGTH], [1] * LENGTH):
        packed, state = read_in_pieces(model, x, STARTS, cuts)
        for row, offsets in enumerate(STARTS):
            begin = max(offsets, default=0)
            alone = model(x[row : row + 1, begin:], model.init_state(1, position=begin))
            assert (packed[row, begin:] - alone.pred[0]).abs().max() < EXACT
            assert gap(states.select_rows(state, [row]), alone.state) < 1e-7


def test_a_reset_row_is_fresh_and_the_others_stay(kind: str, build: Build, float64: None) -> None:
    model, x = build(kind), tokens(3, 23)
    state = model(x).state
    chosen = torch.tensor([False, True, False])
    for new in (model.reset_rows(state, [1]), model.reset_rows(state, chosen)):
        row = states.select_rows(new, [1])
        assert gap(row, model.init_state(1, position=23)) == 0
        for kept in (0, 2):
            pair = (states.select_rows(s, [kept]) for s in (new, state))
            assert gap(*pair) == 0
        assert new.position == state.position
    whole = model.reset_rows(state, [0, 1, 2])
    assert gap(whole, model.init_state(3, position=23)) == 0
    assert gap(state, model(x).state) == 0


def test_boundaries_are_checked(build: Build) -> None:
    model, x = build("transformer"), tokens(2, 9)
    for starts in ([[3]], [[3], [9]], [[3], [-1]], [[4, 4], []]):
        with pytest.raises(ConfigError, match="starts"):
            model(x, starts=starts)
    state = model(x).state
    with pytest.raises(ValueError, match="rows 0 to 1"):
        model.reset_rows(state, [2])
    with pytest.raises(ValueError, match="fresh"):
        states.reset_rows((torch.ones(2, 3),), (torch.zeros(2, 4),), [0])


def test_no_scalar_is_read_at_a_boundary(kind: str, build: Build) -> None:
    model, x = build(kind), tokens(4, LENGTH)
    with Recorder() as recorded:
        model.nll(x, x, starts=STARTS)[0].sum().backward()
    syncs = {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::is_nonzero"}
    assert not recorded.names & syncs
