"""Attention over keys in pieces equals attention over the whole, and so do its gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nl.ops.attention import (
    causal_attention,
    piecewise_attention,
    piecewise_attention_reference,
)
from tests.unit.ops.twins import assert_twins

B, H, K = 2, 2, 4


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(
    ("sizes", "hidden"),
    [([6], None), ([3, 4], None), ([3, 4], [0, 2]), ([1, 1, 5, 2], None), ([1, 1, 5, 2], [0, 6])],
)
def test_pieces_equal_the_loop(sizes: list[int], hidden: list[int] | None) -> None:
    torch.manual_seed(0)
    count = len(sizes)
    q, *pieces = draw(B, H, sizes[-1], K), *(draw(B, H, n, K) for n in sizes * 2)
    unseen = None if hidden is None else torch.tensor(hidden)

    def run(leaves: list[Tensor], loop: bool) -> list[Tensor]:
        function = piecewise_attention_reference if loop else piecewise_attention
        return [function(leaves[0], leaves[1 : 1 + count], leaves[1 + count :], unseen)]

    assert_twins(run, [q, *pieces])


@pytest.mark.parametrize("groups", [1, 2])
def test_pieces_whose_heads_are_shared_equal_the_loop(groups: int) -> None:
    torch.manual_seed(0)
    sizes = [3, 1, 4]
    q, *pieces = draw(B, 4, 4, K), *(draw(B, groups, n, K) for n in sizes * 2)

    def run(leaves: list[Tensor], loop: bool) -> list[Tensor]:
        function = piecewise_attention_reference if loop else piecewise_attention
        return [function(leaves[0], leaves[1:4], leaves[4:], torch.tensor([0, 2]))]

    assert_twins(run, [q, *pieces])


def test_half_precision_goes_back_as_it_came() -> None:
    torch.manual_seed(0)
    q, *pieces = (torch.randn(B, H, n, 16, requires_grad=True) for n in (30, 50, 30, 50, 30))
    grads = {}
    for how in ("piecewise", "joined", "exact"):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how != "exact"):
            if how == "piecewise":
                y = piecewise_attention(q, pieces[:2], pieces[2:])
            else:
                y = causal_attention(q, torch.cat(pieces[:2], 2), torch.cat(pieces[2:], 2))
        assert y.dtype == (torch.float32 if how == "exact" else torch.bfloat16)
        grads[how] = torch.autograd.grad(y.float().square().sum(), [q, *pieces])
    for ours, joined, exact in zip(*grads.values(), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - exact).norm() < 1.5 * (joined - exact).norm()
        assert (ours - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("device", ["cpu", "other"])
def test_what_is_joined_for_the_backward_pass_equals_the_loop(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "other":  # the way of devices whose kernels do not give their scale
        monkeypatch.setattr("nl.ops.attention.APART", ())
    torch.manual_seed(0)
    q, *pieces = draw(B, H, 4, K), *(draw(B, 1, n, K) for n in [3, 1, 4] * 2)

    def run(leaves: list[Tensor], loop: bool) -> list[Tensor]:
        function = piecewise_attention_reference if loop else piecewise_attention
        return [function(leaves[0], leaves[1:4], leaves[4:])]

    assert_twins(run, [q, *pieces])
