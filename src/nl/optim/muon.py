"""Muon for hidden matrices, AdamW for the rest. Floor 1. Jordan et al. 2024; arXiv:2502.16982.

Per hidden matrix W (M, N) with gradient G and momentum B:

    B <- mu B + (1 - mu) G          U = NS5((1 - mu) G + mu B), or NS5(B) without Nesterov
    W <- (1 - lr wd) W - lr s U     s = 0.2 sqrt(max(M, N)), or sqrt(max(1, M / N))
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import torch

from nl.config import ConfigError, register, require
from nl.ops.orthogonal import QUINTIC
from nl.optim.adamw import AdamWSettings
from nl.optim.combined import CombinedOptimizer, log_group
from nl.optim.policy import PolicyConfig
from nl.optim.roles import NamedParameters, Roles, split_matrices

SMALLEST = 1e-7
"""Smaller norms of a momentum count as this one."""
Adjust = Literal["match_rms_adamw", "original"]


@dataclass(frozen=True, kw_only=True)
class MatrixConfig(PolicyConfig, ABC):
    """What optimizers share that treat hidden matrices apart."""

    lr: float = 1e-3
    """Peak learning rate of the hidden matrices; the schedule multiplies it."""
    weight_decay: float = 0.1
    """Decay of the hidden matrices."""
    rest: AdamWSettings = field(default_factory=AdamWSettings)
    """AdamW for embedding, head, norms, biases, gates, convolutions and stacks."""

    def __post_init__(self) -> None:
        require(self.lr > 0, f"lr: {self.lr}; must be > 0.")
        require(self.weight_decay >= 0, f"weight_decay: {self.weight_decay}; must be >= 0.")

    @property
    def requires(self) -> dict[str, str]:
        """Capabilities of a strategy that the updates need, and what to do without."""
        return {"whole_matrices": "set optim=adamw or launch train_fsdp.py"}

    def build(
        self, named_parameters: NamedParameters, roles: Roles | None = None
    ) -> torch.optim.Optimizer:
        """One optimizer over everything; the split is logged.

        Raises:
            ConfigError: there is no hidden matrix to train.
        """
        matrices, rest = split_matrices(named_parameters, roles or {})
        if not matrices:
            kind = self.kind
            raise ConfigError(
                f"optim: {kind}; this model has no hidden matrix to train; set optim=adamw."
            )
        first = self.over(matrices)
        log_group(self.kind, first.param_groups[0])
        return CombinedOptimizer([first, self.rest.over(rest)] if rest else [first])

    @abstractmethod
    def over(self, matrices: NamedParameters) -> torch.optim.Optimizer:
        """The optimizer of the hidden matrices, one group."""


@register("optim", "muon")
@dataclass(frozen=True, kw_only=True)
class MuonConfig(MatrixConfig):
    """Orthogonalised momentum for hidden matrices (torch.optim.Muon), AdamW for the rest."""

    momentum: float = 0.95
    """Share of the momentum that a step keeps."""
    nesterov: bool = True
    """Orthogonalise the momentum one step ahead."""
    steps: int = 5
    """Newton-Schulz steps."""
    adjust: Adjust = "match_rms_adamw"
    """Size of an update: like AdamW's whatever the shape (the same rates fit), or the original."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.momentum < 1, f"momentum: {self.momentum}; must be in [0, 1).")
        require(1 <= self.steps < 100, f"steps: {self.steps}; must be in 1..99.")

    def over(self, matrices: NamedParameters) -> torch.optim.Optimizer:
        """See the base class."""
        return torch.optim.Muon(
            [{"name": "muon", "whole": True, "params": matrices}],
            lr=self.lr,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            nesterov=self.nesterov,
            ns_coefficients=QUINTIC,
            eps=SMALLEST,
            ns_steps=self.steps,
            adjust_lr_fn=self.adjust,
        )
