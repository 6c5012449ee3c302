"""The scan over Titans memories as a kernel: against torch's operations, and what it must keep to.

Against the token loop in double precision it is compared in test_titans_scan.py.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import nl.ops.titans_scan as titans_scan_file
from nl.core.native import cpp_compiler, torch_only
from nl.ops.titans import TitansTokens
from nl.ops.titans_native import KERNEL, _takes
from nl.ops.titans_scan import ScanMemory, ScanRule, titans_scan

CLOSE = 2e-5
SQUARE, MIXED = [16, 16, 16], [12, 20, 20, 12]
each_chunk = pytest.mark.parametrize("chunk", [4, 16, 64])
each_width = pytest.mark.parametrize("widths", [SQUARE, MIXED], ids=["square", "mixed"])
each_memory = pytest.mark.parametrize("recompute", [True, False], ids=["again", "kept"])


@pytest.fixture(autouse=True)
def kernels() -> None:
    """Skip where there are none."""
    if cpp_compiler() is None or os.environ.get("NL_NATIVE") == "off":
        pytest.skip("no kernels here: there is no C++ compiler, or NL_NATIVE=off")


def draw(rows: int, length: int, widths: list[int]) -> list[Tensor]:
    """Queries, keys, values, rate, log kept, log inertia, share, then L times base, D and S."""
    torch.manual_seed(length)
    K = widths[0]
    queries, keys = normalize(torch.randn(2, rows, K, length), dim=2)
    gates = 0.1 + 0.8 * torch.rand(3, rows, length)
    sides = list(zip(widths[1:], widths[:-1], strict=True))
    layers = [0.1 * torch.randn(rows, *side) for _ in range(3) for side in sides]
    values, share = 0.5 * torch.randn(rows, K, length), 0.1 * torch.rand(rows, 1)
    return [queries, keys, values, gates[0], -0.1 * gates[1], gates[2].log(), share, *layers]


def scan(leaves: list[Tensor], rule: ScanRule) -> list[Tensor]:
    """Answers, D and S."""
    queries, keys, values, rate, log_kept, log_inertia, share, *layers = leaves
    depth = len(layers) // 3
    base, added, surprise = (tuple(layers[i * depth : (i + 1) * depth]) for i in range(3))
    tokens = TitansTokens(keys, values, rate, log_kept, log_inertia)
    read, end = titans_scan(ScanMemory(base, added, surprise), queries, tokens, share, rule)
    return [read, *end.added, *end.surprise]


def with_gradients(inputs: list[Tensor], rule: ScanRule, native: bool) -> list[Tensor]:
    """What a scan makes, then the gradients of everything it is given."""
    leaves = [t.clone().requires_grad_() for t in inputs]
    with nullcontext() if native else torch_only():
        assert KERNEL.takes(*leaves) == native
        made = scan(leaves, rule)
        loss = sum(t.sin().sum() for t in made)
        assert isinstance(loss, Tensor)
        return [t.detach() for t in made] + list(torch.autograd.grad(loss, leaves))


@each_chunk
@each_width
@each_memory
def test_equals_the_form_of_torch(chunk: int, widths: list[int], recompute: bool) -> None:
    inputs, rule = draw(3, 192, widths), ScanRule(chunk, True, recompute)
    found, wanted = (with_gradients(inputs, rule, native) for native in (True, False))
    to_share = len(found) - len(inputs) + 6  # a sum that nearly cancels
    for i, (value, other) in enumerate(zip(found, wanted, strict=True)):
        assert value.dtype == torch.float32
        assert (value - other).norm() <= (50 if i == to_share else 1) * CLOSE * other.norm()


@each_chunk
def test_the_number_of_threads_changes_nothing(chunk: int, request: pytest.FixtureRequest) -> None:
    inputs, rule = draw(5, 128, SQUARE), ScanRule(chunk, True)
    found, before = [], torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            found.append(with_gradients(inputs, rule, True))
        finally:
            torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


@each_chunk
def test_rows_are_independent(chunk: int) -> None:
    inputs, rule = draw(4, 128, SQUARE), ScanRule(chunk, True)
    together = with_gradients(inputs, rule, True)
    alone = with_gradients([t[1:2] for t in inputs], rule, True)
    gates = range(len(alone) - len(inputs) + 3, len(alone) - len(inputs) + 7)
    for i, (value, wanted) in enumerate(zip(alone, together, strict=True)):
        if i not in gates:  # the scales are torch's, whose sums depend on how many there are
            assert torch.equal(value, wanted[1:2])


@pytest.mark.parametrize("native", [True, False], ids=["native", "torch"])
def test_the_way_back_is_that_of_the_way_there(native: bool) -> None:
    inputs, rule = draw(2, 96, MIXED), ScanRule(4, True, recompute=False)
    wanted = with_gradients(inputs, rule, native)[-len(inputs) :]
    leaves = [t.clone().requires_grad_() for t in inputs]
    there, back = (nullcontext(), torch_only()) if native else (torch_only(), nullcontext())
    with there:
        made = scan(leaves, rule)
    with back:
        loss = sum(t.sin().sum() for t in made)
        grads = torch.autograd.grad(loss, leaves)  # type: ignore[arg-type]
    assert all(map(torch.equal, grads, wanted))


def test_what_is_no_number_goes_on() -> None:
    inputs, rule = draw(2, 32, SQUARE), ScanRule(4, True)
    inputs[1][0, 3, 9] = float("nan")
    read, *end = (t for t in with_gradients(inputs, rule, True)[:5])
    assert read[0, :, :8].isfinite().all()
    assert read[0, :, 12:].isnan().all()
    assert all(t[0].isnan().all() and t[1].isfinite().all() for t in end)
    assert read[1].isfinite().all()


def test_without_gradients_the_same() -> None:
    inputs, rule = draw(2, 192, MIXED), ScanRule(16, True)
    wanted = with_gradients(inputs, rule, True)
    with torch.no_grad():
        assert all(map(torch.equal, scan(inputs, rule), wanted))


def test_sizes_that_do_not_fit_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, rule, asked = draw(2, 32, SQUARE), ScanRule(4, True), list[Any]()
    monkeypatch.setattr(titans_scan_file, "_takes", lambda *given: asked.append(given))
    scan(inputs, rule)
    ((plan, by_token, rest),) = asked
    assert _takes(plan, by_token, rest)
    assert not _takes(plan._replace(size=8), by_token, rest)
    assert not _takes(plan._replace(size=5), by_token, rest)
    for i in range(len(rest)):
        wrong = [*rest[:i], rest[i][..., :-1].contiguous(), *rest[i + 1 :]]
        assert not _takes(plan, by_token, wrong), i
    for i in range(3):
        cut = [t[..., :-4] if k == i else t for k, t in enumerate(by_token)]
        assert not _takes(plan, cut, rest), i
    assert not _takes(plan, [t[..., :0] for t in by_token], rest)
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="size"):
        scan([*inputs[:2], inputs[2][:, :-1], *inputs[3:]], rule)
