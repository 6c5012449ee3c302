"""Backward passes that begin inside an autocast give what they give outside of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nl.ops.delta_rule import unit_lower_inverse
from nl.ops.recurrent import quadratic
from nl.ops.titans_scan import ScanRule, titans_scan, titans_scan_programs
from tests.unit.ops import test_titans_scan

Case = tuple[list[Tensor], Callable[[list[Tensor]], list[Tensor]]]


def scan(monkeypatch: pytest.MonkeyPatch, chosen: Callable[..., object]) -> Case:
    monkeypatch.setattr(test_titans_scan, "fast_scan", chosen)
    rule = ScanRule(4, True)
    inputs = test_titans_scan.draw(12, 2)
    return inputs, lambda leaves: test_titans_scan.run(leaves, rule, loop=False)


def by_hand(monkeypatch: pytest.MonkeyPatch) -> Case:
    return scan(monkeypatch, titans_scan)


def by_chunk(monkeypatch: pytest.MonkeyPatch) -> Case:
    return scan(monkeypatch, titans_scan_programs)


def inverse(_: pytest.MonkeyPatch) -> Case:
    return [torch.randn(2, 12, 12).tril(-1)], lambda leaves: [unit_lower_inverse(leaves[0])]


def recurrence(_: pytest.MonkeyPatch) -> Case:
    inputs = [torch.randn(2, 5, 6), torch.randn(2, 6), torch.randn(6, 6) / 3]
    return inputs, lambda leaves: list(quadratic(*leaves, "quadratic"))


EXCEPT_GATES = {by_hand: 2e-3, by_chunk: 2e-3, inverse: 0.0, recurrence: 0.0}


@pytest.mark.parametrize("case", EXCEPT_GATES)
def test_a_backward_pass_inside_autocast_is_the_one_outside(
    case: Callable[[pytest.MonkeyPatch], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    inputs, function = case(monkeypatch)
    leaves = [t.float().requires_grad_() for t in inputs]
    found = []
    for inside in (False, True):
        outputs = function(leaves)
        weights = [torch.linspace(-1, 1, y.numel()).view_as(y) for y in outputs]
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            found.append(torch.autograd.grad(outputs, leaves, weights))
    for wanted, grad in zip(*found, strict=True):
        assert wanted.any()
        # What of a scan autograd goes through itself, its gates, is rounded.
        assert (grad - wanted).norm() <= EXCEPT_GATES[case] * wanted.norm()
