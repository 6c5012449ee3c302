"""Sliding-window attention against one query at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nl.ops.attention import causal_attention, window_attention, window_attention_reference

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
