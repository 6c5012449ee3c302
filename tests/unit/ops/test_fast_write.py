"""Writes of fast MLP memories and their backward pass against the token loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nl.ops.fast_mlp import Bank, FastWeights, WriteRule, fast_mlp
from nl.ops.fast_write import WriteGroup, fast_mlp_write, fast_mlp_write_reference
from tests.unit.ops.twins import assert_twins

pytestmark = pytest.mark.usefixtures("done_by")

SINGLE = 1e-5
HEADS, ROWS, K, F, GATE_F = 2, 2, 5, 6, 3
N = HEADS * ROWS

RULES = [
    WriteRule("silu", "l2", "delta_error"),
    WriteRule("silu", "l2", "delta_error", clip=0.3),
    WriteRule("gelu", "l2", "delta_error"),
    WriteRule("silu", "l2", "delta", clip=0.3),
    WriteRule("gelu", "dot", "delta"),
    WriteRule("silu", "l2", "decay"),
    WriteRule("silu", "dot", "decay"),
    WriteRule("silu", "l2", "delta_error", anchored=False),
    WriteRule("gelu", "l2", "delta", anchored=False),
    WriteRule("silu", "dot", "decay", anchored=False, clip=0.3),
]
each_rule = pytest.mark.parametrize("rule", RULES, ids=["-".join(map(str, r)) for r in RULES])
KINDS = [((1, K, False),), ((3, K, True),), ((2, 1, False),), ((2, K, True), (2, 1, False))]
each_kind = pytest.mark.parametrize("kinds", KINDS, ids=[str(kinds) for kinds in KINDS])
Kinds = tuple[tuple[int, int, bool], ...]
Write = Callable[..., list[FastWeights]]


def draw(size: int, kinds: Kinds) -> list[Tensor]:
    """Keys, rate, rate of the first layers, log decay, then five tensors per bank; float64."""
    keys = normalize(torch.randn(N, K, size, dtype=torch.float64), dim=1)
    gates = torch.rand(3, N, size, dtype=torch.float64)
    drawn = [keys, gates[0], 0.3 * gates[1], -0.2 * gates[2]]
    for memories, outputs, _ in kinds:
        hidden = GATE_F if outputs == 1 else F
        shapes = [
            (HEADS, memories * hidden, K),
            (HEADS, memories, outputs, hidden),
            (N, memories * hidden, K),
            (N, memories, outputs, hidden),
            (N, memories, outputs, size),
        ]
        drawn += [torch.randn(*shape, dtype=torch.float64) * 0.5 for shape in shapes]
    return drawn


def run(write: Write, leaves: list[Tensor], rule: WriteRule, kinds: Kinds) -> list[Tensor]:
    keys, rate, slow, log_decay = leaves[:4]
    banks = []
    for i, (_, _, skip) in enumerate(kinds):
        w2, w1, d2, d1, targets = leaves[4 + 5 * i : 9 + 5 * i]
        banks.append(Bank(FastWeights(w2, w1), FastWeights(d2, d1), targets, skip))
    # The second bank, if any, has one rate for both layers.
    groups = [WriteGroup(rate, slow, banks[:1])]
    groups += [WriteGroup(slow, slow, banks[1:])] if len(banks) > 1 else []
    return [w for weights in write(groups, keys, log_decay, rule) for w in weights]


def compare(inputs: list[Tensor], rule: WriteRule, kinds: Kinds) -> None:
    def write(leaves: list[Tensor], loop: bool) -> list[Tensor]:
        chosen = fast_mlp_write_reference if loop else fast_mlp_write
        return run(chosen, leaves, rule, kinds)

    assert_twins(write, inputs)


@each_rule
@each_kind
def test_write_equals_the_token_loop(rule: WriteRule, kinds: Kinds) -> None:
    compare(draw(21, kinds), rule, kinds)


@pytest.mark.parametrize("size", [1, 2, 16, 64])
def test_write_at_other_sizes(size: int) -> None:
    compare(draw(size, KINDS[3]), RULES[0], KINDS[3])


@each_rule
def test_the_backward_pass_is_that_of_the_forward_pass(rule: WriteRule) -> None:
    leaves = [t.requires_grad_() for t in draw(4, KINDS[3])]

    def write(*given: Tensor) -> tuple[Tensor, ...]:
        return tuple(run(fast_mlp_write, list(given), rule, KINDS[3]))

    assert torch.autograd.gradcheck(write, leaves, fast_mode=True)


@each_rule
def test_write_with_repeated_and_zero_keys(rule: WriteRule) -> None:
    inputs = draw(12, KINDS[1])
    inputs[0][..., 3:7] = inputs[0][..., 2:3]
    inputs[0][..., 9:] = 0
    compare(inputs, rule, KINDS[1])


@pytest.mark.parametrize("log_decay", [0.0, -60.0])
def test_write_that_keeps_all_or_nothing(log_decay: float) -> None:
    inputs = draw(12, KINDS[1])
    inputs[3].fill_(log_decay)
    compare(inputs, RULES[0], KINDS[1])


@each_rule
def test_single_precision(rule: WriteRule) -> None:
    inputs = draw(48, KINDS[3])
    single = run(fast_mlp_write, [t.float() for t in inputs], rule, KINDS[3])
    wanted = run(fast_mlp_write_reference, inputs, rule, KINDS[3])
    for value, right in zip(single, wanted, strict=True):
        assert (value.double() - right).norm() < SINGLE * right.norm()


def test_without_rates_only_the_decay_acts() -> None:
    inputs = draw(16, KINDS[0])
    inputs[1].zero_()
    inputs[2].zero_()
    hidden, output = run(fast_mlp_write, inputs, RULES[0], KINDS[0])
    kept = inputs[3].sum(-1).exp()
    assert torch.allclose(hidden, kept[:, None, None] * inputs[6])
    assert torch.allclose(output, kept[:, None, None, None] * inputs[7])


def test_clip_bounds_what_a_large_second_layer_asks_of_the_first() -> None:
    inputs = draw(16, KINDS[0])
    inputs[6].zero_()
    inputs[7].mul_(1e4)
    clip = 0.5
    free, bounded = (
        run(fast_mlp_write, inputs, rule, KINDS[0])[0].flatten(1).norm(dim=1)
        for rule in (RULES[0], RULES[0]._replace(clip=clip))
    )
    # |D - s (D k + delta) k^T| <= |D| + s |delta| for unit keys, and |delta| <= clip sqrt(F).
    assert (bounded <= inputs[2].sum(-1) * clip * F**0.5).all()
    assert (free > 1e4 * bounded).all()


def test_a_full_rate_write_stores_the_residual_target() -> None:
    """One token at rate 1 without decay: the running second layer then answers exactly."""
    kinds = ((1, K, True),)
    inputs = draw(1, kinds)
    inputs[1].fill_(1)
    inputs[2].zero_()
    inputs[3].zero_()
    keys, targets, (w2, w1, d2, d1) = inputs[0], inputs[8], inputs[4:8]
    hidden, output = run(fast_mlp_write, inputs, RULES[0], kinds)

    def answer(first: Tensor, second: Tensor) -> Tensor:
        whole = FastWeights(w2.repeat(ROWS, 1, 1) + first, w1.repeat(ROWS, 1, 1, 1) + second)
        return fast_mlp(whole, keys.unsqueeze(1), "silu")

    assert torch.allclose(hidden, d2)
    assert (answer(hidden, output) - targets).abs().max() < 1e-4
    assert (answer(d2, d1) - targets).abs().max() > 0.1


def test_a_write_keeps_what_it_was_given_and_nothing_else() -> None:
    leaves = [t.requires_grad_() for t in draw(21, KINDS[3])]
    kept: set[int] = set()

    def note(t: Tensor) -> Tensor:
        kept.add(t.untyped_storage().data_ptr())
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        run(fast_mlp_write, leaves, RULES[0], KINDS[3])
    assert kept == {t.untyped_storage().data_ptr() for t in leaves}


def test_a_second_derivative_is_refused() -> None:
    leaves = [t.requires_grad_() for t in draw(3, KINDS[0])]
    loss = sum(w.square().sum() for w in run(fast_mlp_write, leaves, RULES[0], KINDS[0]))
    (grad,) = torch.autograd.grad(loss, leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
