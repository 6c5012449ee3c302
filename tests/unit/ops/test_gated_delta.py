"""The chunked gated delta rule against its token loop: outputs, end state, gradients, edges."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nl.ops.gated_delta import gated_delta, gated_delta_reference

EXACT = 1e-10
SINGLE = 1e-5

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def draw(length: int, *, decay: float = -0.05, seed: int = 0) -> Inputs:
    """State, query, key, value, log decay, rate in float64 with N = 3, K = 5, V = 4."""
    torch.manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    log_decay = decay * torch.rand(3, length, dtype=torch.float64)
    rate = torch.rand(3, length, dtype=torch.float64)
    query, key = (normalize(randn(3, length, 5), dim=-1) for _ in range(2))
    return randn(3, 5, 4), query, key, randn(3, length, 4), log_decay, rate


def relative(value: Tensor, wanted: Tensor) -> float:
    value, wanted = value.detach(), wanted.detach()
    return float((value - wanted).norm() / wanted.norm().clamp(min=1e-12))


def run(inputs: Inputs, chunk: int, reference: bool = False) -> tuple[Tensor, Tensor]:
    state, query, key, value, log_decay, rate = inputs
    fn = gated_delta_reference if reference else gated_delta
    return fn(state, (query, key, value), log_decay, rate, chunk)


def compare(inputs: Inputs, chunk: int, tolerance: float = EXACT) -> None:
    """Outputs, end state and the gradient of every input equal the loop's."""
    results = []
    for reference in (False, True):
        leaves: Inputs = tuple(t.clone().requires_grad_() for t in inputs)  # type: ignore[assignment]
        found = run(leaves, chunk, reference)
        generator = torch.Generator().manual_seed(1)
        probes = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in found]
        gradients = torch.autograd.grad(found, leaves, probes)
        results.append((*found, *gradients))
    for value, wanted in zip(*results, strict=True):
        assert torch.isfinite(value).all()
        assert relative(value, wanted) < tolerance


@pytest.mark.parametrize("chunk", [1, 3, 16, 64, 128])
@pytest.mark.parametrize("length", [1, 50, 128])
def test_equals_the_token_loop(length: int, chunk: int) -> None:
    compare(draw(length), chunk)


@pytest.mark.parametrize("decay", [0.0, -1e-12, -5.0, -70.0])
def test_decay_between_one_and_zero(decay: float) -> None:
    compare(draw(40, decay=decay), 16)


@pytest.mark.parametrize("chunk", [3, 64])
def test_single_precision(chunk: int) -> None:
    exact = draw(100)
    exact[4][:, ::7] = -60.0
    single: Inputs = tuple(t.float() for t in exact)  # type: ignore[assignment]
    for value, wanted in zip(run(single, chunk), run(exact, chunk, True), strict=True):
        assert value.dtype == torch.float32
        assert relative(value.double(), wanted) < SINGLE


def test_repeated_and_zero_keys() -> None:
    state, query, key, value, log_decay, rate = draw(48)
    same = key[:, :1].expand_as(key).contiguous()
    compare((state, query, same, value, log_decay, rate * 0 + 1), 16)
    compare((state, query, key * 0, value, log_decay, rate), 16)


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("rate", [0.9, 0.97])
def test_similar_keys_in_single_precision(rate: float, noise: float) -> None:
    """Powers of the triangular system grow with the similarity of keys, and cancel."""
    state, query, _, value, log_decay, drawn = draw(128)
    torch.manual_seed(1)
    same = torch.randn(3, 1, 5, dtype=torch.float64)
    key = normalize(same + noise * torch.randn(3, 128, 5, dtype=torch.float64), dim=-1)
    inputs = (state, query, key, value, log_decay / 50, torch.full_like(drawn, rate))
    results = []
    for dtype, reference in ((torch.float32, False), (torch.float64, True)):
        leaves: Inputs = tuple(t.to(dtype).requires_grad_() for t in inputs)  # type: ignore[assignment]
        found = run(leaves, 64, reference)
        probe = torch.randn(found[0].shape, generator=torch.Generator().manual_seed(2))
        grads = torch.autograd.grad((found[0] * probe.to(dtype)).sum(), leaves)
        results.append([found[0].double(), grads[3].double()])
    for got, want in zip(*results, strict=True):
        assert relative(got, want) < SINGLE


def test_full_rate_stores_the_last_value_of_a_key() -> None:
    state, _, key, value, log_decay, rate = draw(20)
    out, _ = run((state, key, key, value, log_decay, torch.ones_like(rate)), 8)
    assert torch.allclose(out, value, atol=1e-12)


def test_forgetting_everything_leaves_the_last_write() -> None:
    state, query, key, value, _, rate = draw(9)
    log_decay = torch.full(rate.shape, float("-inf"), dtype=torch.float64).requires_grad_()
    out, end = run((state, query, key, value, log_decay, rate), 4)
    (gradient,) = torch.autograd.grad(out.sum(), log_decay)
    assert torch.isfinite(gradient).all()
    wanted = rate[:, -1, None, None] * key[:, -1, :, None] * value[:, -1, None, :]
    assert torch.allclose(end, wanted, atol=1e-12)


def test_zero_rate_leaves_only_the_decay() -> None:
    state, query, key, value, log_decay, rate = draw(16)
    _, end = run((state, query, key, value, log_decay, rate * 0), 5)
    assert torch.allclose(end, log_decay.sum(1).exp()[:, None, None] * state, atol=1e-13)


@pytest.mark.parametrize("cut", [1, 13, 39])
def test_any_cut(cut: int) -> None:
    state, *tokens = draw(40)
    out, end = run((state, *tokens), 16)  # type: ignore[arg-type]
    head, middle = run((state, *(t[:, :cut] for t in tokens)), 16)  # type: ignore[arg-type]
    tail, last = run((middle, *(t[:, cut:] for t in tokens)), 16)  # type: ignore[arg-type]
    assert relative(torch.cat([head, tail], 1), out) < EXACT
    assert relative(last, end) < EXACT
