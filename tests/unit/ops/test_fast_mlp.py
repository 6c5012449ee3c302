"""Fast MLP memories: activations and reads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from nl.ops.fast_mlp import FastWeights, activation_and_slope, fast_mlp, fast_mlp_reference

N, K, F = 3, 4, 6
each_kind = pytest.mark.parametrize(("memories", "outputs"), [(1, K), (3, K), (2, 1)])


def draw(memories: int, outputs: int) -> FastWeights:
    shapes = (N, memories * F, K), (N, memories, outputs, F)
    return FastWeights(*(torch.randn(*shape, dtype=torch.float64) * 0.5 for shape in shapes))


@each_kind
@pytest.mark.parametrize("name", ["silu", "gelu"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("skip", [True, False])
def test_read_is_the_formula(
    memories: int, outputs: int, name: str, shared: bool, skip: bool
) -> None:
    weights = draw(memories, outputs)
    x = torch.randn(N, 1 if shared else memories, K, 7, dtype=torch.float64)
    results = []
    for read in (fast_mlp, fast_mlp_reference):
        leaves = [t.clone().requires_grad_() for t in (*weights, x)]
        y = read(FastWeights(*leaves[:2]), leaves[2], name, skip)
        loss = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum()
        results.append([y, *torch.autograd.grad(loss, leaves)])
    for value, wanted in zip(*results, strict=True):
        assert torch.allclose(value, wanted, atol=1e-12)


@pytest.mark.parametrize("name", ["silu", "gelu"])
def test_slope_and_its_slope(name: str) -> None:
    z = torch.linspace(-6, 6, 41, dtype=torch.float64, requires_grad=True)
    value, slope = activation_and_slope(z, name)
    exact = (silu if name == "silu" else gelu)(z)
    assert torch.allclose(value, exact)
    (wanted,) = torch.autograd.grad(exact.sum(), z)
    assert torch.allclose(slope, wanted)

    def both(t: Tensor) -> tuple[Tensor, Tensor]:
        return activation_and_slope(t, name)

    assert torch.autograd.gradcheck(both, z)
