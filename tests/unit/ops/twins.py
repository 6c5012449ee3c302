"""A fast path and the loop that it must equal: outputs, states and gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

EXACT = 1e-10


def assert_twins(run: Callable[[list[Tensor], bool], list[Tensor]], inputs: list[Tensor]) -> None:
    """``run(leaves, loop)`` gives the same with and without the loop, and so do its gradients."""
    results = []
    for loop in (False, True):
        leaves = [t.clone().requires_grad_() for t in inputs]
        out = run(leaves, loop)
        generator = torch.Generator().manual_seed(3)
        loss = sum((w * torch.randn(w.shape, generator=generator).double()).sum() for w in out)
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        found = zip(grads, leaves, strict=True)
        results.append([*out, *(torch.zeros_like(x) if g is None else g for g, x in found)])
    for i, (value, wanted) in enumerate(zip(*results, strict=True)):
        assert torch.isfinite(value).all(), i
        assert (value - wanted).norm() <= EXACT * wanted.norm().clamp(min=1), i
