"""A chain of levels in one piece, against its levels one by one and rows one by one."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import nl.ops.level_chain as level_chain_file
from nl.core.native import torch_only
from nl.ops import level_chain_native
from nl.ops.level import Again, LevelForm
from nl.ops.level_chain import (
    ChainForm,
    Link,
    LinkSignals,
    LinkTokens,
    Moves,
    level_chain,
    level_chain_reference,
    level_chain_signals,
    level_chain_signals_reference,
    level_moves,
    level_moves_reference,
)
from tests.unit.ops.twins import EXACT, assert_twins

pytestmark = pytest.mark.usefixtures("done_by")

B, T, D, F, LEVELS = 3, 11, 5, 7, 3
CHAIN = ChainForm(LevelForm(), (0.5, 0.25))
written = pytest.mark.parametrize("written", [True, False], ids=["written", "fresh"])


def draw(written: bool, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x, then five or three tensors per level."""
    generator = torch.Generator().manual_seed(2)
    shapes = [(F, D), (D, F), *([(B, F, D), (B, D, F)] if written else []), (2,)]
    return [
        torch.randn(shape, generator=generator, dtype=dtype) / 2
        for shape in [(B, T, D), *shapes * LEVELS]
    ]


def links(tensors: list[Tensor]) -> list[Link]:
    each = len(tensors) // LEVELS
    found = []
    for k in range(LEVELS):
        up, down, *fast, log_rates = tensors[k * each : (k + 1) * each]
        found.append(Link(up, down, *(fast or (None, None)), log_rates))
    return found


@written
def test_reading_a_chain(written: bool, done_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[str]()
    run = level_chain_native.KERNEL.run

    def counted(name: str, *given: Any) -> None:
        calls.append(name)
        run(name, *given)

    monkeypatch.setattr(level_chain_native.KERNEL, "run", counted)

    def read(leaves: list[Tensor], loop: bool) -> list[Tensor]:
        chain = links(leaves[1:])
        found = (
            level_chain_reference(leaves[0], chain, CHAIN)
            if loop
            else level_chain(leaves[0], chain, CHAIN, [None] * LEVELS)
        )
        out, tokens = found
        assert not any(t.requires_grad for pair in tokens for t in pair)
        assert torch.equal(tokens[0][0], leaves[0])
        return [out, *(t for pair in tokens for t in pair)]

    assert_twins(read, draw(written))
    assert set(calls) == ({"chain", "chain_back"} if done_by == "native" else set())


def test_a_chain_is_differentiable() -> None:
    leaves = [t.requires_grad_() for t in draw(True)]

    def out(*given: Tensor) -> Tensor:
        return level_chain(given[0], links(list(given[1:])), CHAIN, [None] * LEVELS)[0]

    assert torch.autograd.gradcheck(out, leaves)


def test_fast_weights_are_made_again() -> None:
    inputs, made = draw(True), list[int]()
    halves = [[t / 2 for t in link[2:4]] for link in links(inputs[1:]) if link[2] is not None]

    def make(k: int) -> Callable[[Any], Any]:
        def doubled(saved: Any) -> Any:
            made.append(k)
            return saved[0] * 2, saved[1] * 2

        return doubled

    again = [Again(tuple(halves[k]), make(k)) if k != 1 else None for k in range(LEVELS)]
    grads = []
    for given in (again, [None] * LEVELS):
        leaves = [t.clone() for t in inputs]
        chain = links(leaves[1:])
        wanted = [leaves[0], *(t for link in chain for t in (link.up, link.down, link.log_rates))]
        for leaf in wanted:
            leaf.requires_grad_()
        out, _ = level_chain(leaves[0], chain, CHAIN, given)
        grads.append(torch.autograd.grad(out.sin().sum(), wanted))
    assert sorted(made) == [0, 2]
    assert all(map(torch.equal, *grads))


def flat(told: list[LinkSignals]) -> list[Tensor]:
    return [t for one in told for t in (one.signal, one.hidden_signal, *(one.sums or ()))]


@written
@pytest.mark.parametrize("wanted", list(itertools.product([True, False], repeat=LEVELS)), ids=str)
def test_signals_of_a_chain(written: bool, wanted: tuple[bool, ...]) -> None:
    inputs = draw(written)
    chain = links(inputs[1:])
    with torch.no_grad():
        _, tokens = level_chain(inputs[0], chain, CHAIN, [None] * LEVELS)
    signal = torch.randn_like(inputs[0])
    sums = (torch.randn(B, F, D).double(), torch.randn(B, D, F).double())
    parts = [
        LinkTokens(chain[k], *tokens[k], wanted[k], sums if k else None)
        for k in reversed(range(LEVELS))
    ]
    with torch.no_grad():
        found = flat(level_chain_signals(signal, parts, CHAIN))
    exact = flat(level_chain_signals_reference(signal, parts, CHAIN))
    for one, other in zip(found, exact, strict=True):
        assert (one - other).norm() <= EXACT * other.norm()
    with torch.no_grad():
        assert level_chain_signals(signal, [], CHAIN) == []


@pytest.mark.parametrize("clip", [0.0, 0.1, 5.0])
def test_how_rows_take_a_write(clip: float) -> None:
    link = links(draw(True)[1:])[0]
    sums = torch.randn(B, F, D).double(), torch.randn(B, D, F).double()
    for s in sums:
        s[1] = 0
    sums[0][2] = 0
    found = level_moves(sums, link, CHAIN, 0.1, clip)
    exact = level_moves_reference(sums, link, CHAIN, 0.1, clip)
    for name, one, other in zip(Moves._fields, found, exact, strict=True):
        assert one.shape == (B, 1, 1)
        assert torch.allclose(one, other, rtol=1e-12), name
    assert found.kept[1] == 1
    assert found.shrink_up[1] == found.shrink_down[1] == 0


def test_no_number_in_a_signal_shows() -> None:
    link = links(draw(True)[1:])[0]
    sums = torch.randn(B, F, D).double(), torch.randn(B, D, F).double()
    sums[0][2, 1, 1] = float("nan")
    found = level_moves(sums, link, CHAIN, 0.1, 0.1)
    assert found.shrink_up[2].isnan()
    assert all(factor[:2].isfinite().all() for factor in found)


def test_single_precision_and_threads(done_by: str) -> None:
    inputs = draw(True, torch.float32)

    def run(leaves: list[Tensor]) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in leaves]
        chain = links(leaves[1:])
        out, tokens = level_chain(leaves[0], chain, CHAIN, [None] * LEVELS)
        with torch.no_grad():
            parts = [
                LinkTokens(link, *pair, True, None)
                for link, pair in zip(chain[::-1], tokens[::-1], strict=True)
            ]
            told = level_chain_signals(out, parts, CHAIN)
        return [out.detach(), *flat(told), *torch.autograd.grad(out.sin().sum(), leaves)]

    found = run(inputs)
    torch.set_num_threads(3)
    try:
        again = run(inputs)
    finally:
        torch.set_num_threads(1)
    with torch_only():
        wanted = run([t.double() for t in inputs])
    for one, other, exact in zip(found, again, wanted, strict=True):
        assert one.dtype == torch.float32
        assert done_by == "torch" or torch.equal(one, other)
        assert (one - exact).norm() <= 2e-6 * exact.norm()


def test_what_does_not_fit_is_left_to_torch() -> None:
    x, *rest = draw(True)
    chain = links(rest)

    def refused(k: int, name: str, t: Tensor) -> None:
        wrong = [*chain[:k], chain[k]._replace(**{name: t}), *chain[k + 1 :]]
        with pytest.raises(RuntimeError, match=r"size|shape|match"):
            level_chain(x, wrong, CHAIN, [None] * LEVELS)

    refused(1, "up", chain[1].up[:, 1:])
    refused(2, "down", chain[2].down[1:])
    refused(0, "fast_up", rest[2][:2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        single = links([t.float() for t in rest])
        out, _ = level_chain(x.float(), single, CHAIN, [None] * LEVELS)
    exact = level_chain_reference(x, chain, CHAIN)[0]
    assert 1e-4 < (out - exact).norm() / exact.norm() < 0.02
    gelu = ChainForm(LevelForm("gelu"), CHAIN.scales)
    found, exact = (
        level_chain(x, chain, gelu, [None] * LEVELS)[0],
        level_chain_reference(x, chain, gelu)[0],
    )
    assert torch.allclose(found, exact)


def test_a_model_changed_after_its_forward_pass() -> None:
    """What is saved no longer is what the kernel took: torch does it, or says what is wrong."""

    def read() -> tuple[Tensor, list[Tensor]]:
        leaves = [t.float().requires_grad_() for t in draw(True)]
        return level_chain(leaves[0], links(leaves[1:]), CHAIN, [None] * LEVELS)[0], leaves

    out, leaves = read()
    (wanted,) = torch.autograd.grad(out.sum(), leaves[0])
    out, leaves = read()
    for leaf in leaves[1:]:
        leaf.data = leaf.data.double()
    (found,) = torch.autograd.grad(out.sum(), leaves[0])
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()
    out, leaves = read()
    leaves[1].data = leaves[1].data[:2]
    with pytest.raises(RuntimeError):
        torch.autograd.grad(out.sum(), leaves[0])


def test_the_way_back_by_torch_and_level_by_level(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = [t.requires_grad_() for t in draw(True)]

    def gradients(back: Any) -> tuple[Tensor, ...]:
        out, _ = level_chain(leaves[0], links(leaves[1:]), CHAIN, [None] * LEVELS)
        with back:
            return torch.autograd.grad(out.sin().sum(), leaves)

    wanted = gradients(contextlib.nullcontext())
    by_torch = gradients(torch_only())
    assert all(map(torch.allclose, by_torch, wanted))
    for numbers in (1, B * 2 * F * D * 2):  # one level at a time, and two
        monkeypatch.setattr(level_chain_file, "AT_ONCE", numbers)
        assert all(map(torch.equal, gradients(contextlib.nullcontext()), wanted))
