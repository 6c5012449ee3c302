"""SGD whose step follows the size of each neuron's weights. Floor 1.

The weights of neuron i, theta_i = its rows and columns in every matrix that names it, have the norm
n_i = sqrt(sum theta_i^2 + 1e-12), and

    theta_i <- theta_i - lr n_i^exponent grad_i.

In a network that is homogeneous of degree d in one neuron's weights gradients grow like n^(d - 1):
with exponent 2 - d small and large neurons change at the same relative rate per unit of loss, so
none has to wait for its turn. Weights that belong to no neuron get Adam.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nl.config import ConfigError, register, require
from nl.optim.adamw import AdamWSettings
from nl.optim.combined import CombinedOptimizer, log_group
from nl.optim.policy import PolicyConfig
from nl.optim.roles import NamedParameters, Roles

SMALLEST = 1e-12
"""Added under the root of a neuron's squared norm."""


@register("optim", "scaled_sgd")
@dataclass(frozen=True, kw_only=True)
class ScaledSGDConfig(PolicyConfig):
    """SGD scaled by the norm of each neuron, Adam for weights that belong to none."""

    lr: float = 1.0
    """Peak learning rate of the neurons; the schedule multiplies it."""
    exponent: float | None = None
    """2 - d, where d is the degree of the network in one neuron's weights: 3 for a product of two
    inputs and a readout. null: what the model says of itself."""
    rest: AdamWSettings = field(
        default_factory=lambda: AdamWSettings(betas=(0.9, 0.999), weight_decay=0.0)
    )
    """Adam (decoupled decay) for all other weights."""

    def __post_init__(self) -> None:
        require(self.lr > 0, f"lr: {self.lr}; must be > 0.")

    @property
    def requires(self) -> dict[str, str]:
        """Capabilities of a strategy that the updates need, and what to do without."""
        return {"whole_neurons": "set optim=adamw or launch train_dist.py"}

    def build(
        self, named_parameters: NamedParameters, roles: Roles | None = None
    ) -> torch.optim.Optimizer:
        """One optimizer over everything; a group per population of neurons.

        Raises:
            ConfigError: the model says of no weight which neuron it belongs to.
        """
        groups: dict[str, dict[str, Any]] = {}
        rest: NamedParameters = []
        for name, parameter in named_parameters:
            role = (roles or {})[name]
            if role.neurons is None:
                rest.append((name, parameter))
                continue
            population, axis = role.neurons
            fresh = {"name": f"neurons {population}".strip(), "params": [], "axes": []}
            group = groups.setdefault(population, fresh)
            group["params"].append((name, parameter))
            group["axes"].append(axis)
            group["exponent"] = self._exponent(role.degree)
        if not groups:
            raise ConfigError(
                "optim: scaled_sgd; this model does not say which weights belong to which neuron; "
                "set optim=adamw, or model=quadratic_rnn."
            )
        neurons = ScaledSGD(list(groups.values()), lr=self.lr)
        for group in neurons.param_groups:
            log_group(self.kind, group)
        return CombinedOptimizer([neurons, self.rest.over(rest)] if rest else [neurons])

    def _exponent(self, degree: int | None) -> float:
        if self.exponent is not None:
            return self.exponent
        if degree is None:
            raise ConfigError(
                "optim.exponent: null; this model is not homogeneous in a neuron's weights, say "
                "the exponent (2 - degree), -1 for a product of two inputs and a readout."
            )
        return float(2 - degree)


class ScaledSGD(torch.optim.Optimizer):
    """See the module's equation. A group is a population: ``axes`` count its neurons, in order."""

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, exponent: float = -1.0) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "exponent": exponent})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; norms are those before it, over all weights of a neuron.

        Raises:
            ValueError: a closure is given.
        """
        if closure is not None:
            raise ValueError("closure: ScaledSGD steps once with the gradients that are there")
        for group in self.param_groups:
            pairs = list(zip(group["params"], group["axes"], strict=True))
            squares = sum(_over_others(p.square(), axis) for p, axis in pairs)
            factor = (squares + SMALLEST) ** (0.5 * group["exponent"])
            for parameter, axis in pairs:
                if parameter.grad is not None:
                    shape = [-1 if i == axis else 1 for i in range(parameter.ndim)]
                    parameter.addcmul_(parameter.grad, factor.view(shape), value=-group["lr"])


def _over_others(x: Tensor, axis: int) -> Tensor:
    """Sum over every axis but ``axis`` -> (neurons,)."""
    return x.movedim(axis, 0).flatten(1).sum(1)
