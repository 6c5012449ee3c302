"""Sliding-window attention with a bounded past and persistent keys. Floor 2.

A token sees itself, the ``window - 1`` tokens before it, and a few learned keys and values without
position (the persistent memory of Titans, arXiv 2501.00663, section 3.3). The State holds at most
``window - 1`` keys, so streams may have any length.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from nl.nn.attention import Attention, AttentionConfig, AttentionState
from nl.nn.context import ReadContext
from nl.ops.attention import window_attention
from nl.ops.norm_linear import RMS_EPS

_VALUE_SCALE = 0.02


class Persistent(nn.Module):
    """Learned keys and values, seen by every query; the values start small.

    Args:
        config: of the attention that sees them.
        dim: width D of the layer.
        count: how many, P >= 1.
    """

    def __init__(self, config: AttentionConfig, dim: int, count: int) -> None:
        super().__init__()
        self.qk_norm = config.qk_norm
        shape = (config.heads, count, dim // config.heads)
        self.keys = nn.Parameter(torch.randn(shape))
        self.values = nn.Parameter(_VALUE_SCALE * torch.randn(shape))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Keys and values, (H, P, K) each."""
        keys = rms_norm(self.keys, self.keys.shape[-1:], eps=RMS_EPS) if self.qk_norm else self.keys
        return keys, self.values


class WindowAttention(Attention):
    """(B, T, D) -> (B, T, D); new tokens attend to a window that ends with them.

    Args:
        config: heads and norms.
        dim: width D.
        residual_scale: of the output projection at initialisation.
        window: tokens seen, the newest included, >= 1.
        persistent: learned keys that every token sees besides; 0 = none.
    """

    def __init__(
        self,
        config: AttentionConfig,
        dim: int,
        residual_scale: float,
        *,
        window: int,
        persistent: int,
    ) -> None:
        super().__init__(config, dim, residual_scale)
        self.window = window
        self.persistent = Persistent(config, dim, persistent) if persistent else None

    def forward(
        self, x_BTD: Tensor, state: AttentionState | None, ctx: ReadContext
    ) -> tuple[Tensor, AttentionState]:
        """Attend; keep what the next token will still see. As ``Attention.forward``."""
        q, k, v = self.project(x_BTD, ctx)
        seen = AttentionState(k, v) if state is None else self.past(state).extended(k, v)
        k, v = seen.keys.to(q.dtype), seen.values.to(q.dtype)
        always = None if self.persistent is None else self.persistent()
        y = window_attention(q, k, v, self.window, always, seen.hidden)
        old = max(0, k.shape[2] - (self.window - 1))
        return self.join(y.to(seen.values.dtype)), seen.without_oldest(old)

    def attended(self, seq_len: int) -> float:
        """Keys that a token of a sequence of this length sees, on average."""
        if seq_len <= self.window:
            return seq_len / 2
        return self.window * (seq_len - self.window / 2) / seq_len
