"""Sliding-window attention: a bounded State, persistent keys, what full attention would give."""

from __future__ import annotations

import pytest
import torch

from nl.core import state as states
from nl.nn.attention import Attention, AttentionConfig
from nl.nn.context import ReadContext
from nl.nn.window import Persistent, WindowAttention
from nl.ops.rotary import rotary_table

DIM = 12


def layer(window: int, persistent: int = 0, qk_norm: bool = True) -> WindowAttention:
    torch.manual_seed(0)
    config = AttentionConfig(heads=2, qk_norm=qk_norm)
    return WindowAttention(config, DIM, 1.0, window=window, persistent=persistent).double()


def context(position: int, length: int) -> ReadContext:
    table = rotary_table(position, length, 6, 10000.0, torch.device("cpu"), torch.float64)
    return ReadContext(position, True, True, *table)


def test_a_wide_window_is_full_attention() -> None:
    narrow, x = layer(window=9), torch.randn(2, 9, DIM, dtype=torch.float64)
    full = Attention(narrow.config, DIM, 1.0).double()
    full.load_state_dict(narrow.state_dict())
    ctx = context(0, 9)
    assert torch.allclose(narrow(x, None, ctx)[0], full(x, None, ctx)[0])
    longer = torch.cat([torch.randn(2, 1, DIM, dtype=torch.float64), x], 1)
    ctx = context(0, 10)
    y, z = narrow(longer, None, ctx)[0], full(longer, None, ctx)[0]
    assert torch.allclose(y[:, :9], z[:, :9])
    assert not torch.allclose(y[:, 9], z[:, 9])


@pytest.mark.parametrize(("window", "persistent"), [(1, 0), (1, 2), (4, 3), (7, 0)])
def test_the_state_is_bounded_and_any_cut_gives_the_same(window: int, persistent: int) -> None:
    m, x = layer(window, persistent), torch.randn(2, 40, DIM, dtype=torch.float64)
    whole, last = m(x, None, context(0, 40))
    for size in (1, 3, 17):
        state, out, at = m.init_state(2), [], 0
        for part in x.split(size, 1):
            y, state = m(part, state, context(at, part.shape[1]))
            at += part.shape[1]
            assert state.keys.shape[2] == min(at, window - 1)
            out.append(y)
        assert (torch.cat(out, 1) - whole).abs().max() < 1e-12
        assert state.hidden is None
        for value, wanted in zip(state[:2], last[:2], strict=True):
            assert torch.allclose(value, wanted, rtol=0, atol=1e-12)
    assert states.num_bytes(last) == 2 * 2 * DIM * (window - 1) * 8


def test_a_token_sees_its_window_and_no_more() -> None:
    m, x = layer(window=5, persistent=2), torch.randn(1, 30, DIM, dtype=torch.float64)
    x.requires_grad_()
    y, _ = m(x, None, context(0, 30))
    (grad,) = torch.autograd.grad(y[:, 20].sum(), x)
    seen = grad.abs().sum(-1)[0] > 0
    assert seen.nonzero().flatten().tolist() == [16, 17, 18, 19, 20]


@pytest.mark.parametrize("qk_norm", [True, False])
def test_persistent_keys_are_as_long_as_others(qk_norm: bool) -> None:
    torch.manual_seed(0)
    persistent = Persistent(AttentionConfig(heads=2, qk_norm=qk_norm), DIM, 3)
    keys, values = persistent()
    assert keys.shape == values.shape == (2, 3, 6)
    sizes = keys.square().mean(-1)
    assert torch.allclose(sizes, torch.ones_like(sizes), atol=1e-5) == qk_norm


def test_positions_seen_on_average() -> None:
    m = layer(window=4)
    for length in (1, 4, 5, 12, 200):
        exact = sum(min(t, 4) for t in range(length)) / length
        assert abs(m.attended(length) - exact) <= 0.5
