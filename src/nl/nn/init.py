"""How weights are drawn. Floor 2."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def init_linear(layer: nn.Linear, *, scale: float = 1.0) -> None:
    """Normal with standard deviation ``scale / sqrt(fan_in)``: unit-variance input, unit output.

    Projections into the residual stream take ``scale = 1 / sqrt(2 * layers)``, so that the stream
    keeps its size at any depth (GPT-2's rule).
    """
    nn.init.normal_(layer.weight, std=scale * layer.in_features**-0.5)


def zeros_beside(parameter: Tensor, *shape: int) -> Tensor:
    """Zeros for a State, at least fp32, on the device of a parameter that may be sharded."""
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return torch.zeros(shape, dtype=dtype, device=parameter.device)
