"""Titans memories over many chunks: answers, states and gradients against the token loop.

Every test runs with the scan written by hand, as a kernel and in torch, and with the one whose
chunks are programs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nl.core.native import cpp_compiler, torch_only
from nl.ops.titans import TitansTokens
from nl.ops.titans_native import KERNEL
from nl.ops.titans_scan import (
    ScanMemory,
    ScanRule,
    titans_scan,
    titans_scan_programs,
    titans_scan_reference,
)
from tests.unit.ops.twins import EXACT, assert_twins

SINGLE = 2e-5
N, K, F = 2, 4, 6
WIDTHS = {1: [K, K], 2: [K, K, K], 3: [K, F, F, K], 4: [K, K, F, F, K]}
each_depth = pytest.mark.parametrize("depth", WIDTHS)
each_step = pytest.mark.parametrize("normalised", [True, False], ids=["normalised", "plain"])
each_memory = pytest.mark.parametrize("recompute", [True, False], ids=["again", "kept"])


@pytest.fixture(params=["native", "torch", "by_chunk"], autouse=True)
def chosen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scan that ``run`` compares with the loop."""
    native, by_chunk = request.param == "native", request.param == "by_chunk"
    if native and (cpp_compiler() is None or os.environ.get("NL_NATIVE") == "off"):
        pytest.skip("no kernels here: there is no C++ compiler, or NL_NATIVE=off")
    monkeypatch.setitem(globals(), "fast_scan", titans_scan_programs if by_chunk else titans_scan)
    with nullcontext() if native else torch_only():
        assert KERNEL.takes(torch.zeros(1)) == native
        yield


fast_scan: Callable[..., tuple[Tensor, ScanMemory]] = titans_scan


def draw(size: int, depth: int) -> list[Tensor]:
    """Queries, keys, values, rate, log kept, log inertia, share, then L times base, D and S."""
    torch.manual_seed(size + depth)
    queries, keys = normalize(torch.randn(2, N, K, size, dtype=torch.float64), dim=2)
    values = 0.5 * torch.randn(N, K, size, dtype=torch.float64)
    gates = 0.8 * torch.rand(3, N, size, dtype=torch.float64)
    share = torch.rand(N, 1, dtype=torch.float64)
    sides = list(zip(WIDTHS[depth][1:], WIDTHS[depth][:-1], strict=True))
    layers = [torch.randn(N, *side, dtype=torch.float64) * 0.2 for _ in range(3) for side in sides]
    return [queries, keys, values, gates[0], -0.2 * gates[1], gates[2].log(), share, *layers]


def run(
    leaves: list[Tensor], rule: ScanRule, loop: bool, momentum: bool = True, anchored: bool = True
) -> list[Tensor]:
    queries, keys, values, rate, log_kept, log_inertia, share, *layers = leaves
    depth = len(layers) // 3
    base, added, surprise = (tuple(layers[i * depth : (i + 1) * depth]) for i in range(3))
    memory = ScanMemory(base if anchored else (), added, surprise if momentum else ())
    tokens = TitansTokens(keys, values, rate, log_kept, log_inertia if momentum else None)
    scan = titans_scan_reference if loop else fast_scan
    read, end = scan(memory, queries, tokens, share if depth > 1 else None, rule)
    assert len(end.surprise) == (depth if momentum else 0)
    return [read, *end.added, *end.surprise]


def compare(
    inputs: list[Tensor], rule: ScanRule, momentum: bool = True, anchored: bool = True
) -> None:
    assert_twins(lambda leaves, loop: run(leaves, rule, loop, momentum, anchored), inputs)


@each_depth
@each_step
@each_memory
@pytest.mark.parametrize("momentum", [True, False], ids=["momentum", "none"])
def test_equals_the_token_loop(
    depth: int, normalised: bool, recompute: bool, momentum: bool
) -> None:
    compare(draw(12, depth), ScanRule(4, normalised, recompute), momentum)


@each_step
def test_without_anything_to_add_to(normalised: bool) -> None:
    compare(draw(9, 2), ScanRule(3, normalised), anchored=False)


@each_memory
@pytest.mark.parametrize(("chunk", "count"), [(1, 7), (5, 1), (16, 3), (40, 2), (48, 3)])
def test_at_other_chunks(chunk: int, count: int, recompute: bool) -> None:
    compare(draw(chunk * count, 2), ScanRule(chunk, True, recompute))


@each_step
def test_segments_of_several_chunks(normalised: bool) -> None:
    compare(draw(2 * 70, 2), ScanRule(2, normalised))


@each_step
@pytest.mark.parametrize("which", [3, 4, 5], ids=["rate", "kept", "inertia"])
@pytest.mark.parametrize("gate", [1e-30, 1e-6, 1 - 1e-9, 1.0])
def test_gates_near_zero_and_one(which: int, gate: float, normalised: bool) -> None:
    inputs = draw(9, 2)
    inputs[which].fill_(gate if which == 3 else torch.tensor(gate).double().log())
    inputs[which][:, 4] = 0.5 if which == 3 else -0.7
    compare(inputs, ScanRule(3, normalised))


@each_step
def test_repeated_and_zero_keys(normalised: bool) -> None:
    inputs = draw(12, 2)
    inputs[1][:, :, 3:6] = inputs[1][:, :, 3:4]
    inputs[1][:, :, 8:10] = 0
    compare(inputs, ScanRule(4, normalised))


@each_depth
@each_memory
def test_single_precision(depth: int, recompute: bool) -> None:
    inputs, rule = draw(48, depth), ScanRule(16, True, recompute)
    wanted = run(inputs, rule, True)
    for value, exact in zip(run([t.float() for t in inputs], rule, False), wanted, strict=True):
        assert value.dtype == torch.float32
        assert (value.double() - exact).norm() < SINGLE * exact.norm()


@each_memory
def test_gradcheck(recompute: bool) -> None:
    inputs = [t.requires_grad_() for t in draw(4, 2)]
    rule = ScanRule(2, True, recompute)
    assert torch.autograd.gradcheck(lambda *t: tuple(run(list(t), rule, False)), inputs)


@each_memory
def test_gradients_of_answers_or_of_states_alone(recompute: bool) -> None:
    rule = ScanRule(3, True, recompute)
    for pick in (slice(0, 1), slice(1, None)):
        grads = []
        for loop in (False, True):
            leaves = [t.clone().requires_grad_() for t in draw(9, 2)]
            loss = sum(t.sin().sum() for t in run(leaves, rule, loop)[pick])
            grads.append(torch.autograd.grad(loss, leaves, allow_unused=True))
        for value, wanted in zip(*grads, strict=True):
            wanted = torch.zeros(1) if wanted is None else wanted
            value = torch.zeros(1) if value is None else value
            assert (value - wanted).norm() <= EXACT * wanted.norm().clamp(min=1)
