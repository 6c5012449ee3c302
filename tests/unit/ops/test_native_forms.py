"""Kernels against torch's operations at the sizes of models, and on several threads.

That both equal their token loops is tested where the loops are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nl.core.native import Kernel, cpp_compiler, torch_only
from nl.ops import fast_write_native, level_native
from nl.ops.fast_mlp import Activation, Bank, FastWeights, WriteRule, fast_mlp, in_force
from nl.ops.fast_write import WriteGroup, fast_mlp_write
from nl.ops.fast_write_native import _answers_native
from nl.ops.level import (
    LevelWeights,
    level_branch,
    level_gradients,
    level_hidden_signal,
    level_pull_back,
)
from nl.ops.selfmod_read import unit

pytestmark = pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler")

Run = Callable[[list[Tensor]], list[Tensor]]


@pytest.fixture(autouse=True)
def built(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("NL_NATIVE", "on")
    yield
    torch.set_num_threads(1)


def results(run: Run, inputs: list[Tensor]) -> list[Tensor]:
    """What ``run`` gives and the gradients of its inputs."""
    leaves = [t.clone().requires_grad_() for t in inputs]
    out = run(leaves)
    generator = torch.Generator().manual_seed(3)
    loss = sum((w * torch.randn(w.shape, generator=generator).to(w)).sum() for w in out)
    return [t.detach() for t in (*out, *torch.autograd.grad(loss, leaves))]


def compare(kernel: Kernel, run: Run, inputs: list[Tensor], tolerance: float = 2e-5) -> None:
    """The kernel is used, equals torch's form in float64, whatever the number of threads."""
    calls = []
    plain = kernel.run
    kernel.run = lambda *args: (calls.append(args[0]), plain(*args))  # type: ignore[method-assign]
    try:
        found = results(run, inputs)
        torch.set_num_threads(3)
        again = results(run, inputs)
        torch.set_num_threads(1)
    finally:
        del kernel.run
    assert len(set(calls)) >= 2, "forward and backward"
    with torch_only():
        wanted = results(run, [t.double() for t in inputs])
    for i, (one, more, exact) in enumerate(zip(found, again, wanted, strict=True)):
        assert torch.equal(one, more), i
        assert (one - exact).norm() <= tolerance * exact.norm().clamp(min=1e-3), i


RULES = [WriteRule(clip=1.0), WriteRule("gelu", output="delta"), WriteRule(output="decay")]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("size", [64, 37, 3])
@pytest.mark.parametrize("width", [64, 24])
def test_writes_of_fast_memories(rule: WriteRule, size: int, width: int) -> None:
    heads, rows = 2, 6
    shapes = [(rows, width, size), *[(rows, size)] * 3]
    banks = [(1, width, width, False), (2, width, width, True), (2, 1, 16, False)]
    for memories, outputs, hidden, _ in banks:
        first, second = (memories * hidden, width), (memories, outputs, hidden)
        shapes += [(heads, *first), (heads, *second), (rows, *first), (rows, *second)]
        shapes.append((rows, memories, outputs, size))
    inputs = [torch.randn(shape) / 8 for shape in shapes]
    inputs[0] = normalize(inputs[0], dim=1)
    inputs[1:4] = [
        torch.rand_like(inputs[1]) * 0.5,
        torch.rand_like(inputs[1]) * 0.05,
        -0.01 * torch.rand_like(inputs[1]),
    ]

    def run(leaves: list[Tensor]) -> list[Tensor]:
        keys, rate, slow, decay, *rest = leaves
        made = []
        for i, (*_, skip) in enumerate(banks):
            w2, w1, d2, d1, targets = rest[5 * i : 5 * i + 5]
            made.append(Bank(FastWeights(w2, w1), FastWeights(d2, d1), targets, skip))
        groups = [WriteGroup(rate, slow, made[:1]), WriteGroup(slow, None, made[1:])]
        return [t for bank in fast_mlp_write(groups, keys, decay, rule) for t in bank]

    compare(fast_write_native.KERNEL, run, inputs)


@pytest.mark.parametrize("name", ["silu", "gelu"])
@pytest.mark.parametrize("sizes", [(2, 64, 64, 64), (2, 5, 7, 5), (2, 16, 9, 1)], ids=str)
@pytest.mark.parametrize("norm", [True, False])
def test_answers_of_memories(name: Activation, sizes: tuple[int, ...], norm: bool) -> None:
    memories, width, units, outputs = sizes
    heads, rows, tokens = 2, 6, 19
    first, second = (memories * units, width), (memories, outputs, units)
    initial = FastWeights(torch.randn(heads, *first), torch.randn(heads, *second))
    added = FastWeights(torch.randn(rows, *first), torch.randn(rows, *second))
    x = torch.randn(rows, width, tokens)
    rule = WriteRule(name)
    found = _answers_native(initial, added, x, rule, True, norm)
    force = FastWeights(*(in_force(b, d) for b, d in zip(initial, added, strict=True)))
    wanted = fast_mlp(force, x.unsqueeze(1), name)
    wanted = unit(wanted) if norm else wanted
    assert found is not None
    assert (found - wanted).norm() <= 2e-6 * wanted.norm()
    torch.set_num_threads(3)
    assert torch.equal(found, _answers_native(initial, added, x, rule, True, norm))
    assert _answers_native(initial, added, x.requires_grad_(), rule, True, norm) is None
    with torch.no_grad(), torch_only():
        assert _answers_native(initial, added, x, rule, True, norm) is None


@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize("sizes", [(4, 64, 128, 90), (3, 9, 21, 40), (1, 130, 64, 16)], ids=str)
def test_levels(sizes: tuple[int, ...], written: bool) -> None:
    rows, tokens, width, hidden = sizes
    shapes = [(rows, tokens, width), (hidden, width), (width, hidden)]
    shapes += [(rows, hidden, width), (rows, width, hidden), (), (1,)] if written else []
    inputs = [torch.randn(shape) / 4 for shape in shapes]

    def weights(leaves: list[Tensor]) -> LevelWeights:
        up, down, *fast = leaves
        if fast:
            return LevelWeights(up, down, *fast)
        return LevelWeights(up, down, None, None, up.new_ones(()), up.new_ones(()))

    compare(
        level_native.KERNEL,
        lambda leaves: list(level_branch(leaves[0], weights(leaves[1:]))),
        inputs,
    )
    x, signal = inputs[0], torch.randn(rows, tokens, width)
    w = weights(inputs[1:])

    def signals() -> list[Tensor]:
        _, z = level_branch(x, w)
        hidden_signal = level_hidden_signal(z, signal, w)
        pulled = level_pull_back(x, signal, hidden_signal, w)
        return [hidden_signal, pulled, *level_gradients(x, z, signal, hidden_signal)]

    found = signals()
    with torch_only():
        wanted = signals()
    for ours, torchs in zip(found, wanted, strict=True):
        assert (ours - torchs).norm() <= 2e-6 * torchs.norm()


def test_what_is_not_finite_shows() -> None:
    """A kernel hides neither what overflows nor what is no number."""
    x = torch.randn(2, 16, 8)
    x[0, 3, 1] = float("nan")
    w = LevelWeights(
        torch.randn(12, 8), torch.randn(8, 12), None, None, torch.ones(()), torch.ones(())
    )
    y, z = level_branch(x, w)
    assert y[0, 3].isnan().all()
    assert z[0, 3].isnan().all()
    assert y[0, 4:].isfinite().all()
    assert y[1].isfinite().all(), "rows are apart"
    huge, _ = level_branch(x, w._replace(down=torch.full((8, 12), 3e38)))
    assert not huge[1].isfinite().all()


def test_sizes_that_do_not_fit_are_refused_by_torch() -> None:
    x, one = torch.randn(2, 16, 8), torch.ones(())
    up, down = torch.randn(12, 8), torch.randn(8, 12)
    for wrong in (
        LevelWeights(up, down[:, 1:], None, None, one, one),
        LevelWeights(up, down, torch.randn(3, 12, 8), None, one, one),
        LevelWeights(up[:, 1:], down, None, None, one, one),
    ):
        with pytest.raises(RuntimeError, match=r"size|shape|match"):
            level_branch(x, wrong)
    keys, rate = torch.randn(2, 8, 16), torch.rand(2, 16)
    first, second = torch.randn(2, 6, 8), torch.randn(2, 1, 8, 6)
    bank = Bank(
        FastWeights(first, second), FastWeights(first, second), torch.randn(2, 1, 8, 15), True
    )
    with pytest.raises(RuntimeError, match=r"size|shape|match"):
        fast_mlp_write([WriteGroup(rate, None, [bank])], keys, -rate, WriteRule())
