"""Multi-head causal attention with rotary positions; its past is State. Floor 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nl.config import require
from nl.core.state import state_type
from nl.nn.context import ReadContext
from nl.nn.init import init_linear
from nl.ops.attention import causal_attention, piecewise_attention
from nl.ops.norm_linear import RMS_EPS
from nl.ops.rotary import apply_rotary

JOINED = 8
"""Pieces of the past that become one; each joining keeps their numbers once more."""


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Softmax attention over everything read so far."""

    heads: int = 4
    """Number of heads; must divide model.dim into even parts."""
    kv_heads: int | None = None
    """Heads of keys and values, each shared by equally many of queries; null: as many."""
    qk_norm: bool = True
    """Normalise queries and keys per head (RMS) before the rotation."""
    bias: bool = False
    """Biases of the projections."""
    rotary: float = 1.0
    """Share of each head that turns with the position, in (0, 1]."""

    def __post_init__(self) -> None:
        require(self.heads >= 1, f"heads: {self.heads}; must be >= 1.")
        shared = self.kv_heads
        require(
            shared is None or (shared >= 1 and self.heads % shared == 0),
            f"kv_heads: {shared}; must divide heads ({self.heads}), or null.",
        )
        require(0 < self.rotary <= 1, f"rotary: {self.rotary}; must be in (0, 1].")

    def rotated(self, head_size: int) -> int:
        """How many numbers of a head turn with the position: an even number."""
        return int(head_size * self.rotary) // 2 * 2


@state_type
class AttentionState(NamedTuple):
    """Keys and values read so far, (B, G, S, K) each, for the G heads that keys and values have.

    ``hidden`` (B,) counts the oldest of them that belong to what a row read before it was reset;
    they are zero and nothing sees them. None: no row was reset. ``recent`` are keys and values that
    come after these, in pieces as they were read; a call leaves none (``settled``).
    """

    keys: Tensor
    values: Tensor
    hidden: Tensor | None = None
    recent: tuple[tuple[Tensor, Tensor], ...] = ()

    def reset_rows(self, fresh: Any, mask: Tensor) -> AttentionState:
        """Rows of ``mask`` see none of the past; it keeps its place in the cache."""
        del fresh
        count = sum(keys.shape[2] for keys, _ in self.pieces())
        if not count:
            return self
        chosen = mask[:, None, None, None]
        before = torch.zeros_like(mask, dtype=torch.int64) if self.hidden is None else self.hidden

        def erase(tensor: Tensor) -> Tensor:
            return tensor.masked_fill(chosen, 0.0)

        return AttentionState(
            erase(self.keys),
            erase(self.values),
            torch.where(mask, count, before),
            tuple((erase(keys), erase(values)) for keys, values in self.recent),
        )

    def pieces(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values, oldest first."""
        return [(self.keys, self.values), *self.recent]

    def extended(self, keys: Tensor, values: Tensor) -> AttentionState:
        """The past followed by new keys and values, whose dtype it takes, as one piece."""
        pieces = [*((k, v) for k, v in self.pieces() if k.shape[2]), (keys, values)]
        if len(pieces) == 1:
            return AttentionState(keys, values, self.hidden)
        return AttentionState(
            torch.cat([k.to(keys.dtype) for k, _ in pieces], 2),
            torch.cat([v.to(values.dtype) for _, v in pieces], 2),
            self.hidden,
        )

    def settled(self) -> AttentionState:
        """The same in one piece, which keeps nothing else alive."""
        if not self.recent:
            return self.owned()
        return self._replace(recent=self.recent[:-1]).extended(*self.recent[-1])

    def owned(self) -> AttentionState:
        """The same without views: values lie among queries and keys of one product."""
        return self._replace(keys=_owned(self.keys), values=_owned(self.values))

    def followed(self, keys: Tensor, values: Tensor) -> AttentionState:
        """As ``extended``, in pieces: joining all at every call would copy the past each time.

        ``JOINED`` pieces of one length in the past become one, so that few are left of a long one.
        """
        if not self.keys.shape[2] and not self.recent:
            return AttentionState(keys, values, self.hidden)
        recent = self.recent
        while len(recent) >= JOINED and len({k.shape[2] for k, _ in recent[-JOINED:]}) == 1:
            newest = zip(*recent[-JOINED:], strict=True)
            k, v = (torch.cat(tuple(parts), 2) for parts in newest)
            recent = (*recent[:-JOINED], (k, v))
        return self._replace(recent=(*recent, (keys, values)))

    def without_oldest(self, count: int) -> AttentionState:
        """What is left of one piece when the oldest ``count`` positions are forgotten."""
        hidden = None if self.hidden is None else (self.hidden - count).clamp(min=0)
        if not count:
            return self._replace(hidden=hidden)
        # Views would keep what is forgotten alive.
        return AttentionState(
            self.keys[:, :, count:].clone(), self.values[:, :, count:].clone(), hidden
        )


class Attention(nn.Module):
    """(B, T, D) -> (B, T, D); new tokens attend to themselves and everything before."""

    memory_parameters = False

    def __init__(self, config: AttentionConfig, dim: int, residual_scale: float) -> None:
        super().__init__()
        self.config, self.head_size = config, dim // config.heads
        self.kv_heads = config.kv_heads or config.heads
        both = 2 * self.kv_heads * self.head_size
        self.qkv = nn.Linear(dim, dim + both, bias=config.bias)
        self.out = nn.Linear(dim, dim, bias=config.bias)
        init_linear(self.qkv)
        init_linear(self.out, scale=residual_scale)

    def init_state(self, batch: int) -> AttentionState:
        """Nothing read yet."""
        shape = (batch, self.kv_heads, 0, self.head_size)
        like = self.qkv.weight  # may be sharded between calls
        keys, values = torch.zeros(2, *shape, dtype=like.dtype, device=like.device).unbind()
        return AttentionState(keys, values)

    def forward(
        self, x_BTD: Tensor, state: AttentionState | None, ctx: ReadContext
    ) -> tuple[Tensor, AttentionState]:
        """Attend and append.

        Args:
            x_BTD: (B, T, D), already normalised.
            state: keys and values of the past, or None.

        Returns:
            The branch to add to the residual, and the new state.
        """
        q, k, v = self.project(x_BTD, ctx)
        state = None if state is None else self.past(state)
        if state is None or torch.compiler.is_compiling():
            seen = AttentionState(k, v) if state is None else state.extended(k, v)
        else:
            seen = state.followed(k, v)
        if not seen.recent:
            y = causal_attention(q, seen.keys.to(q.dtype), seen.values, seen.hidden)
            frees = ctx.keep and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
            return self.join(y), seen.owned() if frees else seen
        keys = [piece.to(q.dtype) for piece, _ in seen.pieces()]
        values = [piece.to(v.dtype) for _, piece in seen.pieces()]
        return self.join(piecewise_attention(q, keys, values, seen.hidden)), seen

    def project(self, x_BTD: Tensor, ctx: ReadContext) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, K), keys and values (B, G, T, K) of new tokens.

        Queries and keys have their positions; G is the number of ``kv_heads``.
        """
        heads, shared = self.config.heads, self.kv_heads
        qkv = self.qkv(x_BTD).unflatten(-1, (heads + 2 * shared, self.head_size))
        q, k, v = qkv.split([heads, shared, shared], 2)
        if self.config.qk_norm:
            q = nn.functional.rms_norm(q, (self.head_size,), eps=RMS_EPS)
            k = nn.functional.rms_norm(k, (self.head_size,), eps=RMS_EPS)
        if ctx.cos is not None and ctx.sin is not None:
            q, k = turned(q, ctx.cos, ctx.sin), turned(k, ctx.cos, ctx.sin)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def past(self, state: AttentionState) -> AttentionState:
        """A State from before with the heads of this layer's keys and values.

        It was kept once per query head: equal copies, of which one stays.

        Raises:
            ConfigError: the State of a layer with other heads.
        """
        if state.keys.shape[1] == self.kv_heads:
            return state
        found, heads = state.keys.shape[1], self.config.heads
        require(
            found == heads,
            f"state: keys and values of {found} heads, not {self.kv_heads}: the State of another "
            "model; give one of this model, or none.",
        )
        copies = heads // self.kv_heads
        pairs = [(k[:, ::copies], v[:, ::copies]) for k, v in state.pieces()]
        return AttentionState(*pairs[0], state.hidden, tuple(pairs[1:]))

    def join(self, y_BHTK: Tensor) -> Tensor:
        """The output projection of what the heads found, (B, T, D)."""
        out: Tensor = self.out(y_BHTK.transpose(1, 2).flatten(2))
        return out

    def attended(self, seq_len: int) -> float:
        """Keys that a token of a sequence of this length sees, on average."""
        return seq_len / 2


def _owned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of a view of something larger."""
    size = tensor.numel() * tensor.element_size()
    return tensor if tensor.untyped_storage().nbytes() <= size else tensor.clone()


def turned(x_BTHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads turned by their positions: the first numbers, as many as the table has angles for."""
    size = 2 * cos.shape[-1]
    if size == x_BTHK.shape[-1]:
        return apply_rotary(x_BTHK, cos, sin)
    return torch.cat([apply_rotary(x_BTHK[..., :size], cos, sin), x_BTHK[..., size:]], -1)
