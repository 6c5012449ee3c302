"""The kernel that reads self-modifying memories against torch: what is equal, what it promises."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from nl.core.native import torch_only
from nl.core.program import compiled
from nl.ops import selfmod_read as reading
from nl.ops.selfmod_native import KERNEL
from nl.ops.selfmod_read import Banks, ReadInputs, selfmod_read

CLOSE = 2e-5
HEADS, BATCH, K, F, MAKER_F, GATE_F = 2, 3, 20, 37, 18, 5


class Case(NamedTuple):
    tokens: int = 21
    makers: int = 2
    width: int = 4
    activation: str = "silu"
    skip: bool = True


OPTIONS = [
    Case(*options)
    for options in itertools.product([1, 5, 64], [2, 3], [0, 1, 4], ["silu", "gelu"], [False, True])
]


@pytest.fixture(autouse=True)
def _kernel() -> None:
    if KERNEL.library() is None:
        pytest.skip("no kernel: no C++ compiler, or NL_NATIVE=off")


def draw(case: Case, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Leaves: projections, taps (none at width 0), logits, twelve tensors of banks."""
    rows, width = BATCH * HEADS, HEADS * K
    shapes: list[tuple[int, ...]] = [(BATCH, case.tokens + max(case.width, 1) - 1, 4 * width)]
    shapes += [(case.width, 3 * width)] if case.width else []
    shapes += [(rows, 2, case.tokens)]
    for lead in (HEADS, rows):
        for count, units, outputs in ((1, F, K), (case.makers, MAKER_F, K), (2, GATE_F, 1)):
            shapes += [(lead, count * units, K), (lead, count, outputs, units)]
    generator = torch.Generator().manual_seed(case.tokens)
    return [torch.randn(*s, generator=generator, dtype=dtype) * 0.4 for s in shapes]


def within_longer(x: Tensor) -> Tensor:
    """The same numbers as a piece of a tensor that is longer along every dimension."""
    piece = torch.full([size + 3 for size in x.shape], torch.nan, dtype=x.dtype)
    for side, size in enumerate(x.shape):
        piece = piece.narrow(side, 2, size)
    return piece.copy_(x)


def outputs_of(leaves: list[Tensor], case: Case) -> tuple[Tensor, ...]:
    padded, *rest = leaves
    taps = rest.pop(0) if case.width else None
    logits, *six = rest
    inputs = ReadInputs(padded, taps, logits)
    name: Any = case.activation
    return selfmod_read(inputs, Banks.of(six[:6]), Banks.of(six[6:]), name, case.skip)


def results(tensors: list[Tensor], case: Case, pieces: bool = False) -> list[Tensor]:
    """Outputs, then the gradients of the leaves."""
    change = within_longer if pieces else Tensor.clone
    leaves = [change(t).requires_grad_() for t in tensors]
    out = outputs_of(leaves, case)
    generator = torch.Generator().manual_seed(3)
    grads = [change(torch.randn(y.shape, generator=generator).to(y.dtype)) for y in out]
    return [*out, *torch.autograd.grad(out, leaves, grads)]


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the kernel's functions as they are called."""
    calls: list[str] = []
    run = KERNEL.run

    def note(function: str, *rest: Any) -> None:
        calls.append(function)
        run(function, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(KERNEL, "run", note)
        yield calls


@pytest.mark.parametrize("case", OPTIONS, ids=str)
def test_the_kernel_gives_what_torch_gives(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = draw(case)
    with counted(monkeypatch) as calls:
        found = results(tensors, case)
        parts = results(tensors, case, pieces=True)
    assert calls == ["read_forward", "read_backward"] * 2
    with counted(monkeypatch) as calls, torch_only():
        expected = results(tensors, case)
    assert not calls
    for i, (value, part, wanted) in enumerate(zip(found, parts, expected, strict=True)):
        assert value.shape == wanted.shape, i
        assert (value - wanted).norm() <= CLOSE * wanted.norm().clamp(min=0.1), i
        assert torch.equal(value, part), i


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_any_number_of_threads_gives_the_same(activation: str) -> None:
    case = Case(activation=activation)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            found.append(results(draw(case), case))
    finally:
        torch.set_num_threads(threads)
    for one, two, four in zip(*found, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, four)


def test_rows_do_not_see_each_other() -> None:
    case = Case()
    tensors = draw(case)
    whole = results(tensors, case)
    rows = slice(HEADS, 2 * HEADS)
    alone = [tensors[0][1:2], tensors[1], tensors[2][rows], *tensors[3:9]]
    alone += [t[rows] for t in tensors[9:]]
    generator = torch.Generator().manual_seed(3)
    leaves = [t.clone().requires_grad_() for t in alone]
    out = outputs_of(leaves, case)
    grads = [torch.randn(y.shape, generator=generator)[rows] for y in whole[:5]]
    found = [*out, *torch.autograd.grad(out, leaves, grads)]
    for i in (0, 1, 2, 3, 4, 7, *range(14, 20)):
        assert torch.equal(found[i], whole[i][rows]), i
    assert torch.equal(found[5], whole[5][1:2])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_seen(bad: float) -> None:
    case = Case()
    tensors = draw(case)
    tensors[0][1, 9] = bad
    found = results(tensors, case)
    with torch_only():
        expected = results(tensors, case)
    for i, (value, wanted) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(value.isfinite(), wanted.isfinite()), i


def test_gates_far_from_zero_keep_their_precision() -> None:
    case = Case(tokens=8)
    tensors = draw(case)
    tensors[2][:] = torch.tensor([-80.0, -60, -20, -1, 15, 19.9, 20.1, 80])
    found = results(tensors, case)
    with torch_only():
        expected = results(tensors, case)
    for i in (2, 3, 7):
        torch.testing.assert_close(found[i], expected[i], rtol=2e-5, atol=0)
    assert (found[3] < 0).all()


@pytest.mark.parametrize("which", [0, 2, 4])
def test_tensors_of_several_dtypes_are_for_torch(
    which: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case()
    tensors = draw(case)
    tensors[which] = tensors[which].double()
    with counted(monkeypatch) as calls, torch.no_grad():
        outputs_of(tensors, case)
        with torch.autocast("cpu", torch.bfloat16):
            outputs_of(draw(case), case)
    assert not calls


def test_sizes_that_do_not_fit_are_for_torch_to_refuse() -> None:
    case = Case()
    for i, t in enumerate(draw(case)):
        tensors = draw(case)
        tensors[i] = t[..., :-1]
        with pytest.raises(RuntimeError, match=r"size|shape|invalid"):
            outputs_of(tensors, case)


def test_a_backward_pass_is_of_the_same_form_as_its_forward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case()
    for first, second in ((torch_only, nullcontext), (nullcontext, torch_only)):
        leaves = [t.requires_grad_() for t in draw(case)]
        with counted(monkeypatch) as calls:
            with first():
                out = outputs_of(leaves, case)
            with second():
                torch.autograd.grad(out[0].sum(), leaves)
        assert calls == ([] if first is torch_only else ["read_forward", "read_backward"])


def test_the_kernel_comes_before_compiled_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tokens=16)
    before = set(reading._recalled.variants)
    with counted(monkeypatch) as calls, compiled("eager"):
        results(draw(case), case)
    assert calls == ["read_forward", "read_backward"]
    assert reading._recalled.variants == before
