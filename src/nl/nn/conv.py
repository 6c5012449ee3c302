"""Causal depthwise convolution over time that carries its tail between calls. Floor 2."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from nl.nn.init import zeros_beside


class CausalConv(nn.Module):
    """y_t = sum_i w_i x_{t - W + 1 + i} per channel, width W.

    Taps start uniform in +-W^-1/2, so that channels differ in which token they show: a memory can
    only bind a token to the one before it if some channels favour each of them.

    Args:
        dim: channels.
        width: taps, >= 1; the tail holds the last ``width - 1`` inputs.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.empty(width, dim).uniform_(-1, 1) / math.sqrt(width))

    def init_tail(self, batch: int) -> Tensor:
        """The tail before the first token: zeros (B, W - 1, D), at least fp32."""
        return zeros_beside(self.weight, batch, self.width - 1, self.weight.shape[1])

    def forward(self, x: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) and the tail of the tokens before -> (B, T, D) and the new tail."""
        length = x.shape[1]
        padded = torch.cat([tail.to(x.dtype), x], dim=1)
        weight = self.weight.to(x.dtype)
        y = padded[:, :length] * weight[0]
        for i in range(1, self.width):
            y = torch.addcmul(y, padded[:, i : i + length], weight[i])
        # A view would keep the whole call alive as long as the State.
        return y, padded[:, length:].to(tail.dtype).clone()


def convolve(
    conv: CausalConv | None, x: Tensor, tail: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """SiLU of the convolution and its new tail; x itself where there is none."""
    if conv is None or tail is None:
        return x, None
    mixed, tail = conv(x, tail)
    return silu(mixed), tail
