"""AdamW with an explicit split into decayed and undecayed tensors. Floor 1. arXiv:1711.05101."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from nl.config import register, require
from nl.optim.combined import log_group
from nl.optim.policy import PolicyConfig
from nl.optim.roles import NamedParameters, Roles


@dataclass(frozen=True, kw_only=True)
class AdamWSettings:
    """AdamW, wherever it is used."""

    lr: float = 1e-3
    """Peak learning rate; the schedule multiplies it."""
    betas: tuple[float, ...] = (0.9, 0.95)
    """Decay rates of the first and second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices."""
    no_decay: tuple[str, ...] | None = ("embed", "gate", "norm", "bias")
    """Tensors with one of these in their name are not decayed; nor are 1-D tensors. null: all are,
    as torch's AdamW does by itself."""

    def __post_init__(self) -> None:
        require(self.lr > 0, f"lr: {self.lr}; must be > 0.")
        require(self.eps > 0, f"eps: {self.eps}; must be > 0.")
        require(self.weight_decay >= 0, f"weight_decay: {self.weight_decay}; must be >= 0.")
        betas_fit = len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas)
        require(betas_fit, f"betas: {list(self.betas)}; two numbers in [0, 1).")

    def over(self, named_parameters: NamedParameters) -> torch.optim.AdamW:
        """The optimizer over these parameters, in two groups: ``decay`` and ``no_decay``."""
        groups = split_by_decay(named_parameters, self.no_decay)
        options = [
            {"name": "decay", "params": groups["decay"], "weight_decay": self.weight_decay},
            {"name": "no_decay", "params": groups["no_decay"], "weight_decay": 0.0},
        ]
        filled = [group for group in options if group["params"]]
        betas = (self.betas[0], self.betas[1])
        built = torch.optim.AdamW(filled, lr=self.lr, betas=betas, eps=self.eps, fused=True)
        for group in built.param_groups:
            log_group("adamw", group)
        return built


@register("optim", "adamw")
@dataclass(frozen=True, kw_only=True)
class AdamWConfig(AdamWSettings, PolicyConfig):
    """AdamW, fused."""

    def build(
        self, named_parameters: NamedParameters, roles: Roles | None = None
    ) -> torch.optim.Optimizer:
        """The optimizer over these parameters; their roles do not matter to it."""
        del roles
        return self.over(named_parameters)


def split_by_decay(
    named_parameters: list[tuple[str, nn.Parameter]], no_decay: tuple[str, ...] | None
) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Trainable tensors by whether weight decay applies: matrices and more, unless named.

    With ``no_decay`` None it applies to every tensor.
    """
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {"decay": [], "no_decay": []}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        spared = no_decay is not None and (
            parameter.ndim < 2 or any(word in name for word in no_decay)
        )
        groups["no_decay" if spared else "decay"].append((name, parameter))
    return groups
