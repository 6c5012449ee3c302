"""Sliding-window attention against one query at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nl.ops.attention import (
    causal_attention,
    causal_attention_reference,
    window_attention,
    window_attention_reference,
)

B, H, K = 2, 3, 4


def draw(new: int, past: int, persistent: int) -> list[Tensor]:
    shapes = [(B, H, new, K), *[(B, H, past + new, K)] * 2, *[(H, persistent, K)] * 2]
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("persistent", [0, 3])
@pytest.mark.parametrize("window", [1, 2, 5, 16])
@pytest.mark.parametrize(("new", "past"), [(1, 0), (1, 9), (5, 4), (6, 0), (13, 2), (23, 30)])
def test_equals_one_query_at_a_time(new: int, past: int, window: int, persistent: int) -> None:
    results = []
    for attend in (window_attention, window_attention_reference):
        torch.manual_seed(0)
        q, k, v, pk, pv = leaves = [t.requires_grad_() for t in draw(new, past, persistent)]
        y = attend(q, k, v, window, (pk, pv) if persistent else None)
        weight = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y)
        grads = torch.autograd.grad((y * weight).sum(), leaves[: 5 if persistent else 3])
        results.append([y, *grads])
    for value, wanted in zip(*results, strict=True):
        assert (value - wanted).abs().max() < 1e-12


def test_a_wide_window_is_causal_attention() -> None:
    q, k, v = draw(9, 5, 0)[:3]
    assert torch.allclose(window_attention(q, k, v, 14), causal_attention(q, k, v))
    assert not torch.allclose(window_attention(q, k, v, 13), causal_attention(q, k, v))


def test_single_and_half_precision() -> None:
    leaves = draw(40, 3, 2)
    q, k, v, pk, pv = leaves
    wanted = window_attention_reference(q, k, v, 8, (pk, pv))
    for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        q, k, v, pk, pv = (t.to(dtype) for t in leaves)
        assert (window_attention(q, k, v, 8, (pk, pv)) - wanted).abs().max() < near


@pytest.mark.parametrize("past", [0, 4, 9])
@pytest.mark.parametrize("new", [1, 3, 11])
def test_hidden_keys_are_seen_by_nobody(past: int, new: int) -> None:
    torch.manual_seed(past + new)
    q = torch.randn(3, 2, new, 4, dtype=torch.float64)
    k, v = torch.randn(2, 3, 2, past + new, 4, dtype=torch.float64)
    hidden = torch.tensor([0, min(2, past), past])
    other = (k.clone(), v.clone())
    for row, count in enumerate(hidden.tolist()):
        for changed in other:
            changed[row, :, :count] += 100.0
    always = (torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64))
    pairs = [
        (causal_attention(q, *kv, hidden), causal_attention_reference(q, *kv, hidden))
        for kv in ((k, v), other)
    ] + [
        (
            window_attention(q, *kv, 5, front, hidden),
            window_attention_reference(q, *kv, 5, front, hidden),
        )
        for front in (None, always)
        for kv in ((k, v), other)
    ]
    for fast, naive in pairs:
        assert (fast - naive).abs().max() < 1e-12
    for first, second in zip(pairs[::2], pairs[1::2], strict=True):
        assert torch.equal(first[1], second[1])
    unhidden = causal_attention(q, k, v)
    assert torch.allclose(unhidden[0], pairs[0][0][0], atol=1e-12)
    assert past == 0 or not torch.allclose(unhidden[2], pairs[0][0][2])


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("new", "past"), [(1, 0), (1, 9), (5, 0), (5, 4), (23, 30)])
def test_keys_that_query_heads_share(new: int, past: int, groups: int) -> None:
    """Outputs and gradients equal those of one query at a time, for keys that stay shared."""
    results = []
    for attend, window in (
        (causal_attention, ()),
        (causal_attention_reference, ()),
        (window_attention, (5,)),
        (window_attention_reference, (5,)),
    ):
        torch.manual_seed(0)
        q = torch.randn(B, 4, new, K, dtype=torch.float64, requires_grad=True)
        k, v = (
            torch.randn(B, groups, past + new, K, dtype=torch.float64, requires_grad=True)
            for _ in range(2)
        )
        y = attend(q, k, v, *window)  # type: ignore[operator]
        weight = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y)
        results.append([y, *torch.autograd.grad((y * weight).sum(), [q, k, v])])
    for fast, naive in (results[:2], results[2:]):
        for value, wanted in zip(fast, naive, strict=True):
            assert value.shape == wanted.shape
            assert (value - wanted).abs().max() < 1e-12
