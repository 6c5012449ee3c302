"""Norm and projection in one function against the three steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nl.ops.norm_linear import norm_linear, norm_linear_reference


def draw(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    shapes = (2, 5, 6), (6,), (4, 6)
    return [torch.randn(*s, dtype=dtype).requires_grad_() for s in shapes]


def test_norm_linear() -> None:
    leaves = draw()
    fast, slow = (f(*leaves, torch.float64) for f in (norm_linear, norm_linear_reference))
    assert torch.allclose(fast, slow, atol=1e-12)
    mix = torch.randn_like(fast)
    for a, b in zip(
        torch.autograd.grad((fast * mix).sum(), leaves),
        torch.autograd.grad((slow * mix).sum(), leaves),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *given: norm_linear(*given, torch.float64), leaves)


@pytest.mark.parametrize("how", ["autocast", "dtype"])
def test_half_precision(how: str) -> None:
    x, gain, weight = draw(torch.float32)
    wanted = norm_linear(x, gain, weight, torch.float32)
    dtype = torch.bfloat16 if how == "dtype" else torch.float32
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        y = norm_linear(x, gain, weight, dtype)
    assert y.dtype == torch.bfloat16
    assert (y.float() - wanted).norm() < 0.02 * wanted.norm()
    y.float().sum().backward()
    assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in (x, gain, weight))


@pytest.mark.parametrize("size", [1e-3, 0.03])
def test_small_half_precision_input_is_brought_to_unit_size(size: float) -> None:
    x, gain, weight = draw(torch.float32)
    x = (size * x.detach()).bfloat16().requires_grad_()
    mix, found = torch.randn(2, 5, 4), []
    for given, dtype in ((x, torch.bfloat16), (x.detach().float().requires_grad_(), torch.float32)):
        y = norm_linear(given, gain, weight, dtype)
        grads = torch.autograd.grad((y.float() * mix).sum(), (given, gain, weight))
        assert grads[0].dtype == given.dtype
        found.append([t.float() for t in (y, *grads)])
    for half, full in zip(*found, strict=True):
        assert (half - full).norm() < 0.02 * full.norm()


def test_zero_input_has_a_finite_gradient() -> None:
    x, gain, weight = draw()
    x = torch.zeros_like(x, requires_grad=True)
    norm_linear(x, gain, weight, torch.float64).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
