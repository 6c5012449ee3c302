"""One level of the continuum memory: residual MLP read and closed-form write gradient. Floor 1.

Read:  n = x / rms(x);  z = n U^T;  y = x + silu(z) V^T.
Given the signal d = dL/dy per token:  dV = sum d^T a;  e = (d V) silu'(z);  dU = sum e^T n;
pull-back dL/dx = d + rmsnorm_backward(e U).  (Nested Learning, Eq. 70-71; derived here.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_EPS = 1e-6


def rms_normalize(x: Tensor) -> Tensor:
    """x / rms(x) over the last axis."""
    return F.rms_norm(x, x.shape[-1:], eps=NORM_EPS)


class LevelWeights(NamedTuple):
    """Meta weights of a level and what its memory adds to them, row by row.

    The weights in force are ``up - rate_up * fast_up`` and ``down - rate_down * fast_down``.

    Attributes:
        up, down: (F, D) and (D, F), learned by the outer optimizer.
        fast_up, fast_down: (B, F, D) and (B, D, F) sums of write gradients, or without B where
            rows share them; None before the first write.
        rate_up, rate_down: () or (1,) inner learning rates.
    """

    up: Tensor
    down: Tensor
    fast_up: Tensor | None
    fast_down: Tensor | None
    rate_up: Tensor
    rate_down: Tensor

    def to(self, dtype: torch.dtype) -> LevelWeights:
        """The same weights in another dtype."""
        return LevelWeights(*(None if t is None else t.to(dtype) for t in self))  # type: ignore[arg-type]


def level_read(x_BTD: Tensor, w: LevelWeights) -> tuple[Tensor, Tensor]:
    """Read a level.

    Args:
        x_BTD: (B, T, D) input.

    Returns:
        y (B, T, D) and the pre-activation z (B, T, F).
    """
    branch, z = level_branch(x_BTD, w)
    return x_BTD + branch, z


def level_branch(x_BTD: Tensor, w: LevelWeights) -> tuple[Tensor, Tensor]:
    """What a level adds to its input: silu(z) V^T (B, T, D), and z (B, T, F).

    The fast weights enter as a term of their own, so that the rates get their gradient without one
    for the fast weights.
    """
    n = rms_normalize(x_BTD)
    z = n @ w.up.T
    if w.fast_up is not None:
        z = z - w.rate_up * (n @ w.fast_up.mT.to(n.dtype))
    a = F.silu(z)
    y = a @ w.down.T
    if w.fast_down is not None:
        y = y - w.rate_down * (a @ w.fast_down.mT.to(a.dtype))
    return y, z


def level_hidden_signal(z_BTF: Tensor, signal_BTD: Tensor, w: LevelWeights) -> Tensor:
    """e = (d V) silu'(z): the signal at the pre-activation, (B, T, F)."""
    back = signal_BTD @ w.down
    if w.fast_down is not None:
        back = back - w.rate_down * (signal_BTD @ w.fast_down)
    gate = torch.sigmoid(z_BTF)
    return back * (gate * (1 + z_BTF * (1 - gate)))


def level_pull_back(
    x_BTD: Tensor, signal_BTD: Tensor, hidden_signal_BTF: Tensor, w: LevelWeights
) -> Tensor:
    """dL/dx of the level: the residual path plus the path through norm and first layer."""
    g = hidden_signal_BTF @ w.up
    if w.fast_up is not None:
        g = g - w.rate_up * (hidden_signal_BTF @ w.fast_up)
    inverse = torch.rsqrt(x_BTD.square().mean(-1, keepdim=True) + NORM_EPS)
    n = x_BTD * inverse
    return signal_BTD + inverse * (g - n * (g * n).mean(-1, keepdim=True))


def level_gradients(
    x_BTD: Tensor, z_BTF: Tensor, signal_BTD: Tensor, hidden_signal_BTF: Tensor
) -> tuple[Tensor, Tensor]:
    """Per-row gradient of the summed signal: dU (B, F, D) and dV (B, D, F)."""
    n = rms_normalize(x_BTD)
    grad_up = hidden_signal_BTF.transpose(1, 2) @ n
    grad_down = signal_BTD.transpose(1, 2) @ F.silu(z_BTF)
    return grad_up, grad_down


def level_gradients_reference(
    x_BTD: Tensor, signal_BTD: Tensor, up_BFD: Tensor, down_BDF: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dU, dV and dL/dx by autograd through a plainly written read, row by row.

    Args:
        up_BFD, down_BDF: the full weights of every row.
    """
    rows = []
    for x, signal, up, down in zip(x_BTD, signal_BTD, up_BFD, down_BDF, strict=True):
        leaves = [t.detach().clone().requires_grad_() for t in (up, down, x)]
        u, v, inp = leaves
        n = inp / (inp.square().mean(-1, keepdim=True) + NORM_EPS).sqrt()
        y = inp + F.silu(n @ u.T) @ v.T
        rows.append(torch.autograd.grad((y * signal).sum(), leaves))
    grad_up, grad_down, grad_x = (torch.stack(parts) for parts in zip(*rows, strict=True))
    return grad_up, grad_down, grad_x
