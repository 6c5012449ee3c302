"""The chunked delta rule against its token loop: values, gradients, edges."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nl.ops.delta_rule import chunk_decay, delta_chunk, delta_chunk_reference, unit_lower_inverse

EXACT = 1e-10
SINGLE = 1e-5

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def draw(size: int, *, lead: tuple[int, ...] = (2, 3), decay: float = -0.05) -> Inputs:
    """Random float64 inputs with C = size, N = 5, P = 4."""
    weight = torch.randn(*lead, 4, 5, dtype=torch.float64)
    keys = normalize(torch.randn(*lead, size, 5, dtype=torch.float64), dim=-1)
    grads = torch.randn(*lead, size, 4, dtype=torch.float64)
    log_decay = decay * torch.rand(*lead, size, dtype=torch.float64)
    rate = torch.rand(*lead, size, dtype=torch.float64)
    return weight, keys, grads, log_decay, rate


def relative(value: Tensor, wanted: Tensor) -> float:
    value, wanted = value.detach(), wanted.detach()
    return float((value - wanted).norm() / wanted.norm().clamp(min=1e-12))


def compare(inputs: Inputs, tolerance: float) -> None:
    """Output and every gradient of the chunked form equal the loop's."""
    results = []
    for fn in (delta_chunk, delta_chunk_reference):
        leaves = [t.clone().requires_grad_() for t in inputs]
        out = fn(*leaves)
        probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
        results.append((out, *torch.autograd.grad(out, leaves, probe)))
    for value, wanted in zip(*results, strict=True):
        assert torch.isfinite(value).all()
        assert relative(value, wanted) < tolerance


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17, 48, 64, 128])
def test_equals_the_token_loop(size: int) -> None:
    compare(draw(size), EXACT)


@pytest.mark.parametrize("size", [3, 64])
def test_single_precision(size: int) -> None:
    exact = draw(size)
    single = tuple(t.float() for t in exact)
    assert relative(delta_chunk(*single).double(), delta_chunk_reference(*exact)) < SINGLE


@pytest.mark.parametrize("decay", [0.0, -1e-12, -5.0, -70.0])
def test_decay_between_one_and_zero(decay: float) -> None:
    compare(draw(33, decay=decay), EXACT)


def test_mixed_decays_keep_single_precision() -> None:
    weight, keys, grads, log_decay, rate = draw(64)
    log_decay[..., ::7] = -60.0
    exact = (weight, keys, grads, log_decay, rate)
    single = tuple(t.float() for t in exact)
    assert relative(delta_chunk(*single).double(), delta_chunk_reference(*exact)) < SINGLE


def test_repeated_keys_at_full_rate() -> None:
    weight, keys, grads, log_decay, rate = draw(64)
    compare((weight, keys[..., :1, :].expand_as(keys), grads, log_decay, rate * 0 + 1), EXACT)


def test_forgetting_everything_leaves_the_last_write() -> None:
    weight, keys, grads, _, rate = draw(8)
    log_decay = torch.full(rate.shape, float("-inf"), dtype=torch.float64)
    log_decay.requires_grad_()
    out = delta_chunk(weight, keys, grads, log_decay, rate)
    (gradient,) = torch.autograd.grad(out.sum(), log_decay)
    assert torch.isfinite(gradient).all()
    # With a = 0 only the last step's own terms survive, and W before it is the previous write.
    before = delta_chunk_reference(
        weight, keys[..., :7, :], grads[..., :7, :], log_decay[..., :7], rate[..., :7]
    )
    key, step = keys[..., 7, :], rate[..., 7, None, None]
    wanted = -step * ((before @ key[..., None]) + grads[..., 7, :, None]) * key[..., None, :]
    assert torch.allclose(out, wanted, atol=1e-12)


def test_zero_rate_and_zero_keys_change_nothing_but_the_decay() -> None:
    weight, keys, grads, log_decay, rate = draw(16)
    wanted = log_decay.sum(-1)[..., None, None].exp() * weight
    for inputs in (
        (weight, keys, grads, log_decay, rate * 0),
        (weight, keys * 0, grads, log_decay, rate),
    ):
        assert torch.allclose(delta_chunk(*inputs), wanted, atol=1e-13)
        compare(inputs, EXACT)


def test_a_chunk_may_be_cut() -> None:
    weight, keys, grads, log_decay, rate = draw(40)
    head = delta_chunk(
        weight, keys[..., :13, :], grads[..., :13, :], log_decay[..., :13], rate[..., :13]
    )
    both = delta_chunk(
        head, keys[..., 13:, :], grads[..., 13:, :], log_decay[..., 13:], rate[..., 13:]
    )
    assert relative(both, delta_chunk(weight, keys, grads, log_decay, rate)) < EXACT


def test_decay_products() -> None:
    log_decay = torch.randn(2, 9, dtype=torch.float64).abs().neg()
    decay = chunk_decay(log_decay)
    a = log_decay.exp()
    for t in range(9):
        assert torch.allclose(decay.before[:, t], a[:, :t].prod(-1))
        assert torch.allclose(decay.after[:, t], a[:, t + 1 :].prod(-1))
        for i in range(9):
            wanted = a[:, i + 1 : t].prod(-1) if i < t else torch.zeros(2, dtype=torch.float64)
            assert torch.allclose(decay.ratio[:, t, i], wanted)
    assert torch.allclose(decay.total, a.prod(-1))


@pytest.mark.parametrize("size", [1, 5, 16, 31, 64])
def test_inverse_and_its_gradient(size: int) -> None:
    strict = torch.randn(3, size, size, dtype=torch.float64).tril(-1) * 0.3
    system = strict + torch.eye(size, dtype=torch.float64)
    wanted = torch.linalg.inv(system)
    assert torch.allclose(unit_lower_inverse(strict), wanted, atol=EXACT)
    if size <= 5:
        leaf = strict.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda t: unit_lower_inverse(t.tril(-1)), leaf)
