"""Alternating gradient flows against brute force, theory and gradient descent; plateaus."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from nl.core.groups import (
    Dormant,
    FiniteGroup,
    Step,
    Steps,
    irreps,
    parse_group,
    plateaus,
    reached,
    simulate,
    staircase,
    utility,
)
from nl.core.groups.finite import Floats
from nl.core.groups.flow import _advance
from nl.core.groups.staircase import fitting_lr
from nl.data.group_templates import of_powers, one_hot, planar
from nl.optim.scaled_sgd import ScaledSGD


def neurons(group: FiniteGroup, length: int, count: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Reads (H, k, N) and writes (H, N)."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, length, group.order)), rng.standard_normal(
        (count, group.order)
    )


@pytest.mark.parametrize(("name", "length"), [("D3", 2), ("D3", 3), ("C5", 3), ("Q8", 2)])
def test_utilities_are_means_over_all_words(name: str, length: int) -> None:
    group = parse_group(name)
    template = np.random.default_rng(1).standard_normal(group.order)
    template -= template.mean()
    dormant = Dormant(group, template, *neurons(group, length, 4))
    part = irreps(group)[-1].part(group, template)
    theta = torch.from_numpy(dormant.theta).requires_grad_()
    words = np.asarray(list(itertools.product(range(group.order), repeat=length)))
    shown = torch.from_numpy(group.shown(template)[words])
    wanted = torch.from_numpy(group.shown(part)[group.products(words)[:, -1]])
    drive = torch.einsum("wkn,hkn->wh", shown, theta[:, :length]) ** length
    mean = (drive * (wanted @ theta[:, length].T)).mean(0)
    found, grad = dormant.utilities(np.stack([part, 0 * part]))
    assert found[0] == pytest.approx(mean.detach().numpy())
    assert not found[1].any()
    (slope,) = torch.autograd.grad(mean.sum(), theta)
    assert grad == pytest.approx(slope.numpy())


CASES: dict[str, tuple[str, int, Any]] = {
    "one-hot on C10": ("C10", 2, lambda group: one_hot(group.order, 0, 1.0)),
    "C3xC3, three places": ("C3xC3", 3, lambda group: planar((3, 3), 2, (100, 50), 0)),
    "D4, three powers": ("D4", 2, lambda group: of_powers(group, {"1b": 2, "1c": 9, "2a": 30})),
    "cube": ("O", 2, lambda group: of_powers(group, {"1b": 50, "2a": 90})),
}


@pytest.mark.parametrize("case", CASES)
def test_escapes_have_the_levels_and_the_order_of_theory(case: str) -> None:
    name, length, make = CASES[case]
    group = parse_group(name)
    template = make(group)
    stairs = staircase(group, template, length)
    lr = fitting_lr(group, stairs[0].utility, length)
    reads, writes = neurons(group, length, 150)
    dormant = Dormant(group, template, 1e-3 * reads, 1e-3 * writes)
    found = simulate(group, template, dormant, Steps(lr=lr, exponent=1 - length, horizon=2e4))
    order = iter(found)
    for stair in stairs:
        together = [next(order) for _ in stair.names]
        assert {one.name for one in together} == set(stair.names)
        assert together[0].before == pytest.approx(stair.before)
        assert together[-1].after == pytest.approx(stair.after, abs=1e-9)
    assert [one.step for one in found] == sorted(one.step for one in found)
    assert 0 < found[0].step < found[-1].step < 2e4


def test_the_fastest_neuron_comes_to_the_utility_of_theory() -> None:
    group = parse_group("D3")
    template = of_powers(group, {"1b": 3, "2a": 30})
    dormant = Dormant(group, template, *neurons(group, 2, 60))
    best = max(irreps(group), key=lambda one: float(one.power(group, template)))
    steps = Steps(lr=0.01, exponent=-1)
    for _ in range(600):
        each, grad = dormant.utilities(best.part(group, template)[None])
        _advance(dormant, each[0], grad, steps, 0.0, math.inf)
    expected = utility(group, best, template, 2)
    assert float(each[0].max()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("exponent", "size"), [(-1.0, 1e-5), (-0.5, 1e-2)])
def test_escapes_are_those_of_gradient_descent(exponent: float, size: float) -> None:
    """Of the same weights, at two rules for the rate of a neuron: steps within a tenth."""
    torch.manual_seed(0)
    group = parse_group("C5")
    template = of_powers(group, {"2a": 2.0, "2b": 3.0})
    reads = torch.randn(60, 2, 5, dtype=torch.float64) * size
    writes = torch.randn(60, 5, dtype=torch.float64) * size
    lr = fitting_lr(group, staircase(group, template, 2)[0].utility, 2)
    dormant = Dormant(group, template, reads.numpy(), writes.numpy())
    steps = Steps(lr=lr, exponent=exponent, horizon=1000, change=0.02)
    found = {one.name: one.step for one in simulate(group, template, dormant, steps)}

    words = np.asarray(list(itertools.product(range(5), repeat=2)))
    shown = torch.from_numpy(group.shown(template))
    inputs, targets = shown[words], shown[group.products(words)[:, -1]]
    drive, out = torch.nn.Parameter(reads.flatten(1)), torch.nn.Parameter(writes)
    populations = [{"params": [drive, out], "axes": [0, 0], "exponent": exponent}]
    optimizer = ScaledSGD(populations, lr=lr)
    parts = {
        one.name: torch.from_numpy(one.part(group, np.eye(5)))
        for one in irreps(group)
        if one.name in found
    }
    powers = {name: (targets @ part.T).square().mean() for name, part in parts.items()}
    seen: dict[str, int] = {}
    for step in range(1, 1001):
        pred = (inputs.flatten(1) @ drive.T).square() @ out
        loss = (pred - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for name, part in parts.items():
            if name not in seen and (pred @ part.T).square().mean() > powers[name] / 4:
                seen[name] = step
    assert list(seen) == list(found) == ["2b", "2a"]
    for name, step in found.items():
        assert step == pytest.approx(seen[name], rel=0.1)


def test_dead_neurons_and_short_horizons_learn_nothing() -> None:
    group = parse_group("C3")
    template = one_hot(3, 0, 1.0)
    reads, writes = neurons(group, 2, 3)
    dormant = Dormant(group, template, 0 * reads, 0 * writes)
    assert simulate(group, template, dormant, Steps(lr=1.0, exponent=-1)) == []
    dormant = Dormant(group, template, 1e-3 * reads, 1e-3 * writes)
    assert simulate(group, template, dormant, Steps(lr=1.0, exponent=-1, horizon=2)) == []


STAIRS = (Step(("2a",), 2.0, 5.0, 1.0), Step(("1b", "1c"), 1.0, 1.0, 0.0))


def test_plateaus_of_a_curve() -> None:
    losses = [5.0, 4.99, 4.9, 2.5, 1.5, 1.02, 1.01, 1.009, 0.4, 0.1, 0.01]
    first, second = plateaus(list(range(0, 110, 10)), losses, STAIRS)
    assert (first.start, first.end, first.learned, first.escape) == (0, 20, ("2a",), 40)
    assert first.measured == 5.0
    assert (second.level, second.start, second.end, second.escape) == (1.0, 50, 70, 90)
    assert second.measured == pytest.approx(1.01)
    assert second.error == pytest.approx(0.01)
    never = plateaus([1, 2], [5.0, math.nan], STAIRS)
    assert never[1].measured is never[1].start is never[1].escape is None
    assert [reached([1, 2, 3], [4.0, 2.0, 0.3], share) for share in (0.5, 0.9, 0.99)] == [
        2,
        3,
        None,
    ]
