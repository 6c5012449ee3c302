"""Fast operations against their naive twins: values and gradients in float64."""

from __future__ import annotations

import pytest
import torch

from nl.core.batch import IGNORE
from nl.ops.attention import causal_attention, causal_attention_reference
from nl.ops.level import (
    LevelForm,
    LevelWeights,
    level_branch,
    level_branch_reference,
    level_gradients,
    level_gradients_reference,
    level_hidden_signal,
    level_pull_back,
    level_read,
)
from nl.ops.losses import (
    differentiable_cross_entropy,
    linear_cross_entropy,
    linear_cross_entropy_reference,
    teach_signal,
)
from nl.ops.rotary import apply_rotary, apply_rotary_reference, rotary_table

pytestmark = pytest.mark.usefixtures("done_by")

DOUBLE = {"dtype": torch.float64}


@pytest.mark.parametrize(("new", "past"), [(1, 0), (1, 7), (5, 0), (5, 3), (6, 11)])
def test_attention(new: int, past: int) -> None:
    q, k, v = (
        torch.randn(2, 3, n, 4, **DOUBLE, requires_grad=True) for n in (new, new + past, new + past)
    )
    fast, slow = causal_attention(q, k, v), causal_attention_reference(q, k, v)
    assert torch.allclose(fast, slow, atol=1e-12)
    weight = torch.randn_like(fast)
    for a, b in zip(
        torch.autograd.grad((fast * weight).sum(), (q, k, v)),
        torch.autograd.grad((slow * weight).sum(), (q, k, v)),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-12)


def test_rotary() -> None:
    x = torch.randn(2, 5, 3, 8, **DOUBLE)
    cos, sin = rotary_table(11, 5, 8, 10000.0, x.device, x.dtype)
    assert torch.allclose(apply_rotary(x, cos, sin), apply_rotary_reference(x, cos, sin))
    # The product of a query and a key depends on their distance only.
    far = rotary_table(1_000_011, 5, 8, 10000.0, x.device, x.dtype)
    near = apply_rotary(x, cos, sin)
    away = apply_rotary(x, *far)
    assert torch.allclose(near[:, 0] @ near[:, 3].mT, away[:, 0] @ away[:, 3].mT, atol=1e-9)


def test_linear_cross_entropy() -> None:
    hidden = torch.randn(7, 5, **DOUBLE, requires_grad=True)
    weight = torch.randn(11, 5, **DOUBLE, requires_grad=True)
    target = torch.tensor([0, 10, IGNORE, 3, 3, IGNORE, 7])
    fast, slow = (
        f(hidden, weight, target) for f in (linear_cross_entropy, linear_cross_entropy_reference)
    )
    for a, b in zip(fast, slow, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    assert not fast[1].requires_grad
    assert not fast[1][2].any()
    scale = torch.randn(7, **DOUBLE)
    for a, b in zip(
        torch.autograd.grad((fast[0] * scale).sum(), (hidden, weight)),
        torch.autograd.grad((slow[0] * scale).sum(), (hidden, weight)),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-12)
    assert torch.allclose(teach_signal(slow[2], weight.detach(), target), slow[1], atol=1e-12)


def test_differentiable_cross_entropy() -> None:
    hidden = torch.randn(5, 4, **DOUBLE, requires_grad=True)
    weight = torch.randn(6, 4, **DOUBLE, requires_grad=True)
    target = torch.tensor([0, 5, IGNORE, 3, 3])
    fast, slow = (
        f(hidden, weight, target)
        for f in (differentiable_cross_entropy, linear_cross_entropy_reference)
    )
    for a, b in zip(fast, slow, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda h, w: differentiable_cross_entropy(h, w, target)[:2], (hidden, weight)
    )


def test_linear_cross_entropy_survives_huge_logits() -> None:
    hidden = torch.full((2, 3), 1e4, requires_grad=True)
    weight = torch.tensor([[1e3, 0, 0], [-1e3, 0, 0]], requires_grad=True)
    nll, signal, _ = linear_cross_entropy(hidden, weight, torch.tensor([0, 1]))
    nll.sum().backward()
    assert torch.isfinite(signal).all()
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()


FORMS = {
    "silu": LevelForm(),
    "swiglu": LevelForm("swiglu", eps=1e-3),
    "gelu, layer norm": LevelForm("gelu", "layer", 1e-2),
    "gelu_tanh": LevelForm("gelu_tanh"),
}


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("T", [6, 19])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_level_write_gradients(written: bool, T: int, form: LevelForm) -> None:
    B, D, H = 3, 5, 7
    F = 2 * H if form.activation == "swiglu" else H
    fast = (
        (torch.randn(B, F, D, **DOUBLE), torch.randn(B, D, H, **DOUBLE))
        if written
        else (None, None)
    )
    rates = torch.tensor(0.3, **DOUBLE), torch.tensor(0.2, **DOUBLE)
    meta = torch.randn(F, D, **DOUBLE), torch.randn(D, H, **DOUBLE)
    w = LevelWeights(*meta, *fast, *rates, form=form)
    x, signal = torch.randn(B, T, D, **DOUBLE), torch.randn(B, T, D, **DOUBLE)
    _, z = level_read(x, w)
    hidden_signal = level_hidden_signal(z, signal, w)
    up = w.up - (rates[0] * fast[0] if fast[0] is not None else torch.zeros(B, F, D, **DOUBLE))
    down = w.down - (rates[1] * fast[1] if fast[1] is not None else torch.zeros(B, D, H, **DOUBLE))
    expected = level_gradients_reference(x, signal, up, down, form)
    found = (
        *level_gradients(x, z, signal, hidden_signal, form),
        level_pull_back(x, signal, hidden_signal, w),
    )
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def level_inputs(
    memory: str | None, T: int, form: LevelForm = FORMS["silu"], bias: bool = False
) -> list[torch.Tensor | None]:
    """x, then the weights of a level whose memory is None, of each row, or shared; float64."""
    B, D, H = 3, 5, 7
    F = 2 * H if form.activation == "swiglu" else H
    lead = {None: None, "rows": (B,), "shared": ()}[memory]
    fast = [None, None] if lead is None else [(*lead, F, D), (*lead, D, H)]
    shapes = [(B, T, D), (F, D), (D, H), *fast, (), ()]
    shapes += [(F,), (D,)] if bias else []
    return [None if s is None else torch.randn(s, **DOUBLE, requires_grad=True) for s in shapes]


@pytest.mark.parametrize("memory", [None, "rows", "shared"])
@pytest.mark.parametrize("T", [1, 3, 11])
@pytest.mark.parametrize("used", ["both", "branch", "pre-activation"])
def test_level_branch(memory: str | None, T: int, used: str) -> None:
    same_branch(level_inputs(memory, T), FORMS["silu"], used)


@pytest.mark.parametrize("memory", [None, "rows"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("bias", [False, True])
def test_level_branch_of_other_forms(memory: str | None, form: LevelForm, bias: bool) -> None:
    same_branch(level_inputs(memory, 9, form, bias), form, "both")


@pytest.mark.parametrize("memory", [None, "rows"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_level_branch_of_gated_units(memory: str | None, form: LevelForm) -> None:
    given = level_inputs(memory, 9, form)
    gate = torch.rand(len(given[0]), 9, given[2].shape[1], **DOUBLE)
    gate = gate * (torch.rand_like(gate[..., :1]) > 0.3)
    same_branch(given, form, "both", gate.requires_grad_())


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_writes_of_gated_units_are_gradients(form: LevelForm) -> None:
    x, up, down, *_ = level_inputs(None, 9, form)
    gate = torch.rand(len(x), 9, down.shape[1], **DOUBLE).round()
    signal = torch.randn_like(x)
    w = LevelWeights(up, down, None, None, *torch.ones(2, **DOUBLE), form=form)
    y, z = level_branch(x, w, gate)
    e = level_hidden_signal(z, signal, w, gate)
    ours = level_gradients(x, z, signal, e, form, gate)
    naive = torch.autograd.grad((y * signal).sum(), [up, down, x])
    for a, b in zip(ours, naive, strict=False):
        assert torch.allclose(a.sum(0), b, atol=1e-12)
    assert torch.allclose(level_pull_back(x, signal, e, w), naive[2] + signal, atol=1e-12)


def same_branch(
    given: list[torch.Tensor | None],
    form: LevelForm,
    used: str,
    gate: torch.Tensor | None = None,
) -> None:
    """Values and gradients of the fast and the plain way."""
    leaves = [t for t in (*given, gate) if t is not None]
    results = []
    for branch in (level_branch, level_branch_reference):
        weights = LevelWeights(*given[1:])._replace(form=form)
        y, z = branch(given[0], weights, gate)
        generator = torch.Generator().manual_seed(3)
        parts = {"both": (y, z), "branch": (y,), "pre-activation": (z,)}[used]
        mix = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parts]
        loss = sum((p * m).sum() for p, m in zip(parts, mix, strict=True))
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        pairs = zip(grads, leaves, strict=True)
        results.append([y, z, *(torch.zeros_like(t) if g is None else g for g, t in pairs)])
    for fast, slow in zip(*results, strict=True):
        assert torch.allclose(fast, slow, atol=1e-12)


@pytest.mark.parametrize("memory", [None, "rows"])
def test_level_branch_keeps_its_input_and_pre_activation(memory: str | None) -> None:
    given = level_inputs(memory, 11)
    kept: set[int] = set()

    def note(t: torch.Tensor) -> torch.Tensor:
        kept.add(t.data_ptr())
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        _, z = level_branch(given[0], LevelWeights(*given[1:]))
    assert kept == {t.data_ptr() for t in (*given, z) if t is not None}


def test_level_branch_in_half_precision() -> None:
    given = [None if t is None else t.detach().float() for t in level_inputs("rows", 16)]
    wanted, _ = level_branch_reference(given[0], LevelWeights(*given[1:]))
    leaf = given[0].clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y, z = level_branch(leaf, LevelWeights(*given[1:]))
    assert y.dtype == z.dtype == torch.bfloat16
    assert (y.float() - wanted).norm() < 0.02 * wanted.norm()
    y.float().sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.float32
    assert torch.isfinite(leaf.grad).all()
