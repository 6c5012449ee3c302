"""What theory says of a run on group composition before it begins. Floor 1.

With ``optim=scaled_sgd`` the norm of a neuron that points to an irreducible representation grows by
the factor 1 + r per step, r = lr (2 / N)(k + 1) U* n^(exponent + k - 1). From the norm n_0 that the
weights begin with it has to come to

    n_1 = (P / (H U* / 4))^(1 / (k + 1))

where a quarter of the H neurons have the output that is asked for, and first to find its direction,
which takes about two further e-folds. Estimates, good to about a fifth; ``nl staircase`` simulates
the weights of a run instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from nl.config import ConfigError
from nl.core.groups import FiniteGroup, Step, growth_rate, irreps, parse_group, staircase
from nl.core.groups.finite import Floats, GroupError
from nl.core.groups.staircase import fitting_lr
from nl.core.logs import get_logger
from nl.data.groups import GroupCompositionConfig

log = get_logger(__name__)

DIVERGES = 0.15
"""Growth per step from which runs were seen to end in numbers that are not finite."""
BUDGET = 0.5
"""Share of train.steps by which the first stair should be climbed."""
ALIGNING = 2.0
"""E-folds until most neurons have found a direction."""
SHARE = 0.25
"""Of the neurons that learn one representation."""


@dataclass(frozen=True)
class Forecast:
    """Theory of one run.

    Attributes:
        group: N elements.
        template: (N,) of zero mean.
        length: k.
        stairs: in the order of learning.
        growth: per stair, of log n per step at the size that the weights begin with; None where
            the optimizer is another.
        escapes: per stair, the step at which it is climbed, roughly; None where that is not known.
        fitting: the rate with which the first stair's growth is 0.05.
    """

    group: FiniteGroup
    template: Floats
    length: int
    stairs: tuple[Step, ...]
    growth: tuple[float, ...] | None
    escapes: tuple[float, ...] | None
    fitting: float | None


def check_composition(run: Any) -> None:
    """Refuse a model or a spectrum that is of another group or of words of another length.

    Raises:
        ConfigError: naming the keys to make equal.
    """
    stream, model = run.stream, run.model
    if not isinstance(stream, GroupCompositionConfig):
        return
    group, where = stream.finite_group(), f"stream.group_name={stream.group_name}"
    size, length = getattr(model, "size", group.order), getattr(model, "length", stream.length)
    if size != group.order:
        raise ConfigError(
            f"model.size: {size}; {where} has {group.order} elements: set model.size={group.order}."
        )
    if length != stream.length:
        raise ConfigError(
            f"stream.length: {stream.length}; model={model.kind} composes {length} elements: make "
            "stream.length and model.length equal (two_layer has 2)."
        )
    readout = getattr(model, "readout", "last")
    if readout != stream.targets:
        raise ConfigError(
            f"stream.targets: {stream.targets}; model={model.kind} gives {readout}: make "
            "stream.targets and model.readout equal (prefixes are for quadratic_rnn)."
        )
    spectrum = getattr(run.objective, "spectrum", None)
    if spectrum is not None and not np.array_equal(parse_group(spectrum).table, group.table):
        raise ConfigError(
            f"objective.spectrum: {spectrum}; {where} is another group: set objective.spectrum="
            f"{stream.group_name}, or null."
        )


def forecast(run: Any) -> Forecast | None:
    """Of a ``RunConfig``; None where theory says nothing (another stream, a quaternionic irrep)."""
    stream = run.stream
    if not isinstance(stream, GroupCompositionConfig):
        return None
    group, template, k = stream.finite_group(), stream.values(), stream.length
    try:
        stairs = staircase(group, template, k)
    except GroupError:
        return None
    start = getattr(run.model, "initial_norm", None)
    if not stairs or start is None or run.optim.kind != "scaled_sgd":
        return Forecast(group, template, k, stairs, None, None, None)
    scale = abs(getattr(run.model, "output_scale", 1.0))
    power = (1 - k if run.optim.exponent is None else run.optim.exponent) + k - 1
    pace = scale * start**power
    growth = tuple(
        math.log1p(growth_rate(group, stair.utility * pace, k, run.optim.lr)) for stair in stairs
    )
    powers = {one.name: float(one.power(group, template)) for one in irreps(group)}
    escapes = []
    for stair, rate in zip(stairs, growth, strict=True):
        neurons = SHARE * run.model.hidden * stair.utility * scale
        goal = (max(powers[name] for name in stair.names) / neurons) ** (1 / (k + 1))
        escapes.append(_steps(start, goal, rate, power))
    fitting = fitting_lr(group, stairs[0].utility * pace, k)
    return Forecast(group, template, k, stairs, growth, tuple(escapes), fitting)


def _steps(start: float, goal: float, rate: float, power: float) -> float:
    """Steps from one norm to another at d log n / dt = rate (n / start)^power."""
    if abs(power) < 1e-9:
        return (math.log(max(goal / start, 1.0)) + ALIGNING) / rate
    grown = (1 - math.exp(-power * math.log(goal / start))) / power
    return (max(grown, 0.0) + ALIGNING) / rate


def warn_of_standstill(run: Any) -> None:
    """Say before the first step what theory expects to go wrong: too slow, or divergence."""
    try:
        expected = forecast(run)
    except ConfigError:
        return  # what is wrong with the stream is said where it is built
    if expected is None or expected.growth is None or expected.escapes is None:
        return
    assert expected.fitting is not None
    growth, escape, steps = expected.growth[0], expected.escapes[0], run.train.steps
    advice = f"optim.lr={expected.fitting:.2g} makes it grow by 0.05 per step"
    names = "+".join(expected.stairs[0].names)
    if growth > DIVERGES and run.train.max_norm == 0:
        log.warning(
            "optim.lr: %g; the first stair (%s) grows by %.3g per step, and above %g runs diverge: "
            "%s",
            *(run.optim.lr, names, growth, DIVERGES, advice),
        )
    elif escape > BUDGET * steps:
        log.warning(
            "train.steps: %d; the first stair (%s) is expected at about step %.0f (growth %.3g per "
            "step), past half of the run: %s",
            *(steps, names, escape, growth, advice),
        )
    elif late := [s for s, at in zip(expected.stairs, expected.escapes, strict=True) if at > steps]:
        log.warning(
            "train.steps: %d; %s is expected after the end of the run, the loss will stay at %.4g",
            *(steps, "+".join(late[0].names), late[0].before),
        )
