"""Gated delta rule in chunks: a linear memory read after every token, in closed form. Floor 1.

Per token, with state S (K, V), unit key k, value v, rate b and decay a:

    S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T        o_t = S_t^T q_t

For a chunk of C tokens, with l the cumulative log decay, D_ti = exp(l_t - l_i) for i <= t and 0
elsewhere, X the keys and Q the queries (C, K), S_0 the state at the chunk start:

    (I + L) N = diag(b) (V - diag(exp(l)) X S_0),    L_ti = b_t D_ti <x_t, x_i>, i < t
    O = diag(exp(l)) Q S_0 + (Q X^T * D) N,          S_C = exp(l_C) S_0 + X^T diag(D_C) N

The systems of all chunks are solved at once; only N and S_C wait for the chunk before. Source:
WY form of Gated DeltaNet (arXiv 2412.06464). Positive differences of l are masked before exp.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from nl.ops.delta_rule import LOG_DECAY_MIN, unit_lower_inverse


def _decays(log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """exp(l_t) (..., C) and D (..., C, C), of log decays (..., C); sums are kept in float64."""
    dtype, size = log_decay.dtype, log_decay.shape[-1]
    total = log_decay.clamp(min=LOG_DECAY_MIN).double().cumsum(-1)
    later = torch.ones(size, size, dtype=torch.bool, device=log_decay.device).triu(1)
    gap = (total.unsqueeze(-1) - total.unsqueeze(-2)).to(dtype)
    return total.to(dtype).exp(), gap.masked_fill(later, float("-inf")).exp()


def _chunks(x: Tensor, size: int) -> Tensor:
    """(N, T, ...) -> (N, T / size, size, ...), T filled up with zeros."""
    length = x.shape[1]
    fill = -length % size
    if fill:
        x = pad(x, (0,) * (2 * (x.dim() - 2)) + (0, fill))
    return x.unflatten(1, (-1, size))


def gated_delta(
    state: Tensor,
    query_key_value: tuple[Tensor, Tensor, Tensor],
    log_decay: Tensor,
    rate: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Write and read T tokens.

    Args:
        state: (N, K, V) before the first token.
        query_key_value: (N, T, K), (N, T, K) with rows of norm at most 1, and (N, T, V).
        log_decay: (N, T), <= 0; -inf is allowed.
        rate: (N, T) in [0, 1] (up to 2 with unit keys and no decay).
        chunk: tokens per triangular system; it decides the speed, not the result.

    Returns:
        (N, T, V) and the state (N, K, V) after the last token.
    """
    length = rate.shape[1]
    size = max(1, min(chunk, length))
    query, key, value = (_chunks(x, size) for x in query_key_value)
    before, ratio = _decays(_chunks(log_decay, size))
    step = _chunks(rate, size).unsqueeze(-1)
    inverse = unit_lower_inverse((step * (key @ key.transpose(-1, -2)) * ratio).tril(-1))
    reached = before.unsqueeze(-1)
    taught = inverse @ (step * value)
    erased = inverse @ (step * reached * key)
    kept = (ratio[..., -1, :].unsqueeze(-1) * key).transpose(-1, -2)
    total = before[..., -1, None, None]
    starts, updates = [], []
    for c in range(query.shape[1]):
        starts.append(state)
        updates.append(taught[:, c] - erased[:, c] @ state)
        state = torch.baddbmm(total[:, c] * state, kept[:, c], updates[-1])
    inside = (query @ key.transpose(-1, -2)) * ratio
    out = (reached * query) @ torch.stack(starts, 1) + inside @ torch.stack(updates, 1)
    return out.flatten(1, 2)[:, :length], state


def gated_delta_reference(
    state: Tensor,
    query_key_value: tuple[Tensor, Tensor, Tensor],
    log_decay: Tensor,
    rate: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """The token loop that ``gated_delta`` must equal for any ``chunk``, which it does not use."""
    del chunk
    outputs = []
    for q, k, v, g, b in zip(
        *(x.unbind(1) for x in (*query_key_value, log_decay, rate)), strict=True
    ):
        state = g.exp()[:, None, None] * state
        error = v - (k.unsqueeze(1) @ state).squeeze(1)
        state = state + b[:, None, None] * k.unsqueeze(2) * error.unsqueeze(1)
        outputs.append((q.unsqueeze(1) @ state).squeeze(1))
    return torch.stack(outputs, 1), state
