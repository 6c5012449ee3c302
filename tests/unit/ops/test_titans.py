"""Titans memories: reads, chunk writes and their gradients against the token loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, silu

from nl.ops.titans import (
    TitansMemory,
    TitansTokens,
    chunk_scales,
    crowd,
    gradient_factors,
    titans_read,
    titans_write,
    titans_write_reference,
)
from tests.unit.ops.twins import EXACT, assert_twins

SINGLE = 1e-5
N, K, F = 2, 4, 6
WIDTHS = {1: [K, K], 2: [K, F, K], 3: [K, F, F, K], 4: [K, K, F, F, K]}
each_depth = pytest.mark.parametrize("depth", WIDTHS)
each_step = pytest.mark.parametrize("normalised", [True, False])
each_momentum = pytest.mark.parametrize("momentum", [True, False])


def draw(size: int, depth: int) -> list[Tensor]:
    """Keys, values, rate, log kept, log inertia, share, then L times W, D and S; float64."""
    keys = normalize(torch.randn(N, K, size, dtype=torch.float64), dim=1)
    values = torch.randn(N, K, size, dtype=torch.float64)
    gates = torch.rand(3, N, size, dtype=torch.float64)
    share = torch.rand(N, 1, dtype=torch.float64)
    sides = list(zip(WIDTHS[depth][1:], WIDTHS[depth][:-1], strict=True))
    weights = [torch.randn(N, *side, dtype=torch.float64) * 0.5 for _ in range(3) for side in sides]
    tokens = [keys, values, gates[0], -0.2 * gates[1], gates[2].log()]
    return [*tokens, share, *weights]


def run(leaves: list[Tensor], momentum: bool, normalised: bool, loop: bool) -> list[Tensor]:
    keys, values, rate, log_kept, log_inertia, share, *layers = leaves
    depth = len(layers) // 3
    weights, added, surprise = (tuple(layers[i * depth : (i + 1) * depth]) for i in range(3))
    memory = TitansMemory(weights, added, surprise if momentum else ())
    tokens = TitansTokens(keys, values, rate, log_kept, log_inertia if momentum else None)
    write = titans_write_reference if loop else titans_write
    more, left = write(memory, tokens, share if depth > 1 else None, normalised)
    assert len(left) == (depth if momentum else 0)
    return [*more, *left]


def compare(inputs: list[Tensor], momentum: bool = True, normalised: bool = True) -> None:
    assert_twins(lambda leaves, loop: run(leaves, momentum, normalised, loop), inputs)


@each_depth
@each_step
@each_momentum
def test_write_equals_the_token_loop(depth: int, momentum: bool, normalised: bool) -> None:
    compare(draw(11, depth), momentum, normalised)


@each_step
@pytest.mark.parametrize("size", [1, 3, 16, 64])
def test_write_at_other_sizes(size: int, normalised: bool) -> None:
    compare(draw(size, 2), normalised=normalised)


@each_step
@pytest.mark.parametrize("which", [2, 3, 4], ids=["rate", "kept", "inertia"])
@pytest.mark.parametrize("gate", [1e-30, 1e-6, 1 - 1e-9, 1.0])
def test_gates_near_zero_and_one(which: int, gate: float, normalised: bool) -> None:
    inputs = draw(9, 2)
    inputs[which].fill_(gate if which == 2 else torch.tensor(gate).double().log())
    inputs[which][:, 4] = 0.5 if which == 2 else -0.7
    compare(inputs, normalised=normalised)


def test_closed_gates_stay_finite() -> None:
    inputs = draw(9, 3)
    inputs[3][:, 2:4] = float("-inf")
    inputs[4][:, 5] = float("-inf")
    leaves = [t.clone().requires_grad_() for t in inputs]
    fast, slow = (run(leaves, True, True, loop) for loop in (False, True))
    for value, wanted in zip(fast, slow, strict=True):
        assert (value - wanted).norm() <= EXACT * wanted.norm().clamp(min=1)
    for grad in torch.autograd.grad(sum(w.sum() for w in fast), leaves):
        assert torch.isfinite(grad).all()


@each_step
def test_repeated_and_zero_keys(normalised: bool) -> None:
    inputs = draw(12, 2)
    inputs[0][:, :, 3:6] = inputs[0][:, :, 3:4]
    inputs[0][:, :, 8:10] = 0
    compare(inputs, normalised=normalised)


@each_depth
def test_single_precision(depth: int) -> None:
    inputs = draw(48, depth)
    single = run([t.float() for t in inputs], True, True, False)
    for value, wanted in zip(single, run(inputs, True, True, True), strict=True):
        assert (value.double() - wanted).norm() < SINGLE * wanted.norm()


def test_gradcheck() -> None:
    inputs = [t.requires_grad_() for t in draw(3, 2)]
    assert torch.autograd.gradcheck(lambda *t: tuple(run(list(t), True, True, False)), inputs)


def test_scales_equal_the_reverse_recurrence() -> None:
    kept, eta = torch.rand(2, N, 17, dtype=torch.float64).unbind()
    scales = chunk_scales(kept.log(), eta.log())
    r = torch.ones(N, dtype=torch.float64)
    total = torch.ones(N, dtype=torch.float64)
    push = torch.ones(N, dtype=torch.float64)
    carried = torch.zeros(N, dtype=torch.float64)
    for j in range(16, -1, -1):
        if j < 16:
            total = total * kept[:, j + 1]
            r = total + eta[:, j + 1] * r
            push = push * eta[:, j + 1]
        assert torch.allclose(scales.write[:, j], r)
        assert torch.allclose(scales.push[:, j], push)
        carried = carried + total * eta[:, : j + 1].prod(-1)
    assert torch.allclose(scales.carried, carried)
    assert torch.allclose(scales.kept, kept.prod(-1))
    assert torch.allclose(scales.inertia, eta.prod(-1))


@each_depth
def test_read_and_factors_are_the_formula(depth: int) -> None:
    inputs = draw(7, depth)
    keys, values, weights = inputs[0], inputs[1], inputs[6 : 6 + depth]
    x = keys
    for weight in weights[:-1]:
        y = silu(weight @ x)
        x = y + x if y.shape == x.shape else y
    assert torch.allclose(titans_read(weights, keys), weights[-1] @ x)
    leaves = [w.clone().requires_grad_() for w in weights]
    loss = (titans_read(leaves, keys) - values).square().sum() / 2
    seen, deltas = gradient_factors(weights, keys, values)
    for i, wanted in enumerate(torch.autograd.grad(loss, leaves)):
        assert torch.allclose(deltas[i] @ seen[i].mT, wanted)


@pytest.mark.parametrize("same", [0.0, 0.5, 1.0])
def test_a_normalised_chunk_contracts_the_errors(same: float) -> None:
    """The largest eigenvalue of what one chunk does to a linear memory's errors stays below 1."""
    shared = torch.randn(N, K, 1, dtype=torch.float64)
    keys = normalize(same * shared + (1 - same) * torch.randn(N, K, 40).double(), dim=1)
    rate = torch.rand(N, 40, dtype=torch.float64)
    theta = (rate / crowd(keys, rate)).sqrt()
    grown = torch.linalg.eigvalsh(theta[:, :, None] * (keys.mT @ keys) * theta[:, None])
    assert grown.max() <= 1
    assert torch.linalg.eigvalsh(rate.sqrt()[:, :, None] * (keys.mT @ keys)).max() > 1


def test_one_token_at_full_rate_is_stored() -> None:
    inputs = draw(1, 2)
    inputs[2].fill_(1)
    inputs[3].zero_()
    inputs[5].fill_(1e-9)
    more = run(inputs, False, True, False)
    w, d = inputs[6:8], inputs[8:10]
    after = [a - b + c for a, b, c in zip(w, d, more, strict=True)]
    before = titans_read(w, inputs[0]) - inputs[1]
    assert (titans_read(after, inputs[0]) - inputs[1]).norm() < 0.2 * before.norm()


def test_without_rates_only_the_gates_act() -> None:
    inputs = draw(8, 2)
    inputs[2].zero_()
    more = run(inputs, False, True, False)
    kept = inputs[3].sum(-1).exp()[:, None, None]
    for value, start in zip(more, inputs[8:10], strict=True):
        assert torch.allclose(value, kept * start)
