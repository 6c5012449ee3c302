"""Rotary position embedding (RoFormer, Su et al. 2021). Floor 1."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(
    start: int, length: int, dim: int, base: float, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines for positions ``start .. start + length - 1``.

    Args:
        dim: head dimension, even.
        base: wavelength base; 10000 in the paper.

    Returns:
        (cos, sin), each (length, dim / 2); angles are computed in float64, so that long streams
        keep exact positions.
    """
    exponent = torch.arange(0, dim, 2, device=device, dtype=torch.float64) / dim
    position = torch.arange(start, start + length, device=device, dtype=torch.float64)
    angle = position[:, None] * base**-exponent
    return angle.cos().to(dtype), angle.sin().to(dtype)


def apply_rotary(x_BTHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of each head: (a, b) -> (a cos - b sin, a sin + b cos).

    Args:
        x_BTHK: (B, T, H, K) queries or keys.
        cos, sin: (T, K / 2) from ``rotary_table``.
    """
    a, b = x_BTHK.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def apply_rotary_reference(x_BTHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same rotation as complex multiplication, one position at a time."""
    half = x_BTHK.shape[-1] // 2
    out = torch.empty_like(x_BTHK)
    for t in range(x_BTHK.shape[1]):
        z = torch.complex(x_BTHK[:, t, :, :half], x_BTHK[:, t, :, half:])
        turned = z * torch.complex(cos[t], sin[t])
        out[:, t, :, :half], out[:, t, :, half:] = turned.real, turned.imag
    return out
