"""What benchmarks/groups_*.py reads from runs and weights."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from nl.core.groups import irreps, parse_group
from tests.unit.test_study import load


@pytest.fixture(scope="module")
def read() -> ModuleType:
    for name in ("study", "groups_cells"):
        load(name)
    return load("groups_read")


@pytest.fixture(scope="module")
def pictures(read: ModuleType) -> ModuleType:
    assert read
    return load("groups_pictures")


def seen(read: ModuleType, **halves: float) -> Any:
    return read.Seen([], halves, {}, math.nan, 0.0)


def test_order_of_learning(read: ModuleType) -> None:
    known = read.theory(("experiment=groups/c10", "seed=0"))
    late = {"2a": 9.0, "2b": 8.0, "2c": 7.0, "2d": 9.0}
    assert read.in_order(known, seen(read, **{"1b": 5.0}, **late))
    assert not read.in_order(known, seen(read, **{"1b": 7.5}, **late))
    never = dict.fromkeys(late, math.inf)
    assert not read.in_order(known, seen(read, **{"1b": 5.0}, **never))
    assert read.in_order(known, seen(read, **{"1b": 5.0}, **never), whole=False)
    assert read.in_order(known, seen(read, **{"1b": math.inf}, **never), whole=False)
    assert not read.in_order(known, seen(read, **{"1b": math.inf}, **late), whole=False)


def test_neurons_belong_to_what_they_write(read: ModuleType) -> None:
    group = parse_group("D3")
    rng = np.random.default_rng(0)
    parts = [one.part(group, rng.standard_normal((2, 6))) for one in irreps(group)[1:]]
    found = read.specialised(group, np.concatenate([*parts, 1e-3 * rng.standard_normal((1, 6))]))
    assert found.owner == ["1b", "1b", "2a", "2a", "dead"]
    assert found.share[:4] == pytest.approx([1.0] * 4)
    assert (found.count("2a"), found.count("dead")) == (2, 1)
    order = found.order(["2a", "1b", "dead"])
    assert set(order[:2]) == {2, 3}
    assert order[4] == 4
    assert found.norm[order[0]] >= found.norm[order[1]]


def test_what_a_mixing_matrix_carries(read: ModuleType) -> None:
    """cos a cos b - sin a sin b is a function of the product alone, of one frequency."""
    from nl.models.quadratic_rnn import QuadraticRNNConfig

    known = read.theory(("experiment=groups/c5", "seed=0"))
    shown, angle = known.group.shown(known.template), 2 * math.pi * np.arange(5) / 5
    waves = np.stack([np.cos(angle), np.sin(angle)])
    weights = torch.from_numpy(np.linalg.lstsq(shown, waves.T, rcond=None)[0].T).float()
    model = QuadraticRNNConfig(size=5, hidden=2, transform="multiplicative").build()
    with torch.no_grad():
        for parameter in (model.first, model.cell.drive):
            parameter.copy_(weights)
        model.cell.mix.copy_(torch.tensor([[1.0, -1.0], [2.0, -2.0]]))
        model.out.copy_(torch.from_numpy(waves.T))
    found = read.carried(known, model)
    (name,) = (one.name for one in irreps(known.group) if one.power(known.group, waves[0]) > 1)
    assert found.explained == pytest.approx(1, abs=1e-5)
    assert found.own[name] == found.all[name] == pytest.approx(1)
    with torch.no_grad():
        model.cell.mix.copy_(torch.tensor([[1.0, 1.0], [2.0, 2.0]]))  # cos (a - b)
    assert read.carried(known, model).explained == pytest.approx(0, abs=1e-5)


def test_the_line_of_a_flow_and_thinned_curves(read: ModuleType, pictures: ModuleType) -> None:
    known = read.theory(("experiment=groups/d3", "seed=0"))
    line = pictures.steps_of_flow(known, {"2a": 130.0}, 1000.0)
    assert line.x == [1.0, 130.0, 130.0, 1000.0]
    assert line.y == pytest.approx([5.5, 5.5, 0.5, 0.5])
    steps = [float(n) for n in range(1000)]
    thin = pictures.thinned({"x": steps, "y": steps})
    assert thin["x"][0] == 0
    assert thin["x"][-1] == 999
    assert len(thin["x"]) <= pictures.POINTS + 1
    assert pictures.label(known.stairs[0]) == "2a"
