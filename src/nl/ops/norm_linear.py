"""RMS norm with a gain and the projection behind it, as one function. Floor 1.

y = (x / rms(x) * gain) W^T. Only x and the parameters are kept for the backward pass; apart from
each other norm, gain and projection keep x three times.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nl.core.program import Program

RMS_EPS = 1.1920928955078125e-07
"""Added to mean squares without an eps of their own: that of fp32, in every dtype the same."""


@Program
def _projected(dtype: torch.dtype, x: Tensor, gain: Tensor, weight: Tensor) -> Tensor:
    normalized, _ = _normalize(x)
    return F.linear((normalized * gain).to(dtype), weight.to(dtype))


@Program
def _adjoints(
    dtype: torch.dtype, grad: Tensor, x: Tensor, gain: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    normalized, inverse = _normalize(x)
    scaled = (normalized * gain).to(dtype)
    by_weight = grad.flatten(0, -2).mT @ scaled.flatten(0, -2)
    by_scaled = (grad @ weight.to(dtype)).to(normalized.dtype)
    by_gain = (by_scaled * normalized).flatten(0, -2).sum(0)
    by_normalized = by_scaled * gain.to(normalized.dtype)
    along = (by_normalized * normalized).mean(-1, keepdim=True)
    by_x = torch.addcmul(by_normalized, normalized, along, value=-1).mul_(inverse)
    return by_x.to(x.dtype), by_gain, by_weight


def _run(program: Program, dtype: torch.dtype, x: Tensor, *rest: Tensor) -> Any:
    """A program, as it is on the CPU: there a compiled call costs more than it saves."""
    if x.is_cpu:
        return program.function(dtype, x, *rest)
    return program(dtype, x, *rest, tokens=x.shape[-2])


class _NormLinear(torch.autograd.Function):
    """``norm_linear`` in a given dtype of the product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = dtype
        ctx.save_for_backward(x, gain, weight)
        with torch.autocast(x.device.type, enabled=False):
            y: Tensor = _run(_projected, dtype, x, gain, weight)
            return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            return *_run(_adjoints, ctx.dtype, grad, *kept), None


def _normalize(x: Tensor) -> tuple[Tensor, Tensor]:
    """x / rms(x) and 1 / rms(x), at least fp32."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    inverse = x.square().mean(-1, keepdim=True).add_(RMS_EPS).rsqrt_()
    return x * inverse, inverse


def norm_linear(x: Tensor, gain: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Normalise and project.

    Args:
        x: (..., D).
        gain: (D,).
        weight: (P, D).
        dtype: of the product and the result, unless autocast says another.

    Returns:
        (..., P). Differentiable once.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    y: Tensor = _NormLinear.apply(x, gain, weight, dtype)
    return y


def norm_linear_reference(x: Tensor, gain: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The same in three steps of autograd."""
    n = F.rms_norm(x, x.shape[-1:], gain.to(x.dtype), eps=RMS_EPS)
    return F.linear(n.to(dtype), weight.to(dtype))
