"""One level of the continuum memory: residual MLP read and closed-form write gradient. Floor 1.

Read:  n = x / rms(x);  z = n U^T;  y = x + silu(z) V^T.
Given the signal d = dL/dy per token:  dV = sum d^T a;  e = (d V) silu'(z);  dU = sum e^T n;
pull-back dL/dx = d + rmsnorm_backward(e U).  (Nested Learning, Eq. 70-71; derived here.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nl.core.program import Program

NORM_EPS = 1e-6
_FEW_TOKENS = 8
"""With fewer tokens a row costs less in two products than in weights of its own."""


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

    Differentiable once. Input, z and the weights are all that is kept for it.
    """
    y, z = _Branch.apply(x_BTD, *w)
    return y, z


def level_branch_reference(x_BTD: Tensor, w: LevelWeights) -> tuple[Tensor, Tensor]:
    """The same by autograd, the fast weights in terms of their own."""
    n = rms_normalize(x_BTD)
    z = n @ w.up.T
    if w.fast_up is not None:
        z = z - w.rate_up * (n @ w.fast_up.mT.to(n.dtype))
    a = F.silu(z)
    y = a @ w.down.T
    if w.fast_down is not None:
        y = y - w.rate_down * (a @ w.fast_down.mT.to(a.dtype))
    return y, z


def _in_force(meta: Tensor, fast: Tensor | None, rate: Tensor) -> Tensor:
    """The weights of every row, (B, P, N), or of all, (P, N)."""
    return meta if fast is None else meta - rate * fast


def _linear(x_BTN: Tensor, meta: Tensor, fast: Tensor | None, rate: Tensor) -> Tensor:
    """x W^T (B, T, P), one product where a row has tokens enough to pay for its weights."""
    if fast is None or x_BTN.shape[1] >= _FEW_TOKENS:
        return x_BTN @ _in_force(meta, fast, rate).mT.to(x_BTN.dtype)
    return x_BTN @ meta.T.to(x_BTN.dtype) - rate * (x_BTN @ fast.mT.to(x_BTN.dtype))


def _linear_backward(
    grad_BTP: Tensor, x_BTN: Tensor, meta: Tensor, fast: Tensor | None, rate: Tensor
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of input, meta weights, fast weights and rate."""
    by_x = grad_BTP @ _in_force(meta, fast, rate).to(grad_BTP.dtype)
    if fast is None:
        return by_x, grad_BTP.flatten(0, 1).mT @ x_BTN.flatten(0, 1), None, None
    if fast.dim() == 2:
        by_meta = by_fast = grad_BTP.flatten(0, 1).mT @ x_BTN.flatten(0, 1)
    else:
        by_fast = grad_BTP.mT @ x_BTN
        by_meta = by_fast.sum(0)
    by_rate = -torch.linalg.vecdot(by_fast.flatten().to(fast.dtype), fast.flatten())
    return by_x, by_meta, by_fast, by_rate.view(rate.shape)


@Program
def _branch(dtype: torch.dtype, x: Tensor, *weights: Any) -> tuple[Tensor, Tensor]:
    w = LevelWeights(*weights)
    n = rms_normalize(x).to(dtype)
    z = _linear(n, w.up, w.fast_up, w.rate_up).to(dtype)
    y = _linear(F.silu(z), w.down, w.fast_down, w.rate_down)
    return y.to(dtype), z


@Program
def _branch_adjoints(
    wanted: tuple[bool, bool], grad_y: Tensor | None, grad_z: Tensor | None, *kept: Any
) -> tuple[Any, ...]:
    """Gradients of x and the six fields of the weights; ``wanted``: of the fast ones too."""
    x, z, *weights = kept
    w = LevelWeights(*weights)
    if grad_y is None:
        grad_y = z.new_zeros(*z.shape[:2], w.down.shape[0])
    inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS)
    n = x * inverse
    gate = torch.sigmoid(z)
    a = z * gate
    by_a, by_down, by_fast_down, by_rate_down = _linear_backward(
        grad_y, a, w.down, w.fast_down, w.rate_down
    )
    # phi' = g + phi (1 - g)
    by_z = by_a.mul_(gate.addcmul_(a, 1 - gate))
    by_z = by_z if grad_z is None else by_z.add_(grad_z)
    by_n, by_up, by_fast_up, by_rate_up = _linear_backward(
        by_z, n.to(z.dtype), w.up, w.fast_up, w.rate_up
    )
    by_x = _rms_backward(by_n.to(x.dtype), n, inverse)
    to_up, to_down = wanted
    by_fast_up = -w.rate_up * by_fast_up if to_up and by_fast_up is not None else None
    by_fast_down = -w.rate_down * by_fast_down if to_down and by_fast_down is not None else None
    return by_x, by_up, by_down, by_fast_up, by_fast_down, by_rate_up, by_rate_down


class _Branch(torch.autograd.Function):
    """``level_branch``: x, then the six fields of the weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Any) -> tuple[Tensor, Tensor]:
        device = x.device.type
        half = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if half else x.dtype
        with torch.autocast(device, enabled=False):
            y, z = _branch(dtype, x, *weights, tokens=x.shape[1])
        ctx.save_for_backward(x, z, *weights)
        ctx.set_materialize_grads(False)
        return y, z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, grad_z: Tensor | None) -> tuple[Any, ...]:
        kept = ctx.saved_tensors
        wanted = (ctx.needs_input_grad[3], ctx.needs_input_grad[4])
        with torch.autocast(kept[0].device.type, enabled=False):
            return _branch_adjoints(wanted, grad_y, grad_z, *kept, tokens=kept[0].shape[1])


def _rms_backward(grad: Tensor, normalized: Tensor, inverse: Tensor) -> Tensor:
    """Gradient of x from that of x / rms(x)."""
    along = (grad * normalized).mean(-1, keepdim=True)
    return torch.addcmul(grad, normalized, along, value=-1).mul_(inverse)


def level_hidden_signal(z_BTF: Tensor, signal_BTD: Tensor, w: LevelWeights) -> Tensor:
    """e = (d V) silu'(z): the signal at the pre-activation, (B, T, F)."""
    parts = (z_BTF, signal_BTD, w.down, w.fast_down, w.rate_down)
    found: Tensor = _hidden_signal(None, *parts, tokens=z_BTF.shape[1])
    return found


@Program
def _hidden_signal(_: None, z: Tensor, signal: Tensor, *down: Any) -> Tensor:
    gate = torch.sigmoid(z)
    return _pulled(signal, *down) * (gate * (1 + z * (1 - gate)))


def _pulled(signal: Tensor, meta: Tensor, fast: Tensor | None, rate: Tensor) -> Tensor:
    """signal W, as ``_linear``."""
    if fast is None or signal.shape[1] >= _FEW_TOKENS:
        return signal @ _in_force(meta, fast, rate)
    return signal @ meta - rate * (signal @ fast)


def level_pull_back(
    x_BTD: Tensor, signal_BTD: Tensor, hidden_signal_BTF: Tensor, w: LevelWeights
) -> Tensor:
    """dL/dx of the level: the residual path plus the path through norm and first layer."""
    parts = (x_BTD, signal_BTD, hidden_signal_BTF, w.up, w.fast_up, w.rate_up)
    found: Tensor = _pull_back(None, *parts, tokens=x_BTD.shape[1])
    return found


@Program
def _pull_back(_: None, x: Tensor, signal: Tensor, hidden_signal: Tensor, *up: Any) -> Tensor:
    inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS)
    return signal + _rms_backward(_pulled(hidden_signal, *up), x * inverse, inverse)


def level_gradients(
    x_BTD: Tensor, z_BTF: Tensor, signal_BTD: Tensor, hidden_signal_BTF: Tensor
) -> tuple[Tensor, Tensor]:
    """Per-row gradient of the summed signal: dU (B, F, D) and dV (B, D, F)."""
    parts = (x_BTD, z_BTF, signal_BTD, hidden_signal_BTF)
    up, down = _gradients(None, *parts, tokens=x_BTD.shape[1])
    return up, down


@Program
def _gradients(
    _: None, x: Tensor, z: Tensor, signal: Tensor, hidden_signal: Tensor
) -> tuple[Tensor, Tensor]:
    return hidden_signal.mT @ rms_normalize(x), signal.mT @ F.silu(z)


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
