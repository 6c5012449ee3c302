"""Causal softmax attention of new tokens over past and new tokens. Floor 1."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_attention(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor) -> Tensor:
    """Attention of the last T of S positions, each over itself and everything before it.

    Args:
        q_BHTK: (B, H, T, K) queries of the newest T positions.
        k_BHSK, v_BHSK: (B, H, S, K) keys and values of all S >= T positions.

    Returns:
        (B, H, T, K).
    """
    new, total = q_BHTK.shape[2], k_BHSK.shape[2]
    if new == total:
        return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, is_causal=True)
    if new == 1:
        return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK)
    mask = torch.ones(new, total, dtype=torch.bool, device=q_BHTK.device).tril(total - new)
    return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, attn_mask=mask)


def causal_attention_reference(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor) -> Tensor:
    """The same, one query at a time."""
    new, total = q_BHTK.shape[2], k_BHSK.shape[2]
    rows = []
    for t in range(new):
        seen = total - new + t + 1
        score = q_BHTK[:, :, t : t + 1] @ k_BHSK[:, :, :seen].transpose(-1, -2)
        weight = (score / math.sqrt(q_BHTK.shape[-1])).softmax(-1)
        rows.append(weight @ v_BHSK[:, :, :seen])
    return torch.cat(rows, dim=2)
