"""Next-token cross-entropy and the teach signal, from one pass over the logits. Floor 1.

The gradient of a token's cross-entropy with respect to the hidden state the head reads is
``(softmax - onehot) W_head``. That closed form is both the teach signal of label-driven memory
levels (Nested Learning, Eq. 71) and the backward pass of the loss, so it is computed once.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nl.core.batch import IGNORE


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        scored = target != IGNORE
        safe = torch.where(scored, target, 0)
        logits = hidden @ weight.T
        wide = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        nll = wide.logsumexp(-1) - wide.gather(-1, safe[:, None]).squeeze(-1)
        residual = wide.softmax(-1)
        residual.scatter_add_(-1, safe[:, None], -torch.ones_like(nll)[:, None])
        residual.mul_(scored[:, None])
        residual = residual.to(hidden.dtype)
        signal = residual @ weight
        ctx.save_for_backward(hidden, residual, signal)
        ctx.mark_non_differentiable(signal)
        ctx.set_materialize_grads(False)
        return torch.where(scored, nll, 0.0), signal, logits

    @staticmethod
    def backward(
        ctx: Any, grad_nll: Tensor | None, _signal: Tensor | None, grad_logits: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None]:
        if grad_logits is not None:
            raise RuntimeError("logits of linear_cross_entropy carry no gradient; use the nll")
        if grad_nll is None:
            return None, None, None
        hidden, residual, signal = ctx.saved_tensors
        scale = grad_nll[:, None].to(hidden.dtype)
        return signal * scale, (residual * scale).T @ hidden, None


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of a linear head, its teach signal and its logits.

    Args:
        hidden: (N, D) what the head reads.
        weight: (S, D) head weight, S words.
        target: (N,) int64, ``IGNORE`` where unscored.

    Returns:
        nll (N,) in nats, at least fp32, 0 where unscored, differentiable in hidden and weight;
        signal (N, D) = d nll_n / d hidden_n, no gradient; logits (N, S), no gradient.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        low = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(low), weight.to(low)
    nll, signal, logits = _LinearCrossEntropy.apply(hidden, weight, target)
    return nll, signal, logits.detach()


def teach_signal(
    logits: Tensor, weight: Tensor, target: Tensor, *, through: bool = False
) -> Tensor:
    """(softmax - onehot) W: d nll / d hidden per token, zero where unscored.

    Args:
        logits: (..., S); weight: (S, D); target: (...,) int64.
        through: whether the signal has a gradient of its own in logits and weight.

    Returns:
        (..., D).
    """
    with torch.set_grad_enabled(through and torch.is_grad_enabled()):
        scored = target != IGNORE
        residual = logits.to(weight.dtype).softmax(-1)
        index = torch.where(scored, target, 0)[..., None]
        residual = residual.scatter_add(-1, index, -torch.ones_like(index, dtype=residual.dtype))
        return (residual * scored[..., None]) @ weight


def differentiable_cross_entropy(
    hidden: Tensor, weight: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``linear_cross_entropy`` whose signal has a gradient in hidden and weight.

    For writes that the outer loss is differentiated through; it keeps the logits for that.
    """
    logits = hidden @ weight.T
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    nll = F.cross_entropy(wide, target, ignore_index=IGNORE, reduction="none")
    return nll, teach_signal(wide, weight, target, through=True), logits.detach()


def linear_cross_entropy_reference(
    hidden: Tensor, weight: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same from ``F.cross_entropy`` and autograd, one token at a time."""
    logits = hidden @ weight.T
    nll = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")
    signal = torch.zeros_like(hidden)
    for n in range(len(hidden)):
        if target[n] != IGNORE:
            leaf = hidden[n].detach().requires_grad_()
            loss = F.cross_entropy(leaf @ weight.detach().T, target[n])
            signal[n] = torch.autograd.grad(loss, leaf)[0]
    return nll, signal, logits.detach()
