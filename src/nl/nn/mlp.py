"""Gated feed-forward layer (SwiGLU, Shazeer 2020). Floor 2."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nl.nn.init import init_linear


class SwiGLU(nn.Module):
    """(B, T, D) -> (B, T, D): W_out (silu(W_gate x) * W_value x)."""

    def __init__(self, dim: int, hidden: int, residual_scale: float) -> None:
        super().__init__()
        self.into = nn.Linear(dim, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, dim, bias=False)
        init_linear(self.into)
        init_linear(self.out, scale=residual_scale)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """The branch to add to the residual."""
        gate, value = self.into(x_BTD).chunk(2, dim=-1)
        out: Tensor = self.out(F.silu(gate) * value)
        return out
