"""Which parameters the outer optimizer trains: all, only memories, all but memories. Floor 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from nl.config import ConfigError
from nl.config.groups import OptimConfig
from nl.core.logs import get_logger
from nl.optim.roles import Roles

log = get_logger(__name__)

Policy = Literal["all", "memory_only", "exclude_memory"]


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(OptimConfig):
    """What every optimizer shares."""

    policy: Policy = "all"
    """memory_only freezes everything but the memories (a fixed backbone); exclude_memory freezes
    the memories' initial weights, projections and gates."""


def apply_policy(objective: nn.Module, policy: Policy, roles: Roles) -> None:
    """Freeze (``requires_grad = False``) what ``policy`` leaves out, before anything is wrapped.

    Raises:
        ConfigError: nothing would be left to train.
    """
    named = dict(objective.named_parameters())
    memory = {name for name in named if roles[name].memory}
    frozen = {"all": set(), "memory_only": named.keys() - memory, "exclude_memory": memory}[policy]
    if not named.keys() - frozen:
        raise ConfigError(
            f"optim.policy: {policy}; it leaves nothing to train: this model has "
            f"{'nothing but' if memory else 'no'} memories; set optim.policy=all."
        )
    for name in frozen:
        named[name].requires_grad_(False)
    for word, names in (("trained", named.keys() - frozen), ("frozen", frozen)):
        if not names:
            continue
        total = sum(named[name].numel() for name in names)
        inside = sum(named[name].numel() for name in names & memory)
        log.info(
            "optim.policy=%s: %d tensors (%s numbers, %s of them in memories) %s",
            policy,
            len(names),
            f"{total:,}",
            f"{inside:,}",
            word,
        )
