"""What a two-layer network learns, in which order, how fast. Floor 0.

A neuron (u_1, ..., u_k, w) of a network with activation z^k adds w (sum_t <u_t, x_{g_t}>)^k. From
small weights, gradient flow grows the neurons of one irreducible representation at a time: that of
the largest utility E <f, y> on the unit sphere (alternating gradient flows, arXiv 2602.03655; order
and rate below follow from the closed form of that maximum, which the tests find by search).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nl.core.groups.finite import FiniteGroup, Floats, GroupError
from nl.core.groups.irreps import Irrep, irreps

SMALLEST_SHARE = 1e-8
"""Powers below this share of the whole count as none."""
TIE = 1e-6


@dataclass(frozen=True)
class Step:
    """Irreducible representations that are learned together.

    Attributes:
        names: of the irreps; several where their utilities are equal.
        utility: the maximum U* of each.
        before: mean squared error while they are learned, after all earlier ones.
        after: mean squared error once they are.
    """

    names: tuple[str, ...]
    utility: float
    before: float
    after: float


def utility(group: FiniteGroup, irrep: Irrep, template: Floats, length: int) -> float:
    """U* = k! (k + 1)^(-(k+1)/2) (s^2 / N)^((k+1)/2) / (C n)^((k-1)/2).

    s is the operator norm of the template's coefficient, n the complex dimension of the irrep, C is
    1 for real and 2 for complex type.

    Raises:
        GroupError: an irrep of quaternionic type, for which no closed form is known here.
    """
    if irrep.schur == 4:
        raise GroupError(f"{group.name}: irrep {irrep.name} is quaternionic; no closed form of U*")
    k = length
    norm = float(np.linalg.norm(irrep.transform(template), ord=2))
    width = irrep.schur * irrep.complex_dimension
    front = math.factorial(k) * (k + 1) ** (-(k + 1) / 2)
    return float(front * (norm**2 / group.order) ** ((k + 1) / 2) / width ** ((k - 1) / 2))


def growth_rate(group: FiniteGroup, utility: float, length: int, lr: float) -> float:
    """Growth per step of log ||theta|| with per-neuron scaled steps: lr (2 / N) (k + 1) U*."""
    return lr * 2 / group.order * (length + 1) * utility


def fitting_lr(group: FiniteGroup, utility: float, length: int, growth: float = 0.05) -> float:
    """The learning rate with which the fastest irrep grows by ``growth`` per step."""
    return growth / growth_rate(group, utility, length, 1.0)


def staircase(group: FiniteGroup, template: Floats, length: int) -> tuple[Step, ...]:
    """The plateaus of the loss, in the order in which they are left.

    Args:
        group: N elements.
        template: (N,) of zero mean.
        length: k, elements that are composed.

    Raises:
        GroupError: a template with power in an irrep of quaternionic type.
    """
    total = float(np.square(template).sum())
    found = []
    for irrep in irreps(group):
        power = float(irrep.power(group, template))
        if power > SMALLEST_SHARE * total:
            found.append((utility(group, irrep, template, length), power, irrep.name))
    found.sort(key=lambda one: (-one[0], one[2]))
    steps: list[Step] = []
    left = sum(power for _, power, _ in found) / group.order
    for together in _ties(found):
        power = sum(one[1] for one in together) / group.order
        after = max(0.0, left - power)
        steps.append(Step(tuple(one[2] for one in together), together[0][0], left, after))
        left = after
    return tuple(steps)


def levels(steps: Sequence[Step]) -> list[float]:
    """The plateaus, from the start to the end."""
    return [step.before for step in steps] + [steps[-1].after] if steps else [0.0]


def _ties(found: list[tuple[float, float, str]]) -> list[list[tuple[float, float, str]]]:
    groups: list[list[tuple[float, float, str]]] = []
    for one in found:
        if groups and groups[-1][0][0] - one[0] <= TIE * groups[-1][0][0]:
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups
