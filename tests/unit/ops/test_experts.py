"""Experts: sorted, padded and looped products equal the weights of every token gathered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nl.ops import experts
from nl.ops.experts import (
    ExpertWeights,
    grouped_experts,
    has_grouped_mm,
    looped_experts,
    padded_experts,
    sort_by_expert,
    sparse_experts,
    sparse_experts_reference,
)

FORMS = (padded_experts, looped_experts, grouped_experts)


def case(
    dtype: torch.dtype, activation: Any = "relu", width: int = 6, dim: int = 10
) -> tuple[Tensor, Tensor, Tensor, ExpertWeights]:
    """40 tokens of 7 experts, 3 slots; expert 6 is never asked, some slots ask nobody."""
    generator = torch.Generator().manual_seed(width)

    def draw(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        return values.to(dtype).requires_grad_()

    halves = 2 if activation == "swiglu" else 1
    ids = torch.stack([torch.randperm(6, generator=generator)[:3] for _ in range(40)])
    ids[::4, 2], ids[5] = 7, 7
    w = ExpertWeights(draw(7, dim, halves * width), draw(7, width, dim), activation)
    return draw(40, dim), ids, draw(40, 3), w


def found(form: Callable[..., Tensor], x: Tensor, gates: Tensor, w: ExpertWeights) -> list[Tensor]:
    """The output and its gradients in tokens, gates and weights."""
    y = form()
    # An expanded gradient, as a sum gives it: grouped products refuse it.
    weight = torch.linspace(-1, 1, y.shape[1], dtype=y.dtype).expand_as(y)
    return [y, *torch.autograd.grad((y * weight).sum(), [x, gates, w.up, w.down])]


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu", "swiglu"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dim", "width"), [(10, 6), (8, 4), (12, 3)])
def test_every_form_equals_the_gathered_weights(
    form: Any, activation: str, dim: int, width: int
) -> None:
    low = form is grouped_experts
    if low and not has_grouped_mm("cpu", torch.float32):
        pytest.skip("no grouped products")
    x, ids, gates, w = case(torch.float32 if low else torch.float64, activation, width, dim)
    order = sort_by_expert(ids, 7, partial=True)
    ours = found(lambda: form(x, gates, order, w), x, gates, w)
    naive = found(lambda: sparse_experts_reference(x, ids, gates, w, partial=True), x, gates, w)
    for a, b in zip(ours, naive, strict=True):
        torch.testing.assert_close(a, b, **({"rtol": 1e-4, "atol": 1e-4} if low else {}))
    assert not ours[0][5].any()
    assert not ours[3][6].any()


@pytest.mark.parametrize("form", FORMS)
def test_a_token_does_not_see_the_others(form: Any) -> None:
    x, ids, gates, w = case(torch.float32 if form is grouped_experts else torch.float64)
    with torch.no_grad():
        whole = form(x, gates, sort_by_expert(ids, 7, partial=True), w)
        part = form(x[9:14], gates[9:14], sort_by_expert(ids[9:14], 7, partial=True), w)
    torch.testing.assert_close(part, whole[9:14])


def test_all_tokens_at_one_expert_and_none(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _, gates, w = case(torch.float64)
    used = []
    for name in ("padded_experts", "looped_experts"):
        form = getattr(experts, name)

        def spy(*args: Any, form: Any = form, name: str = name) -> Tensor:
            used.append(name)
            return form(*args)

        monkeypatch.setattr(experts, name, spy)
    for expert in (3, 7):
        ids = torch.full((40, 1), expert)
        ours = sparse_experts(x, ids, gates[:, :1], w, partial=True)
        naive = sparse_experts_reference(x, ids, gates[:, :1], w, partial=True)
        torch.testing.assert_close(ours, naive)
    many = ExpertWeights(w.up.repeat(9, 1, 1), w.down.repeat(9, 1, 1))
    sparse_experts(x, torch.full((40, 1), 3), gates[:, :1], many)
    assert used == ["padded_experts", "padded_experts", "looped_experts"]


def test_the_form_is_chosen_by_what_the_dtype_has() -> None:
    assert not has_grouped_mm("cpu", torch.float64)
    x, ids, gates, w = case(torch.float32)
    if has_grouped_mm("cpu", torch.float32):
        y = sparse_experts(x, ids, gates, w, partial=True)
        order = sort_by_expert(ids, 7, partial=True)
        assert torch.equal(y, grouped_experts(x, gates, order, w))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = sparse_experts(x, ids, gates, w, partial=True)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(
        low.float(), sparse_experts_reference(x, ids, gates, w, partial=True), rtol=0.05, atol=0.5
    )


def test_gradcheck() -> None:
    x, ids, gates, w = case(torch.float64, "swiglu")
    parts = (x[:6].detach(), gates[:6].detach(), w.up.detach(), w.down.detach())
    leaves = [part.clone().requires_grad_() for part in parts]

    def run(x: Tensor, gates: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return sparse_experts(x, ids[:6], gates, ExpertWeights(up, down, "swiglu"), partial=True)

    assert torch.autograd.gradcheck(run, leaves)
