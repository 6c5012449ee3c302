"""Several optimizers as one: one list of groups, one state, one state dict. Floor 1."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from nl.core.logs import get_logger

log = get_logger(__name__)


class CombinedOptimizer(torch.optim.Optimizer):
    """Optimizers over disjoint parameters that step together.

    ``param_groups`` and ``state`` are shared with the parts, so that rates, saving and loading work
    as for a single optimizer.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = tuple(part for part in parts if part.param_groups)
        self.counts = [len(part.param_groups) for part in self.parts]
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part, count in zip(self.parts, self.counts, strict=True):
            part.param_groups = list(itertools.islice(groups, count))
            part.state = self.state

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of every part.

        Raises:
            ValueError: a closure is given.
        """
        if closure is not None:
            raise ValueError("closure: the parts step once with the gradients that are there")
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load, and hand the new groups and state to the parts."""
        super().load_state_dict(state_dict)
        self._share()


def log_group(kind: str, group: dict[str, Any]) -> None:
    """Say which optimizer trains how much."""
    log.info(
        "%s: %d tensors (%s numbers) in group %s, lr %g, weight decay %g",
        kind,
        len(group["params"]),
        f"{sum(p.numel() for p in group['params']):,}",
        group["name"],
        group["lr"],
        group["weight_decay"],
    )
