"""Feed-forward layers and norms. Floor 2."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from nl.nn.init import init_linear

MLPKind = Literal["swiglu", "gelu", "gelu_tanh"]
NormKind = Literal["rms", "layer"]


class SwiGLU(nn.Module):
    """(B, T, D) -> (B, T, D): W_out (silu(W_gate x) * W_value x) (Shazeer 2020)."""

    def __init__(self, dim: int, hidden: int, residual_scale: float, bias: bool = False) -> None:
        super().__init__()
        self.into = nn.Linear(dim, 2 * hidden, bias=bias)
        self.out = nn.Linear(hidden, dim, bias=bias)
        init_linear(self.into)
        init_linear(self.out, scale=residual_scale)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """The branch to add to the residual."""
        gate, value = self.into(x_BTD).chunk(2, dim=-1)
        out: Tensor = self.out(F.silu(gate) * value)
        return out


class GELU(nn.Module):
    """(B, T, D) -> (B, T, D): W_out gelu(W_in x) (Hendrycks and Gimpel 2016).

    Args:
        dim: width D.
        hidden: width between the two layers.
        residual_scale: of the second layer at initialisation.
        bias: of both.
        tanh: the approximation by tanh (GPT-2).
    """

    def __init__(
        self, dim: int, hidden: int, residual_scale: float, bias: bool, tanh: bool
    ) -> None:
        super().__init__()
        self.approximate = "tanh" if tanh else "none"
        self.into = nn.Linear(dim, hidden, bias=bias)
        self.out = nn.Linear(hidden, dim, bias=bias)
        init_linear(self.into)
        init_linear(self.out, scale=residual_scale)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """The branch to add to the residual."""
        out: Tensor = self.out(F.gelu(self.into(x_BTD), approximate=self.approximate))
        return out


def make_mlp(kind: MLPKind, dim: int, hidden: int, residual_scale: float, bias: bool) -> nn.Module:
    """The feed-forward layer of a name."""
    if kind == "swiglu":
        return SwiGLU(dim, hidden, residual_scale, bias)
    return GELU(dim, hidden, residual_scale, bias, kind == "gelu_tanh")


def make_norm(kind: NormKind, dim: int, eps: float) -> nn.Module:
    """RMSNorm (Zhang and Sennrich 2019) or LayerNorm with bias (Ba et al. 2016)."""
    return nn.RMSNorm(dim, eps=eps) if kind == "rms" else nn.LayerNorm(dim, eps=eps)
