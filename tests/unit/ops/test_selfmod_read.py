"""Reading of a self-modifying memory and its backward pass against the token loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from nl.core.native import torch_only
from nl.ops.selfmod_native import KERNEL
from nl.ops.selfmod_read import (
    Banks,
    ReadInputs,
    selfmod_read,
    selfmod_read_reference,
    unit,
)

HEADS, ROWS, K, F, GATE_F = 2, 3, 4, 6, 3
N, D = HEADS * ROWS, HEADS * K
EXACT = 1e-11

CASES: list[dict[str, Any]] = [
    {},
    {"width": 1},
    {"width": 0},
    {"makers": 3},
    {"makers": 3, "width": 0, "skip": True},
    {"activation": "gelu", "skip": True},
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(params=["kernel", "torch"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In C++, which must really run, and in torch."""
    if request.param == "torch":
        with torch_only():
            yield
        return
    if KERNEL.library() is None:
        pytest.skip("no kernel: no C++ compiler, or NL_NATIVE=off")
    calls: list[str] = []
    run = KERNEL.run

    def note(function: str, *rest: Any) -> None:
        calls.append(function)
        run(function, *rest)

    monkeypatch.setattr(KERNEL, "run", note)
    yield
    assert {"read_forward", "read_backward"} <= set(calls)


both_forms = pytest.mark.usefixtures("form")


def draw(length: int, makers: int = 2, width: int = 3, **_: Any) -> list[Tensor]:
    """Projections, taps (none at width 0), logits and the twelve tensors of the banks; float64."""
    shapes: list[tuple[int, ...]] = [(ROWS, length + max(width, 1) - 1, 4 * D)]
    shapes += [(width, 3 * D)] if width else []
    shapes += [(N, 2, length)]
    for lead in (HEADS, N):
        for count, outputs in ((1, K), (makers, K), (2, 1)):
            hidden = GATE_F if outputs == 1 else F
            shapes += [(lead, count * hidden, K), (lead, count, outputs, hidden)]
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(*s, generator=generator, dtype=torch.float64) * 0.7 for s in shapes]


def run(read: Any, leaves: list[Tensor], case: dict[str, Any]) -> tuple[Tensor, ...]:
    padded, *rest = leaves
    taps = rest.pop(0) if case.get("width", 3) else None
    logits, *six = rest
    inputs = ReadInputs(padded, taps, logits)
    name, skip = case.get("activation", "silu"), case.get("skip", False)
    found: tuple[Tensor, ...] = read(inputs, Banks.of(six[:6]), Banks.of(six[6:]), name, skip)
    return found


@both_forms
@each_case
@pytest.mark.parametrize("length", [1, 2, 7])
def test_read_equals_the_token_loop(case: dict[str, Any], length: int) -> None:
    results = []
    for read in (selfmod_read, selfmod_read_reference):
        leaves = [t.requires_grad_() for t in draw(length, **case)]
        out = run(read, leaves, case)
        generator = torch.Generator().manual_seed(3)
        loss = sum((y * torch.randn(y.shape, generator=generator).double()).sum() for y in out)
        results.append([*out, *torch.autograd.grad(loss, leaves)])
    for value, wanted in zip(*results, strict=True):
        assert value.shape == wanted.shape
        assert (value - wanted).norm() <= EXACT * wanted.norm().clamp(min=1)


@both_forms
@each_case
def test_the_backward_pass_is_that_of_the_forward_pass(case: dict[str, Any]) -> None:
    leaves = [t.requires_grad_() for t in draw(3, **case)]
    assert torch.autograd.gradcheck(
        lambda *given: run(selfmod_read, list(given), case), leaves, fast_mode=True
    )


@pytest.mark.parametrize("where", ["forward", "everywhere"])
def test_half_precision_stays_close_and_units_stay_single(where: str) -> None:
    drawn = [t.float() for t in draw(16)]
    results = []
    for half in (False, True):
        leaves = [t.clone().requires_grad_() for t in drawn]
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found = run(selfmod_read, leaves, {})
            loss = sum(
                (y.float() * torch.linspace(-1, 1, y[0].numel()).view_as(y[0])).sum() for y in found
            )
            if where == "everywhere":
                grads = torch.autograd.grad(loss, leaves)
        if where == "forward":
            grads = torch.autograd.grad(loss, leaves)
        kinds = [y.dtype for y in found]
        assert kinds == [torch.float32] * 4 + [torch.bfloat16 if half else torch.float32]
        results.append([*found, *grads])
    for wanted, value in zip(*results, strict=True):
        assert (value.float() - wanted).norm() < 0.05 * wanted.norm()


def test_a_unit_of_nothing_is_nothing() -> None:
    x = torch.zeros(2, K, 3, requires_grad=True)
    assert unit(x).abs().max() == 0
    (grad,) = torch.autograd.grad(unit(x).sum(), x)
    assert torch.isfinite(grad).all()
