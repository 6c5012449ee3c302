"""The signal ``block`` against finite differences of a tile's loss; where it may not be used."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nl.config import ConfigError
from nl.core.state import flatten, num_bytes, reset_rows, select_rows
from nl.models.block_signal import PendingTile
from nl.nn.cms import ContinuumMemory
from tests.laws.conftest import VOCAB, small, tokens
from tests.laws.test_block_laws import EXACT, check_switched_writing, largest_gap
from tests.laws.test_document_laws import gap, read_in_pieces

TILE = 4


@pytest.fixture(autouse=True)
def _float64() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def block_model(kind: str = "hope_attention", **cms: Any) -> Any:
    return small(kind, cms={"signal": "block", **cms})


def signals_of(model: Any, monkeypatch: pytest.MonkeyPatch, **call: Any) -> list[torch.Tensor]:
    """What the levels of each block are handed in one call, last block last."""
    seen: list[torch.Tensor] = []
    absorb = ContinuumMemory.absorb

    def spy(self: Any, state: Any, trace: Any, signal: Any, **kw: Any) -> Any:
        seen.append(signal)
        return absorb(self, state, trace, signal, **kw)

    with monkeypatch.context() as patch:
        patch.setattr(ContinuumMemory, "absorb", spy)
        model.nll(**call)
    return seen


@pytest.mark.parametrize("kind", ["hope_attention", "hope_selfmod", "hope_hybrid"])
@pytest.mark.parametrize("live", [True, False])
def test_is_the_derivative_of_the_tiles_loss(
    kind: str, live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, labels = block_model(kind), tokens(2, TILE), tokens(2, TILE, 1)
    labels[0, 1] = -100
    with torch.set_grad_enabled(live):
        found = signals_of(model, monkeypatch, inputs=x, targets=labels)
    assert len(found) == 2
    for block, signal in zip(model.blocks, found, strict=True):
        for row, t, d in ((0, 0, 3), (0, 1, 5), (1, 2, 0), (1, 3, 11)):
            losses = []
            for size in (1e-5, -1e-5):

                def nudge(_m: Any, _a: Any, out: Any, by: Any = (row, t, d, size)) -> Any:
                    moved = out[0].clone()
                    moved[by[:3]] += by[3]
                    return moved, *out[1:]

                hook = block.register_forward_hook(nudge)
                with torch.no_grad():
                    losses.append(float(model.nll(x, labels, keep=False)[0].sum()))
                hook.remove()
            slope = (losses[0] - losses[1]) / 2e-5
            assert float(signal[row, t, d]) == pytest.approx(slope, abs=1e-7)
    assert found[0][0, 1].any()  # unscored, but later tokens look at it


@pytest.mark.parametrize("kind", ["hope_attention", "hope_selfmod", "hope_hybrid"])
@pytest.mark.parametrize("live", [True, False])
def test_under_bf16_it_is_taken_as_backward_passes_are(
    kind: str, live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, labels = block_model(kind).float(), tokens(2, 2 * TILE), tokens(2, 2 * TILE, 1)
    found = []
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half), torch.set_grad_enabled(live):
            found.append(signals_of(model, monkeypatch, inputs=x, targets=labels))
    for wanted, signal in zip(*found, strict=True):
        assert (signal - wanted).norm() < 0.1 * wanted.norm()


@pytest.mark.parametrize("kind", ["hope_selfmod", "hope_hybrid"])
def test_the_graph_of_a_step_and_a_second_read_agree(kind: str) -> None:
    model, x, labels = block_model(kind), tokens(2, 22), tokens(2, 22, 1)

    def run(cuts: list[int]) -> tuple[Any, Any, dict[str, torch.Tensor]]:
        model.zero_grad()
        state, at, parts = None, 0, []
        for n in cuts:
            nll, out = model.nll(x[:, at : at + n], labels[:, at : at + n], state)
            state, at = out.state, at + n
            parts.append(nll)
        nll = torch.cat(parts, 1)
        nll.sum().backward()
        return nll, state, {n: p.grad.clone() for n, p in model.named_parameters()}

    nll, state, grads = run([22])
    for cuts in ([3] * 7 + [1], [6, 16]):
        other, end, found = run(cuts)
        assert (other - nll).abs().max() < EXACT
        assert largest_gap(end, state) < EXACT
        assert all((found[n] - g).abs().max() < EXACT for n, g in grads.items())


@pytest.mark.parametrize("labelled", [True, False])
def test_the_cut_does_not_matter_where_writing_is_switched(labelled: bool) -> None:
    model, x, labels = block_model(), tokens(2, 41), tokens(2, 41, 1)
    check_switched_writing(model, x, labels, labelled)


STARTS: tuple[list[int], ...] = ([], [7], [3, 14], [0, 16, 17])


@pytest.mark.parametrize("kind", ["hope_attention", "hope_selfmod", "hope_hybrid"])
def test_documents_inside_a_tile_stay_apart(kind: str) -> None:
    model, x, labels = block_model(kind), tokens(4, 31), tokens(4, 31, 1)
    other = x.clone()
    for row, offsets in enumerate(STARTS):
        other[row, : max(offsets, default=0)] += 1
        other %= VOCAB
    for cuts in ([31], [1] * 31, [7, 7, 17]):
        pred, state = read_in_pieces(model, x, STARTS, cuts)
        changed, after = read_in_pieces(model, other, STARTS, cuts)
        for row, offsets in enumerate(STARTS):
            last = max(offsets, default=0)
            fresh = model.init_state(1, position=last)
            alone = model(x[row : row + 1, last:], fresh)
            assert (pred[row, last:] - alone.pred[0]).abs().max() < EXACT
            assert torch.equal(pred[row, last:], changed[row, last:])
            held, now = (flatten(select_rows(s, [row]))[0] for s in (state, after))
            assert all(torch.equal(held[key], now[key]) for key in held)
            levels = select_rows(state.blocks[0].levels, [row])
            assert gap(levels, alone.state.blocks[0].levels) < EXACT
    nll, _ = model.nll(x, labels, starts=STARTS)
    for row, offsets in enumerate(STARTS):
        last = max(offsets, default=0)
        fresh = model.init_state(1, position=last)
        alone, _ = model.nll(x[row : row + 1, last:], labels[row : row + 1, last:], fresh)
        assert (nll[row, last:] - alone[0]).abs().max() < EXACT


def test_frozen_parameters_do_not_take_the_signal_away() -> None:
    model, x, labels = block_model(), tokens(2, 12), tokens(2, 12, 1)
    expected = model.nll(x, labels)[0]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "norm.weight")
    assert torch.allclose(model.nll(x, labels)[0], expected, rtol=0, atol=1e-12)


def test_what_waits_is_a_value() -> None:
    model, x = block_model(), tokens(2, 6)
    state = model(x).state
    assert isinstance(state.pending, PendingTile)
    assert (state.pending.begin, state.pending.waits) == (4, 1)
    assert state.pending.labels.tolist() == [[int(row[5]), -100] for row in x]
    assert num_bytes(state.pending) > 0
    first, second = model(x, state), model(x, state)
    assert torch.equal(first.pred, second.pred)


def test_gradients_of_it_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"cms\.signal: block; .* set model\.cms\.write_gradient"):
        block_model(write_gradient="through")


def test_rows_of_a_waiting_tile_are_reset_by_the_model() -> None:
    model = block_model()
    state = model(tokens(2, TILE - 1)).state
    assert isinstance(state.pending, PendingTile)
    with pytest.raises(ValueError, match=r"signal=block: .* use model\.reset_rows"):
        reset_rows(state, model.init_state(1, position=state.position), [1])
    fresh = model.reset_rows(state, [1])
    assert fresh.pending.labels[1].tolist() == [-100] * (TILE - 1)
