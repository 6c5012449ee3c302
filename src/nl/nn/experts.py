"""A feed-forward layer of which every token reads a few experts. Floor 2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nl.nn.experts_config import ExpertsConfig
from nl.nn.router import RouteContext, Router, Routing
from nl.ops.experts import (
    Activation,
    ExpertWeights,
    expert_activate,
    sparse_experts,
    try_grouped_mm,
)


class SparseExperts(nn.Module):
    """(B, T, D) -> (B, T, D): sum_j g_j E_{i_j}(x), and the shared experts of every token.

    No capacity and no dropping: every token is read by exactly k experts, whatever other tokens do,
    so that rows and cuts do not see each other.

    Args:
        config: form is not none.
        dim: width D.
        residual_scale: of the second layer at initialisation.
    """

    def __init__(self, config: ExpertsConfig, dim: int, residual_scale: float) -> None:
        super().__init__()
        assert config.count is not None
        try_grouped_mm()
        self.config, hidden = config, config.hidden
        own: Any = config.activation or "relu"
        self.activation: Activation = "swiglu" if config.form == "swiglu" else own
        halves = 2 if config.form == "swiglu" else 1
        self.router = Router(config, dim)
        out = residual_scale * hidden**-0.5
        self.up = nn.Parameter(torch.randn(config.count, dim, halves * hidden) * dim**-0.5)
        self.down = nn.Parameter(torch.randn(config.count, hidden, dim) * out)
        self.shared_up: nn.Parameter | None = None
        if config.shared:
            width = config.shared * hidden
            self.shared_up = nn.Parameter(torch.randn(dim, halves * width) * dim**-0.5)
            self.shared_down = nn.Parameter(torch.randn(width, dim) * out)

    def forward(self, x_BTD: Tensor, route: RouteContext) -> tuple[Tensor, Routing]:
        """The branch to add to the residual, and what was chosen."""
        chosen, found = self.router(x_BTD, route)
        weights = ExpertWeights(self.up, self.down, self.activation)
        x = x_BTD.flatten(0, 1)
        partial = self.config.most > 1  # k may be turned down to 1
        y = sparse_experts(x, chosen.ids, chosen.gates, weights, partial=partial)
        if self.shared_up is not None:
            y = y + expert_activate(x @ self.shared_up, self.activation) @ self.shared_down
        return y.view_as(x_BTD), found

    def idle_parameters(self) -> int:
        """Numbers in experts that a token does not read, at the configured k."""
        each = (self.up.numel() + self.down.numel()) // len(self.up)
        return each * (len(self.up) - self.config.k_of(0))


def idle_parameters(model: nn.Module) -> int:
    """Numbers in all experts of a model that a token does not read."""
    return sum(m.idle_parameters() for m in model.modules() if isinstance(m, SparseExperts))
