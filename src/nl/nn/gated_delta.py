"""Gated DeltaNet layer: a linear memory per head, written and read at every token. Floor 2.

Per head, with x the layer's input (norm = unit L2 norm, conv = causal, per channel):

    q = norm(silu(conv(W_q x)))     k = norm(silu(conv(W_k x)))     v = silu(conv(W_v x))
    b = sigmoid(W_b x + c)          log a = -exp(A) softplus(W_a x + d)
    o = W_o (rms_norm(read(q)) * silu(W_g x))

with the recurrence of ``nl.ops.gated_delta``. Source: Gated DeltaNet (arXiv 2412.06464), whose
initial decays these are: exp(A) uniform in (1, 16), softplus(d) log-uniform in (0.001, 0.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu, softplus

from nl.config import require
from nl.core.state import state_type
from nl.nn.conv import CausalConv
from nl.nn.init import init_linear, zeros_beside
from nl.ops.gated_delta import gated_delta
from nl.ops.norm_linear import RMS_EPS

_UNIT_EPS = 1e-6
_DECAY_SCALES = (1.0, 16.0)
_DECAY_STEPS = (1e-3, 0.1)


@dataclass(frozen=True, kw_only=True)
class GatedDeltaConfig:
    """The gated delta rule of a block."""

    heads: int = 4
    """Number of heads; must divide model.dim."""
    conv: int = 4
    """Width of the causal convolution over queries, keys and values; 0 = none."""
    chunk: int = 64
    """Tokens per triangular system: decides the speed, not the result."""
    gate: bool = True
    """Gate the output per channel."""

    def __post_init__(self) -> None:
        for name, least in (("heads", 1), ("conv", 0), ("chunk", 1)):
            value = getattr(self, name)
            require(value >= least, f"{name}: {value}; must be >= {least}.")


@state_type
class GatedDeltaState(NamedTuple):
    """What the layer carries from token to token; batch first, fp32.

    Attributes:
        memory: (B, H, K, K) from keys to values.
        tail: (B, W - 1, 3 D) last inputs of the convolution, or None.
        frozen: tokens read with ``write=False``.
    """

    memory: Tensor
    tail: Tensor | None
    frozen: int


class GatedDelta(nn.Module):
    """The layer; see the module's equations. Returns the branch that a block adds to its stream.

    Args:
        config: see ``GatedDeltaConfig``.
        dim: width D of input and output, a multiple of ``config.heads``.
        residual_scale: of the output projection at initialisation.
    """

    shortest_period = 0
    """Every token reads its own write: nothing can be left out of a call."""
    hidden_matrices: ClassVar[dict[str, bool]] = {"rates.weight": False}

    memory_path = "gated_delta"

    def __init__(self, config: GatedDeltaConfig, dim: int, residual_scale: float) -> None:
        super().__init__()
        require(
            dim % config.heads == 0,
            f"gated_delta.heads: {config.heads}; must divide the width {dim}",
        )
        self.config, self.head_size = config, dim // config.heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.conv = CausalConv(3 * dim, config.conv) if config.conv else None
        self.rates = nn.Linear(dim, 2 * config.heads, bias=False)
        self.gate = nn.Linear(dim, dim, bias=False) if config.gate else None
        self.out = nn.Linear(dim, dim, bias=False)
        for layer in (self.qkv, self.rates, *([self.gate] if self.gate is not None else [])):
            init_linear(layer)
        init_linear(self.out, scale=residual_scale)
        self.gain = nn.Parameter(torch.ones(self.head_size))
        self.rate_bias = nn.Parameter(torch.zeros(config.heads))
        low, high = (math.log(s) for s in _DECAY_STEPS)
        step = torch.empty(config.heads).uniform_(low, high).exp()
        self.decay_bias = nn.Parameter(step.expm1().log())
        self.decay_scale = nn.Parameter(torch.empty(config.heads).uniform_(*_DECAY_SCALES).log())

    def init_state(self, batch: int) -> GatedDeltaState:
        """The state before the first token, for ``batch`` rows."""
        shape = (batch, self.config.heads, self.head_size, self.head_size)
        tail = None if self.conv is None else self.conv.init_tail(batch)
        return GatedDeltaState(zeros_beside(self.gain, *shape), tail, 0)

    def forward(
        self, x: Tensor, state: GatedDeltaState | None = None, *, position: int, write: bool = True
    ) -> tuple[Tensor, GatedDeltaState]:
        """Write and read T tokens.

        Args:
            x: (B, T, D), normalised by the caller.
            state: of the tokens before; None is the fresh state.
            position: tokens read before this call; a linear memory has no use for it.
            write: False reads the memory as it is and leaves it so.

        Returns:
            (B, T, D) and the state after the last token.
        """
        del position
        batch, length, dim = x.shape
        if state is None:
            state = self.init_state(batch)
        mixed, tail = self.qkv(x), state.tail
        if self.conv is not None and tail is not None:
            mixed, tail = self.conv(mixed, tail)
        heads = silu(mixed).view(batch, length, 3, self.config.heads, -1).permute(2, 0, 3, 1, 4)
        streams = heads.flatten(1, 2).to(state.memory.dtype)
        read, memory = self._recall(streams, self.rates(x), state.memory, write)
        y = rms_norm(read, (self.head_size,), eps=RMS_EPS) * self.gain
        y = y.unflatten(0, (batch, -1)).transpose(1, 2).reshape(batch, length, dim).to(x.dtype)
        if self.gate is not None:
            y = y * silu(self.gate(x))
        frozen = state.frozen + (0 if write else length)
        return self.out(y), GatedDeltaState(memory, tail, frozen)

    def _recall(
        self, streams: Tensor, rates: Tensor, memory: Tensor, write: bool
    ) -> tuple[Tensor, Tensor]:
        """Reads (N, T, K) and the new memory (B, H, K, K), in at least fp32 under autocast too."""
        with torch.autocast(streams.device.type, enabled=False):
            query, key, value = _unit(streams[0]), _unit(streams[1]), streams[2]
            if not write:
                return query @ memory.flatten(0, 1), memory
            step, decay = rates.to(memory.dtype).transpose(1, 2).chunk(2, dim=1)
            rate = torch.sigmoid(step + self.rate_bias[:, None])
            log_decay = -self.decay_scale.exp()[:, None] * softplus(
                decay + self.decay_bias[:, None]
            )
            read, end = gated_delta(
                memory.flatten(0, 1),
                (query, key, value),
                log_decay.flatten(0, 1),
                rate.flatten(0, 1),
                self.config.chunk,
            )
            return read, end.view_as(memory)


def _unit(x: Tensor) -> Tensor:
    """Unit L2 norm over the last dimension; smooth at zero."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _UNIT_EPS)
