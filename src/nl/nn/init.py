"""How weights are drawn. Floor 2."""

from __future__ import annotations

from torch import nn


def init_linear(layer: nn.Linear, *, scale: float = 1.0) -> None:
    """Normal with standard deviation ``scale / sqrt(fan_in)``: unit-variance input, unit output.

    Projections into the residual stream take ``scale = 1 / sqrt(2 * layers)``, so that the stream
    keeps its size at any depth (GPT-2's rule).
    """
    nn.init.normal_(layer.weight, std=scale * layer.in_features**-0.5)
