"""Causal softmax attention of new tokens over past and new tokens, all or a window. Floor 1.

Keys and values may have fewer heads than queries, G with H a multiple of it (grouped-query
attention, arXiv 2305.13245): each is shared by H / G query heads in a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
APART = ("cpu",)
"""Devices whose kernel for any dtype gives the scale that puts pieces together."""


def causal_attention(
    q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, hidden_B: Tensor | None = None
) -> Tensor:
    """Attention of the last T of S positions, each over itself and everything before it.

    Args:
        q_BHTK: (B, H, T, K) queries of the newest T positions.
        k_BHSK, v_BHSK: (B, H or G, S, K) keys and values of all S >= T positions.
        hidden_B: (B,) how many of the oldest S - T positions a row does not see; None: none.

    Returns:
        (B, H, T, K).
    """
    new, total = q_BHTK.shape[2], k_BHSK.shape[2]
    k_BHSK, v_BHSK = (for_queries(t, q_BHTK.shape[1]) for t in (k_BHSK, v_BHSK))
    if new == total:
        return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, is_causal=True)
    if new == 1 and hidden_B is None:
        return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK)
    mask = torch.ones(new, total, dtype=torch.bool, device=q_BHTK.device).tril(total - new)
    if hidden_B is not None:
        mask = mask & seen_keys(hidden_B, total)[:, None, None]
    return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, attn_mask=mask)


def for_queries(x_BGSK: Tensor, heads: int) -> Tensor:
    """Keys or values (B, G, S, K) once for each of the query heads, (B, H, S, K)."""
    shared = heads // x_BGSK.shape[1]
    return x_BGSK if shared == 1 else x_BGSK.repeat_interleave(shared, 1)


def seen_keys(hidden_B: Tensor, total: int) -> Tensor:
    """(B, S) bool: all of ``total`` keys but the ``hidden_B`` oldest of each row."""
    return torch.arange(total, device=hidden_B.device) >= hidden_B[:, None]


def causal_attention_reference(
    q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, hidden_B: Tensor | None = None
) -> Tensor:
    """The same, one row and one query at a time: a window that holds everything."""
    return window_attention_reference(q_BHTK, k_BHSK, v_BHSK, k_BHSK.shape[2], None, hidden_B)


class _Piecewise(torch.autograd.Function):
    """``piecewise_attention``: number of pieces, what rows do not see, q, all keys, all values."""

    @staticmethod
    def forward(
        ctx: Any, count: int, hidden_B: Tensor | None, q: Tensor, *pieces: Tensor
    ) -> Tensor:
        device = q.device.type
        ctx.count, ctx.hidden = count, hidden_B
        ctx.half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        ctx.apart = device in APART and hidden_B is None
        if not ctx.apart:
            ctx.save_for_backward(q, *pieces)
            return causal_attention(q, *_joined(count, pieces), hidden_B)
        low = [t.to(ctx.half or t.dtype) for t in (q, *pieces)]
        y, scale = _attended_apart(low[0], low[1 : 1 + count], low[1 + count :])
        ctx.save_for_backward(y, scale, q, *pieces)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        if ctx.apart:
            y, scale, *given = ctx.saved_tensors
            low = [t.to(ctx.half or t.dtype) for t in given]
            by_q, by_keys, by_values = _grads_apart(ctx.count, grad, y, scale, *low)
            return None, None, by_q, *by_keys, *by_values
        q, *pieces = ctx.saved_tensors
        device, half = q.device.type, ctx.half
        given = [t.detach().requires_grad_() for t in (q, *_joined(ctx.count, pieces))]
        with torch.enable_grad(), torch.autocast(device, half or None, enabled=bool(half)):
            y = causal_attention(given[0], given[1], given[2], ctx.hidden)
        by_q, by_k, by_v = torch.autograd.grad(y, given, grad)
        sizes = [t.shape[2] for t in pieces[: ctx.count]]
        return None, None, by_q, *by_k.split(sizes, 2), *by_v.split(sizes, 2)


def _joined(count: int, pieces: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat(tuple(pieces[:count]), 2), torch.cat(tuple(pieces[count:]), 2)


def _attended_apart(
    q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Attention to each piece on its own, put together by the size of its exponentials.

    Returns:
        The result (B, H, T, K) and the logarithm of the sum of all exponentials (B, H, T).
    """
    *past, new = zip(keys, values, strict=True)
    grouped = _by_group(q, new[0])
    found = [_flash(grouped, k, v) for k, v in past]
    found.append(_flash(q, *(for_queries(t, q.shape[1]) for t in new), 0.0, True))
    parts = [y.reshape(q.shape) for y, _ in found]
    scales = torch.stack([scale.reshape(q.shape[:3]) for _, scale in found])
    whole = scales.logsumexp(0)
    shares = (scales - whole).exp().unsqueeze(-1)
    total = parts[0] * shares[0]
    for part, share in zip(parts[1:], shares[1:], strict=True):
        total.addcmul_(part.to(total.dtype), share)
    return total.to(q.dtype), whole


def _grads_apart(
    count: int, grad: Tensor, y: Tensor, scale: Tensor, q: Tensor, *pieces: Tensor
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Gradients of the queries and of each piece's keys and values, from the whole's result."""
    *past, new = zip(pieces[:count], pieces[count:], strict=True)
    grad_g, q_g, y_g = (_by_group(t, new[0]) for t in (grad, q, y))
    scale_g = scale.reshape(q_g.shape[:3])
    found = [_flash_backward(grad_g, q_g, k, v, y_g, scale_g, 0.0, False) for k, v in past]
    near = (for_queries(t, q.shape[1]) for t in new)
    total, *by_new = _flash_backward(grad, q, *near, y, scale, 0.0, True)
    for by_q, _, _ in found:
        total += by_q.reshape(q.shape)
    by_k, by_v = (t.unflatten(1, (new[0].shape[1], -1)).sum(2) for t in by_new)
    return total, [*(f[1] for f in found), by_k], [*(f[2] for f in found), by_v]


def _by_group(x_BHTK: Tensor, keys: Tensor) -> Tensor:
    """Numbers per query (B, H, T, K) in one row per head of the keys, (B, G, H / G T, K)."""
    return x_BHTK.reshape(len(x_BHTK), keys.shape[1], -1, x_BHTK.shape[-1])


def piecewise_attention(
    q_BHTK: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    hidden_B: Tensor | None = None,
) -> Tensor:
    """``causal_attention`` over keys and values in pieces.

    For a row that is read in many calls under one backward pass: each call would keep its own copy
    of everything before it. Nothing but the pieces, the queries and the result is kept. On a CPU
    each piece is attended to on its own and the results are put together, as blocks of keys are in
    FlashAttention (arXiv 2205.14135, section 3.1); on other devices, and where rows do not see
    all, pieces are joined for the moment and the backward pass attends once more. Differentiable
    once.

    Args:
        q_BHTK: (B, H, T, K) queries of the newest T positions.
        keys, values: (B, H or G, S_i, K) each, oldest first, of one dtype; the last are of the
            queries' positions.
        hidden_B: as there.

    Returns:
        (B, H, T, K).
    """
    y: Tensor = _Piecewise.apply(len(keys), hidden_B, q_BHTK, *keys, *values)
    return y


def piecewise_attention_reference(
    q_BHTK: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    hidden_B: Tensor | None = None,
) -> Tensor:
    """The same row by row and query by query."""
    joined = torch.cat(tuple(keys), 2), torch.cat(tuple(values), 2)
    return causal_attention_reference(q_BHTK, *joined, hidden_B)


def window_attention(
    q_BHTK: Tensor,
    k_BHSK: Tensor,
    v_BHSK: Tensor,
    window: int,
    always: tuple[Tensor, Tensor] | None = None,
    hidden_B: Tensor | None = None,
) -> Tensor:
    """Attention of the last T of S positions, each over itself and the ``window - 1`` before it.

    Longer inputs are cut into blocks of ``window`` queries that see two blocks of keys each, so
    that work and memory grow with T times the window.

    Args:
        q_BHTK: (B, H, T, K) queries of the newest T positions.
        k_BHSK, v_BHSK: (B, H or G, S, K) keys and values of all S >= T positions.
        window: positions a query sees, itself included, >= 1.
        always: keys and values (H, P, K) that every query sees besides.
        hidden_B: (B,) how many of the oldest S - T positions a row does not see; None: none.

    Returns:
        (B, H, T, K).
    """
    new = q_BHTK.shape[2]
    past = min(k_BHSK.shape[2] - new, window - 1)
    cut = k_BHSK.shape[2] - new - past
    hidden_B = None if hidden_B is None or not past else hidden_B - cut
    k, v = (for_queries(t[:, :, cut:], q_BHTK.shape[1]) for t in (k_BHSK, v_BHSK))
    blocks = -(-new // window)
    if blocks == 1:
        at = torch.arange(new, device=k.device)[:, None] + past
        gap = at - torch.arange(new + past, device=k.device)
        mask = (gap >= 0) & (gap < window)
        if hidden_B is not None:
            mask = mask & seen_keys(hidden_B, new + past)[:, None, None]
        return _with_prefix(q_BHTK, k, v, mask, always)
    fill = blocks * window - new
    sides = (0, 0, window - past, fill)
    k, v = (F.pad(t, sides).unfold(2, 2 * window, window).mT.flatten(0, 1) for t in (k, v))
    q = F.pad(q_BHTK, (0, 0, 0, fill)).unflatten(2, (blocks, window)).flatten(0, 1)
    gap = torch.arange(window, device=k.device)[:, None] + window
    gap = gap - torch.arange(2 * window, device=k.device)
    mask = ((gap >= 0) & (gap < window)).repeat(blocks, 1, 1)
    mask[0, :, : window - past] = False
    if hidden_B is not None:
        mask = _hide_before_first(mask, hidden_B + window - past, q_BHTK.shape[1])
    if always is not None:
        batch = len(q_BHTK)
        always = (_per_block(always[0], batch, blocks), _per_block(always[1], batch, blocks))
    y = _with_prefix(q, k, v, mask, always)
    return y.unflatten(0, q_BHTK.shape[:2]).flatten(2, 3)[:, :, :new]


def _hide_before_first(mask: Tensor, hidden_B: Tensor, heads: int) -> Tensor:
    """The mask (blocks, T, S) per row and head, without each row's oldest keys of block 0."""
    seen = seen_keys(hidden_B, mask.shape[-1]).repeat_interleave(heads, 0)
    masks = mask.repeat(len(seen), 1, 1, 1)
    masks[:, 0] &= seen[:, None]
    return masks


def _per_block(prefix: Tensor, batch: int, blocks: int) -> Tensor:
    """(H, P, K) -> (B H, blocks, P, K)."""
    return prefix.repeat(batch, 1, 1).unsqueeze(1).expand(-1, blocks, -1, -1)


def _with_prefix(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, always: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Attention under a mask (..., T, S), with keys and values in front that all queries see."""
    if always is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    k, v = (
        torch.cat((front.to(t.dtype).expand(*t.shape[:2], -1, -1), t), 2)
        for front, t in zip(always, (k, v), strict=True)
    )
    mask = F.pad(mask, (k.shape[2] - mask.shape[-1], 0), value=True)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def window_attention_reference(
    q_BHTK: Tensor,
    k_BHSK: Tensor,
    v_BHSK: Tensor,
    window: int,
    always: tuple[Tensor, Tensor] | None = None,
    hidden_B: Tensor | None = None,
) -> Tensor:
    """The same, one row and one query at a time."""
    new, total = q_BHTK.shape[2], k_BHSK.shape[2]
    heads, groups = q_BHTK.shape[1], k_BHSK.shape[1]
    own = [head * groups // heads for head in range(heads)]
    k_BHSK, v_BHSK = k_BHSK[:, own], v_BHSK[:, own]
    rows = []
    for b in range(len(q_BHTK)):
        first = 0 if hidden_B is None else int(hidden_B[b])
        found = []
        for t in range(new):
            end = total - new + t + 1
            seen = slice(max(first, end - window), end)
            k, v = k_BHSK[b, :, seen], v_BHSK[b, :, seen]
            if always is not None:
                k, v = torch.cat((always[0], k), 1), torch.cat((always[1], v), 1)
            score = q_BHTK[b, :, t : t + 1] @ k.mT
            found.append((score / math.sqrt(q_BHTK.shape[-1])).softmax(-1) @ v)
        rows.append(torch.cat(found, dim=1))
    return torch.stack(rows)
