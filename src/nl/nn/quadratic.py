"""A recurrent cell whose two drives meet in a square or a product. Floor 2.

h' = phi(W_mix h, W_drive x), phi(a, b) = (a + b)^2 or a * b, element-wise, no biases.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nl.ops.recurrent import Transform


def scaled_normal(rows: int, columns: int, scale: float) -> nn.Parameter:
    """A (rows, columns) parameter, normal with standard deviation scale / sqrt(columns)."""
    return nn.Parameter(torch.randn(rows, columns) * (scale / math.sqrt(columns)))


class QuadraticCell(nn.Module):
    """One step of the recurrence.

    Attributes:
        mix: (F, F) reads the hidden vector.
        drive: (F, P) reads the input.
    """

    hidden_matrices: ClassVar[dict[str, bool]] = {"mix": True}

    def __init__(self, size: int, hidden: int, scale: float, transform: Transform) -> None:
        super().__init__()
        self.transform = transform
        self.mix = scaled_normal(hidden, hidden, scale)
        self.drive = scaled_normal(hidden, size, scale)

    def join(self, left_BF: Tensor, inputs_BP: Tensor) -> Tensor:
        """phi(left, W_drive x), (B, F): the first step, where ``left`` is an embedding."""
        right_BF = F.linear(inputs_BP, self.drive)
        return (
            (left_BF + right_BF).square() if self.transform == "quadratic" else left_BF * right_BF
        )

    def forward(self, hidden_BF: Tensor, inputs_BP: Tensor) -> Tensor:
        """phi(W_mix h, W_drive x), (B, F)."""
        return self.join(F.linear(hidden_BF, self.mix), inputs_BP)
