"""The recurrences against loops over tokens: outputs, states and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nl.ops.recurrent import (
    gru,
    gru_reference,
    lstm,
    lstm_reference,
    quadratic,
    quadratic_reference,
)

B, T, D, F = 3, 7, 4, 5


def draw(*shapes: tuple[int, ...]) -> list[Tensor]:
    """Float64 leaves."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(s, dtype=torch.float64, generator=generator).requires_grad_() for s in shapes
    ]


def gated(gates: int) -> list[Tensor]:
    """Inputs, two states and weights."""
    rows = gates * F
    return draw((B, T, D), (B, F), (B, F), (rows, D), (rows, F), (rows,), (rows,))


Case = tuple[Callable[..., Any], Callable[..., Any], Callable[[], list[Any]]]
CASES: dict[str, Case] = {
    "lstm": (
        lambda x, h, c, *w: lstm(x, h, c, w),
        lambda x, h, c, *w: lstm_reference(x, h, c, w),
        lambda: gated(4),
    ),
    "gru": (
        lambda x, h, c, *w: gru(x, h + c, w),
        lambda x, h, c, *w: gru_reference(x, h + c, w),
        lambda: gated(3),
    ),
    "quadratic": (quadratic, quadratic_reference, lambda: draw((B, T, F), (B, F), (F, F))),
    "multiplicative": (
        lambda *a: quadratic(*a, "multiplicative"),
        lambda *a: quadratic_reference(*a, "multiplicative"),
        lambda: draw((B, T, F), (B, F), (F, F)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_token_loop(name: str) -> None:
    fast, slow, leaves = CASES[name]
    results = []
    for operation in (fast, slow):
        given = leaves()
        found = operation(*given)
        loss = sum((t * torch.linspace(-1, 2, t.numel()).view_as(t)).sum() for t in found)
        results.append([*found, *torch.autograd.grad(loss, given)])
    for one, other in zip(*results, strict=True):
        assert (one - other).abs().max() < 1e-12 * other.abs().max().clamp(min=1)


@pytest.mark.parametrize("name", CASES)
def test_a_cut_changes_nothing(name: str) -> None:
    fast, _, leaves = CASES[name]
    x, *rest = leaves()
    whole = fast(x, *rest)
    first = fast(x[:, :3], *rest)
    states = list(first[1:])
    if name == "gru":
        states.append(torch.zeros_like(states[0]))
    second = fast(x[:, 3:], *states, *rest[len(states) :])
    assert (torch.cat([first[0], second[0]], 1) - whole[0]).abs().max() < 1e-12
    for one, other in zip(second[1:], whole[1:], strict=True):
        assert (one - other).abs().max() < 1e-12


@pytest.mark.parametrize("transform", ["quadratic", "multiplicative"])
def test_hidden_vectors_have_unit_size_whatever_comes(transform: Any) -> None:
    drive, hidden, mix = draw((B, 200, F), (B, F), (F, F))
    for scale in (1e-3, 1.0, 1e6):
        out, last = quadratic(drive * scale, hidden, mix * 30, transform)
        sizes = out.square().mean(-1)
        assert torch.isfinite(sizes).all()
        assert (sizes[:, 1:] <= 1 + 1e-9).all()
        assert torch.equal(last, out[:, -1])
    zero, _ = quadratic(torch.zeros_like(drive), hidden * 0, mix, transform)
    assert not zero.any()
