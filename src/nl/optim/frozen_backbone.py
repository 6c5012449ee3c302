"""AdamW that trains everything at first and then the memories alone. Floor 1.

The way a model with memories is meant to keep what it knows: the backbone is learned once, what
comes later goes into memories. ``optim.policy=memory_only`` freezes from the first step on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nl.config import ConfigError, register, require
from nl.optim.adamw import AdamWConfig
from nl.optim.roles import NamedParameters, Roles

COUNT = "steps_done"
"""Key of the first group that counts steps: groups are part of a checkpoint."""


@register("optim", "frozen_backbone")
@dataclass(frozen=True, kw_only=True)
class FrozenBackboneConfig(AdamWConfig):
    """AdamW whose parameters outside memories stay as they are after ``full_steps`` steps."""

    full_steps: int = 1000
    """Optimizer steps in which everything is trained; afterwards the memories' initial weights,
    projections and gates are."""

    requires = {  # noqa: RUF012 - not a field
        "late_changes": "launch train.py or train_dist.py, or train in two runs"
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.full_steps >= 1, f"full_steps: {self.full_steps}; must be >= 1.")
        require(
            self.policy == "all",
            f"policy: {self.policy}; frozen_backbone begins with everything: set policy=all, or "
            "optim=adamw for a policy that holds from the first step.",
        )

    def build(
        self, named_parameters: NamedParameters, roles: Roles | None = None
    ) -> torch.optim.Optimizer:
        """The optimizer; hooks leave the backbone alone when its time is over.

        Raises:
            ConfigError: the model has no memories, or nothing else.
        """
        memory = {name for name, _ in named_parameters if (roles or {})[name].memory}
        backbone = [p for name, p in named_parameters if name not in memory]
        if not memory or not backbone:
            raise ConfigError(
                f"optim: frozen_backbone; this model has {'nothing but' if memory else 'no'} "
                "memories: choose another model.block or optim=adamw."
            )
        built = self.over(named_parameters)
        built.param_groups[0][COUNT] = 0
        freeze_after(built, backbone, self.full_steps)
        return built


def freeze_after(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], steps: int
) -> None:
    """Leave ``parameters`` bitwise as they are after ``steps`` steps of ``optimizer``.

    Their gradients become zero as they arise, so that they are no part of the global norm, and are
    taken away before a step, so that neither momentum nor decay moves them.
    """

    def over() -> bool:
        return bool(optimizer.param_groups[0][COUNT] >= steps)

    def silence(gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient) if over() else gradient

    def before(*_: Any) -> None:
        if over():
            for parameter in parameters:
                parameter.grad = None
        optimizer.param_groups[0][COUNT] += 1

    for parameter in parameters:
        parameter.register_hook(silence)  # type: ignore[no-untyped-call]
    optimizer.register_step_pre_hook(before)
