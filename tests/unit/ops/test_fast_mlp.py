"""Fast MLP memories: reads, chunk writes and their gradients against the token loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, normalize, silu

from nl.ops.fast_mlp import (
    FastWeights,
    WriteRule,
    activation_and_slope,
    fast_mlp,
    fast_mlp_write,
    fast_mlp_write_reference,
    write_frame,
    write_system,
)

EXACT = 1e-10
SINGLE = 1e-5
N, K, F = 3, 4, 6

RULES = [
    WriteRule("silu", "l2", "delta_error"),
    WriteRule("gelu", "l2", "delta_error"),
    WriteRule("silu", "l2", "delta"),
    WriteRule("gelu", "dot", "delta"),
    WriteRule("silu", "l2", "decay"),
    WriteRule("silu", "l2", "delta_error", skip=False),
    WriteRule("silu", "l2", "delta", skip=False),
    WriteRule("silu", "dot", "decay"),
]
each_rule = pytest.mark.parametrize("rule", RULES, ids=["-".join(map(str, r)) for r in RULES])
each_kind = pytest.mark.parametrize(("memories", "outputs"), [(1, K), (3, K), (2, 1)])


def draw(size: int, memories: int, outputs: int) -> list[Tensor]:
    """W2, W1, D2, D1, targets, keys, rate, rate of the first layers, log decay; float64."""
    shapes = [
        (N, memories * F, K),
        (N, memories, outputs, F),
        (N, memories * F, K),
        (N, memories, outputs, F),
        (N, memories, outputs, size),
    ]
    drawn = [torch.randn(*shape, dtype=torch.float64) * 0.5 for shape in shapes]
    keys = normalize(torch.randn(N, K, size, dtype=torch.float64), dim=1)
    gates = torch.rand(3, N, size, dtype=torch.float64)
    return [*drawn, keys, gates[0], 0.3 * gates[1], -0.2 * gates[2]]


def chunked(leaves: list[Tensor], rule: WriteRule) -> FastWeights:
    w2, w1, d2, d1, targets, keys, rate, slow, log_decay = leaves
    system = write_system(write_frame(keys, log_decay), rate, slow)
    return fast_mlp_write(FastWeights(w2, w1), FastWeights(d2, d1), targets, system, rule)


def looped(leaves: list[Tensor], rule: WriteRule) -> FastWeights:
    w2, w1, d2, d1, targets, *tokens = leaves
    given = (tokens[0], tokens[1], tokens[2], tokens[3])
    weights, added = FastWeights(w2, w1), FastWeights(d2, d1)
    return fast_mlp_write_reference(weights, added, targets, given, rule)


def compare(inputs: list[Tensor], rule: WriteRule) -> None:
    results = []
    for write in (chunked, looped):
        leaves = [t.clone().requires_grad_() for t in inputs]
        out = write(leaves, rule)
        generator = torch.Generator().manual_seed(3)
        loss = sum((w * torch.randn(w.shape, generator=generator).double()).sum() for w in out)
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        results.append([*out, *(torch.zeros(1) if g is None else g for g in grads)])
    for value, wanted in zip(*results, strict=True):
        assert torch.isfinite(value).all()
        assert (value - wanted).norm() <= EXACT * wanted.norm().clamp(min=1)


@each_rule
@each_kind
def test_write_equals_the_token_loop(rule: WriteRule, memories: int, outputs: int) -> None:
    compare(draw(21, memories, outputs), rule)


@pytest.mark.parametrize("size", [1, 2, 64])
def test_write_at_other_sizes(size: int) -> None:
    compare(draw(size, 2, K), RULES[0])


@each_rule
def test_write_with_repeated_and_zero_keys(rule: WriteRule) -> None:
    inputs = draw(12, 2, K)
    inputs[5][..., 3:7] = inputs[5][..., 2:3]
    inputs[5][..., 9:] = 0
    compare(inputs, rule)


@pytest.mark.parametrize("log_decay", [0.0, -60.0])
def test_write_that_keeps_all_or_nothing(log_decay: float) -> None:
    inputs = draw(12, 2, K)
    inputs[8].fill_(log_decay)
    compare(inputs, RULES[0])


@each_rule
def test_single_precision(rule: WriteRule) -> None:
    inputs = draw(48, 2, K)
    for value, wanted in zip(
        chunked([t.float() for t in inputs], rule), looped(inputs, rule), strict=True
    ):
        assert (value.double() - wanted).norm() < SINGLE * wanted.norm()


def test_one_target_may_serve_all() -> None:
    inputs = draw(9, 3, K)
    inputs[4] = inputs[4][:, :1]
    compare(inputs, RULES[0])


def test_without_rates_only_the_decay_acts() -> None:
    inputs = draw(16, 2, K)
    inputs[6].zero_()
    inputs[7].zero_()
    hidden, output = chunked(inputs, RULES[0])
    kept = inputs[8].sum(-1).exp()
    assert torch.allclose(hidden, kept[:, None, None] * inputs[2])
    assert torch.allclose(output, kept[:, None, None, None] * inputs[3])


def test_a_full_rate_write_stores_the_residual_target() -> None:
    """One token at rate 1 without decay: the running second layer then answers exactly."""
    inputs = draw(1, 1, K)
    inputs[6].fill_(1)
    inputs[7].zero_()
    inputs[8].zero_()
    w2, w1, d2, d1, targets, keys = inputs[:6]
    hidden, output = chunked(inputs, RULES[0])
    after = FastWeights(w2 - d2 + hidden, w1 - d1 + output)
    answer = fast_mlp(after, keys.unsqueeze(1), "silu")
    assert torch.allclose(hidden, d2)
    assert (answer - targets).abs().max() < 1e-4
    before = fast_mlp(FastWeights(w2, w1), keys.unsqueeze(1), "silu")
    assert (before - targets).abs().max() > 0.1


@each_kind
def test_read_is_the_formula(memories: int, outputs: int) -> None:
    w2, w1 = draw(1, memories, outputs)[:2]
    x = torch.randn(N, memories, K, 7, dtype=torch.float64)
    own = fast_mlp(FastWeights(w2, w1), x, "gelu")
    shared = fast_mlp(FastWeights(w2, w1), x[:, :1], "silu")
    for m in range(memories):
        first = w2[:, m * F : (m + 1) * F]
        skip = x if outputs == K else torch.zeros_like(x)
        assert torch.allclose(own[:, m], skip[:, m] + w1[:, m] @ gelu(first @ x[:, m]))
        skip_one = skip[:, 0]
        assert torch.allclose(shared[:, m], skip_one + w1[:, m] @ silu(first @ x[:, 0]))
    bare = fast_mlp(FastWeights(w2, w1), x, "gelu", skip=False)
    assert torch.allclose(bare, own - (x if outputs == K else 0))


@pytest.mark.parametrize("name", ["silu", "gelu"])
def test_slope_and_its_slope(name: str) -> None:
    z = torch.linspace(-6, 6, 41, dtype=torch.float64, requires_grad=True)
    value, slope = activation_and_slope(z, name)
    exact = (silu if name == "silu" else gelu)(z)
    assert torch.allclose(value, exact)
    (wanted,) = torch.autograd.grad(exact.sum(), z)
    assert torch.allclose(slope, wanted)
    assert torch.autograd.gradcheck(lambda t: activation_and_slope(t, name), z)
