"""The delta rule over one chunk in closed form: decays, one triangular system, one update. Floor 1.

Per token ``W <- W (a I - r k k^T) - r g k^T`` with the gradients ``g`` given (frozen at the chunk
start). With ``l`` the cumulative log decay, ``X`` the keys (C, N) and ``G`` the gradients (C, P):

    (I + L) U = diag(r) [diag(exp(l_{t-1})) X W_0^T + G],  L_ti = r_t exp(l_{t-1} - l_i) <x_t, x_i>
    W_C = exp(l_C) W_0 - U^T diag(exp(l_C - l_t)) X,       i < t

Every ratio of decays is at most 1, so nothing is divided by a decay. Source: the WY form of the
gated delta rule (arXiv 2412.06464) with the gradient of a frozen memory in place of the value.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

LOG_DECAY_MIN = -80.0
"""Smaller log decays act as this one: the rest of the memory is below the smallest fp32 number."""

_DIRECT_SIZE = 8
"""Up to this size an inverse by doubling; larger systems are split in halves.

With equal keys the powers of L have binomials of the size as entries, which cancel: at 16 that
costs two digits of fp32, at 8 none.
"""


class ChunkDecay(NamedTuple):
    """Products of the decays a_1..a_C of one chunk.

    Attributes:
        before: (..., C) decay from the chunk start up to the token before t.
        after: (..., C) decay from token t (exclusive) to the chunk end.
        total: (...,) decay over the whole chunk.
        ratio: (..., C, C) decay between token i (exclusive) and the token before t; 0 where i >= t.
    """

    before: Tensor
    after: Tensor
    total: Tensor
    ratio: Tensor


def chunk_decay(log_decay: Tensor) -> ChunkDecay:
    """The decay products of one chunk.

    Args:
        log_decay: (..., C) log of the per-token retention, <= 0; -inf is allowed.

    Returns:
        The products in the dtype of ``log_decay``; sums of logs are kept in float64, because
        differences of long sums lose the small ones in float32.
    """
    dtype = log_decay.dtype
    total = log_decay.clamp(min=LOG_DECAY_MIN).double().cumsum(-1)
    previous = pad(total[..., :-1], (1, 0))
    size = log_decay.shape[-1]
    earlier = torch.ones(size, size, dtype=torch.bool, device=log_decay.device).tril(-1)
    gap = (previous.unsqueeze(-1) - total.unsqueeze(-2)).to(dtype)
    return ChunkDecay(
        before=previous.to(dtype).exp(),
        after=(total[..., -1:] - total).to(dtype).exp(),
        total=total[..., -1].to(dtype).exp(),
        ratio=gap.masked_fill(~earlier, float("-inf")).exp(),
    )


def _inverse_by_doubling(strict: Tensor) -> Tensor:
    """(I + L)^-1 = (I - L)(I + L^2)(I + L^4)... for a strictly lower triangular L (..., C, C)."""
    size = strict.shape[-1]
    power = -strict
    inverse = power + torch.eye(size, dtype=strict.dtype, device=strict.device)
    reached = 2
    while reached < size:
        power = power @ power
        inverse = inverse + inverse @ power
        reached *= 2
    return inverse


def _inverse_by_halves(strict: Tensor) -> Tensor:
    """(I + L)^-1 for C = 2^n ``_DIRECT_SIZE``; both halves are inverted in one batch."""
    size = strict.shape[-1]
    if size <= _DIRECT_SIZE:
        return _inverse_by_doubling(strict)
    half = size // 2
    corners = torch.stack([strict[..., :half, :half], strict[..., half:, half:]], dim=-3)
    head, tail = _inverse_by_halves(corners).unbind(-3)
    inverse = torch.zeros_like(strict)
    inverse[..., :half, :half] = head
    inverse[..., half:, half:] = tail
    inverse[..., half:, :half] = -(tail @ strict[..., half:, :half]) @ head
    return inverse


class _UnitLowerInverse(torch.autograd.Function):
    """(I + L)^-1 with the backward pass -X^T dX X^T instead of one through every product."""

    @staticmethod
    def forward(ctx: Any, strict: Tensor) -> Tensor:
        size = padded = strict.shape[-1]
        if size > _DIRECT_SIZE:
            padded = _DIRECT_SIZE << ((size - 1) // _DIRECT_SIZE).bit_length()
        if padded > size:  # a pad of nothing still copies
            strict = pad(strict, (0, padded - size, 0, padded - size))
        inverse = _inverse_by_halves(strict)[..., :size, :size]
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors
        transposed = inverse.transpose(-1, -2)
        with torch.autocast(grad.device.type, enabled=False):
            return -(transposed @ grad @ transposed).tril(-1)


def unit_lower_inverse(strict: Tensor) -> Tensor:
    """(I + L)^-1 for strictly lower triangular L.

    Args:
        strict: (..., C, C); entries on and above the diagonal must be zero.

    Returns:
        (..., C, C), unit lower triangular. Blocked doubling: about twice as fast as a triangular
        solve with the identity for C <= 128, and one inverse serves every right-hand side.
    """
    inverse: Tensor = _UnitLowerInverse.apply(strict)
    return inverse


def delta_inverse(gram: Tensor, ratio: Tensor, rate: Tensor) -> Tensor:
    """The inverse system of one chunk, shared by every memory with these keys and rates.

    Args:
        gram: (..., C, C) inner products of the keys.
        ratio: (..., C, C) from ``chunk_decay``.
        rate: (..., C).

    Returns:
        (I + L)^-1 with L_ti = r_t ratio_ti gram_ti, (..., C, C).
    """
    return unit_lower_inverse(rate.unsqueeze(-1) * (gram * ratio))


def delta_chunk(
    weight: Tensor, keys: Tensor, grads: Tensor, log_decay: Tensor, rate: Tensor
) -> Tensor:
    """The weight after the C tokens of ``W <- W (a I - r k k^T) - r g k^T``, a = exp(log_decay).

    Args:
        weight: (..., P, N) at the chunk start.
        keys: (..., C, N).
        grads: (..., C, P).
        log_decay: (..., C), <= 0.
        rate: (..., C); stable for 0 <= r |k|^2 <= 1 + a.

    Returns:
        (..., P, N) in the dtype of ``weight``.
    """
    decay = chunk_decay(log_decay)
    inverse = delta_inverse(keys @ keys.transpose(-1, -2), decay.ratio, rate)
    seen = decay.before.unsqueeze(-1) * (keys @ weight.transpose(-1, -2))
    update = inverse @ (rate.unsqueeze(-1) * (seen + grads))
    written = update.transpose(-1, -2) @ (decay.after.unsqueeze(-1) * keys)
    return decay.total[..., None, None] * weight - written


def delta_chunk_reference(
    weight: Tensor, keys: Tensor, grads: Tensor, log_decay: Tensor, rate: Tensor
) -> Tensor:
    """The token loop that ``delta_chunk`` must equal; same arguments, same result."""
    for t in range(keys.shape[-2]):
        key, grad = keys[..., t, :], grads[..., t, :]
        step = rate[..., t, None, None]
        seen = (weight @ key.unsqueeze(-1)) * key.unsqueeze(-2)
        taught = grad.unsqueeze(-1) * key.unsqueeze(-2)
        weight = log_decay[..., t, None, None].exp() * weight - step * (seen + taught)
    return weight
