"""The self-modifying memory: fast MLPs that make their own keys, values, rates and decays. Floor 2.

Per head, with x the convolved and projected input of a token, everything read at the state of the
chunk start (norm = unit L2 norm):

    k = norm(M_k(x_k))      v = norm(M_v(x_v))      q = norm(x_q), or norm(M_q(x_q)) if adaptive
    r = sigmoid(M_eta(x_g) + b_eta)                 log alpha = -softplus(M_alpha(x_g) + b_alpha)
    o = M_memory(q)

Every ``period`` tokens ``memory`` is written from the chunk's (k, v, r, alpha), every
``period_other`` tokens the others are (``nl.ops.fast_mlp``). Source: the self-modifying Titans of
Nested Learning (NeurIPS 2025) with the changes that ``docs/nested_core.md`` gives evidence for:
unit-norm values and targets, decay toward the initial memory, the delta rule on both layers,
static projections in front of the memories, the value itself as the target of ``memory``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad, rms_norm, silu, softplus

from nl.config import require
from nl.core.state import state_type
from nl.nn.conv import CausalConv
from nl.nn.selfmod_config import SelfModConfig
from nl.ops.delta_rule import chunk_decay
from nl.ops.fast_mlp import FastWeights, WriteRule, WriteTokens, fast_mlp, fast_mlp_write

__all__ = ["SelfMod", "SelfModConfig", "SelfModState"]


@state_type
class SelfModState(NamedTuple):
    """What the layer carries from token to token; batch first, fp32.

    Attributes:
        memory: what was added to the memory that is read out, (B, H, ...).
        others: the same for the memories of keys, values and gates.
        keys: (B, H, K, P) keys of the unfinished chunk, P the longer period; zero where empty.
        values: (B, H, K, P).
        rate: (B, H, P); zero where empty, so that an empty slot writes nothing.
        log_decay: (B, H, P).
        tail: (B, W - 1, D) last inputs of the convolution, or None.
        frozen: tokens read with ``write=False``; they do not advance the chunks.
        writes: how often (memory, others) have been written.
    """

    memory: FastWeights
    others: FastWeights
    keys: Tensor
    values: Tensor
    rate: Tensor
    log_decay: Tensor
    tail: Tensor | None
    frozen: int
    writes: tuple[int, int]


class _Chunk(NamedTuple):
    """Tokens to write; N = rows times heads. Keys, values (N, K, C); rate, log decay (N, C)."""

    keys: Tensor
    values: Tensor
    rate: Tensor
    log_decay: Tensor

    def join(self, new: _Chunk) -> _Chunk:
        if self.rate.shape[-1] == 0:
            return new
        return _Chunk(*(torch.cat(pair, dim=-1) for pair in zip(self, new, strict=True)))

    def last(self, count: int) -> _Chunk:
        size = self.rate.shape[-1]
        return self if count == size else _Chunk(*(t[..., size - count :] for t in self))


class _Banks(NamedTuple):
    """Both banks, as initial weights, as what was added to them, or as their sum."""

    memory: FastWeights
    others: FastWeights


def _reshaped(weights: FastWeights, lead: tuple[int, ...]) -> FastWeights:
    """The same weights with their leading dimensions replaced by ``lead``."""
    hidden, full, scalar = weights
    return FastWeights(
        hidden.reshape(*lead, *hidden.shape[-2:]),
        full.reshape(*lead, *full.shape[-3:]),
        None if scalar is None else scalar.reshape(*lead, *scalar.shape[-3:]),
    )


def _sum(initial: FastWeights, added: FastWeights, heads: int) -> FastWeights:
    """Initial weights (H, ...) plus what was added per row and head (N, ...) -> (N, ...)."""

    def one(start: Tensor, more: Tensor) -> Tensor:
        return (start + more.unflatten(0, (-1, heads))).flatten(0, 1)

    scalar = None
    if initial.scalar is not None and added.scalar is not None:
        scalar = one(initial.scalar, added.scalar)
    return FastWeights(one(initial.hidden, added.hidden), one(initial.full, added.full), scalar)


def _logit(share: float) -> float:
    return math.log(share / (1 - share))


class SelfMod(nn.Module):
    """The layer; see the module's equations. Returns the branch that a block adds to its stream.

    The output projection starts at zero, so a fresh layer adds nothing.

    Args:
        config: see ``SelfModConfig``.
        dim: width D of input and output, a multiple of ``config.head_size``.
    """

    def __init__(self, config: SelfModConfig, dim: int) -> None:
        super().__init__()
        require(
            dim % config.head_size == 0,
            f"selfmod.head_size: {config.head_size}; must divide the width {dim}",
        )
        self.config = c = config.resolved()
        self.rule = WriteRule(c.activation, c.objective, c.output_rule)
        self.heads = H = dim // c.head_size
        self.period = c.period
        self.period_other = c.period if c.period_other is None else c.period_other
        self.conv = CausalConv(dim, c.conv) if c.conv else None
        self.project = nn.Linear(dim, 4 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.out.weight)
        self.gain = nn.Parameter(torch.ones(dim))
        K, hidden, full = c.head_size, c.hidden, 3 if c.adaptive_q else 2
        self.memory_hidden = nn.Parameter(torch.randn(H, hidden, K) / math.sqrt(K))
        self.memory_full = nn.Parameter(0.3 * torch.randn(H, 1, K, hidden) / math.sqrt(hidden))
        self.others_hidden = nn.Parameter(torch.randn(H, (full + 2) * hidden, K) / math.sqrt(K))
        self.others_full = nn.Parameter(0.3 * torch.randn(H, full, K, hidden) / math.sqrt(hidden))
        self.others_scalar = nn.Parameter(0.1 * torch.randn(H, 2, 1, hidden) / math.sqrt(hidden))
        self.rate_bias = nn.Parameter(torch.full((H,), _logit(c.rate)))
        self.other_rate = nn.Parameter(torch.full((H,), _logit(c.rate_other / c.rate)))
        lost = -math.log(c.retain) / c.period
        self.decay_bias = nn.Parameter(torch.full((H,), math.log(math.expm1(lost))))

    def init_state(self, batch: int) -> SelfModState:
        """The state before the first token, for ``batch`` rows."""
        dtype = torch.promote_types(self.gain.dtype, torch.float32)
        H, K, P = self.heads, self.config.head_size, max(self.period, self.period_other)

        def zeros(*shape: int) -> Tensor:
            return self.gain.new_zeros(batch, *shape, dtype=dtype)

        def bank(weights: FastWeights) -> FastWeights:
            hidden, full, scalar = weights
            more = None if scalar is None else zeros(*scalar.shape)
            return FastWeights(zeros(*hidden.shape), zeros(*full.shape), more)

        initial = self._initial()
        return SelfModState(
            memory=bank(initial.memory),
            others=bank(initial.others),
            keys=zeros(H, K, P),
            values=zeros(H, K, P),
            rate=zeros(H, P),
            log_decay=zeros(H, P),
            tail=None if self.conv is None else self.conv.init_tail(batch),
            frozen=0,
            writes=(0, 0),
        )

    def forward(
        self, x: Tensor, state: SelfModState | None = None, *, position: int, write: bool = True
    ) -> tuple[Tensor, SelfModState]:
        """Read T tokens; write at every chunk that they complete.

        Args:
            x: (B, T, D), normalised by the caller.
            state: of the tokens before; None is the fresh state.
            position: tokens read before this call. Chunks end where the number of tokens read
                with ``write=True`` is a multiple of a period.
            write: False reads only: nothing is written, nothing waits to be.

        Returns:
            (B, T, D) and the state after the last token.
        """
        B, T, _ = x.shape
        if state is None:
            state = self.init_state(B)
        mixed, tail = self._mix(x, state.tail)
        streams = self._split(self.project(mixed))
        if write:
            read, state = self._scan(streams, state, position - state.frozen)
        else:
            weights = self._current(self._added(state))
            _, queries = self._generate(weights.others, streams)
            read = self._read(weights.memory, queries)
            state = state._replace(frozen=state.frozen + T)
        y = read.view(B, self.heads, -1, T).permute(0, 3, 1, 2).reshape(B, T, -1)
        y = rms_norm(y, (y.shape[-1],)) * self.gain
        return self.out(y), state._replace(tail=tail)

    def _mix(self, x: Tensor, tail: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.conv is None or tail is None:
            return x, None
        x, tail = self.conv(x, tail)
        return silu(x), tail

    def _split(self, projected: Tensor) -> Tensor:
        """(B, T, 4 D) -> (N, 4, K, T): inputs of keys, values, gates, queries; tokens last."""
        B, T, _ = projected.shape
        heads = projected.view(B, T, 4, self.heads, -1).permute(0, 3, 2, 4, 1)
        return heads.reshape(B * self.heads, 4, -1, T)

    def _initial(self) -> _Banks:
        others = FastWeights(self.others_hidden, self.others_full, self.others_scalar)
        return _Banks(FastWeights(self.memory_hidden, self.memory_full), others)

    def _added(self, state: SelfModState) -> _Banks:
        lead = (state.rate.shape[0] * self.heads,)
        return _Banks(_reshaped(state.memory, lead), _reshaped(state.others, lead))

    def _current(self, added: _Banks) -> _Banks:
        initial = self._initial()
        return _Banks(
            _sum(initial.memory, added.memory, self.heads),
            _sum(initial.others, added.others, self.heads),
        )

    def _generate(self, others: FastWeights, streams: Tensor) -> tuple[_Chunk, Tensor]:
        """Keys, values, gates and queries (N, K, c) of some tokens at the current state."""
        key, value, gate, query = streams.unbind(1)
        made = [key, value, query] if self.config.adaptive_q else [key, value]
        inputs = torch.stack([*made, gate, gate], dim=1)
        full, scalar = fast_mlp(others, inputs, self.config.activation)
        if self.config.adaptive_q:
            query = full[:, 2]
        if scalar is None:
            raise AssertionError("the others hold two scalar memories")
        gates = scalar.float() if scalar.dtype == torch.bfloat16 else scalar
        gates = gates.view(-1, self.heads, 2, scalar.shape[-1])
        rate = torch.sigmoid(gates[:, :, 0] + self.rate_bias.unsqueeze(-1))
        log_decay = -softplus(gates[:, :, 1] + self.decay_bias.unsqueeze(-1))
        key, value = normalize(full[:, 0], dim=1), normalize(full[:, 1], dim=1)
        chunk = _Chunk(key, value, rate.flatten(0, 1), log_decay.flatten(0, 1))
        return chunk, normalize(query, dim=1)

    def _read(self, memory: FastWeights, queries: Tensor) -> Tensor:
        return fast_mlp(memory, queries.unsqueeze(1), self.config.activation)[0].squeeze(1)

    def _scan(
        self, streams: Tensor, state: SelfModState, clock: int
    ) -> tuple[Tensor, SelfModState]:
        """Read (N, 4, K, T) chunk by chunk, writing where chunks end -> (N, K, T) and the state."""
        B, T = state.rate.shape[0], streams.shape[-1]
        longer, shorter = (
            max(self.period, self.period_other),
            min(self.period, self.period_other),
        )
        added = self._added(state)
        weights = self._current(added)
        waiting = _Chunk(state.keys, state.values, state.rate, state.log_decay)
        waiting = _Chunk(*(t.flatten(0, 1)[..., : clock % longer] for t in waiting))
        dtype = state.rate.dtype
        reads, writes, done = [], list(state.writes), 0
        while done < T:
            size = min(T - done, shorter - clock % shorter)
            new, queries = self._generate(weights.others, streams[..., done : done + size])
            reads.append(self._read(weights.memory, queries))
            waiting = waiting.join(_Chunk(*(t.to(dtype) for t in new)))
            done, clock = done + size, clock + size
            memory, others = added
            if clock % self.period == 0:
                memory = self._write_memory(weights.memory, memory, waiting.last(self.period))
                writes[0] += 1
            if clock % self.period_other == 0:
                others = self._write_others(weights.others, others, waiting.last(self.period_other))
                writes[1] += 1
            if clock % shorter == 0:
                added = _Banks(memory, others)
                weights = self._current(added)
            if clock % longer == 0:
                waiting = waiting.last(0)
        fill = longer - waiting.rate.shape[-1]
        slots = [pad(t, (0, fill)).unflatten(0, (B, self.heads)) for t in waiting]
        lead = (B, self.heads)
        state = state._replace(
            memory=_reshaped(added.memory, lead),
            others=_reshaped(added.others, lead),
            writes=(writes[0], writes[1]),
            **dict(zip(_Chunk._fields, slots, strict=True)),
        )
        return torch.cat(reads, dim=-1), state

    def _write_memory(self, weights: FastWeights, added: FastWeights, chunk: _Chunk) -> FastWeights:
        """What has been added to the memory after a chunk. Its own targets carry gradients."""
        with torch.autocast(chunk.keys.device.type, enabled=False):
            values = chunk.values.unsqueeze(1)
            if self.config.target == "self":
                values = self._targets(weights, values)[0]
            tokens = WriteTokens(chunk.keys, values, None, chunk.rate)
            initial = self._initial().memory
            return self._retained(initial, weights, added, tokens, chunk.log_decay)

    def _write_others(self, weights: FastWeights, added: FastWeights, chunk: _Chunk) -> FastWeights:
        """The same for the others, whose targets are their own outputs, without gradients."""
        with torch.autocast(chunk.keys.device.type, enabled=False):
            with torch.no_grad():
                full, scalar = self._targets(weights, chunk.values.unsqueeze(1))
            scale = torch.sigmoid(self.other_rate).unsqueeze(-1)
            rate = (chunk.rate.unflatten(0, (-1, self.heads)) * scale).flatten(0, 1)
            tokens = WriteTokens(chunk.keys, full, scalar, rate)
            initial = self._initial().others
            return self._retained(initial, weights, added, tokens, chunk.log_decay)

    def _targets(self, weights: FastWeights, values: Tensor) -> tuple[Tensor, Tensor | None]:
        full, scalar = fast_mlp(weights, values, self.config.activation)
        return (normalize(full, dim=-2) if self.config.target_norm else full), scalar

    def _retained(
        self,
        initial: FastWeights,
        weights: FastWeights,
        added: FastWeights,
        tokens: WriteTokens,
        log_decay: Tensor,
    ) -> FastWeights:
        """Write, with the decay toward what the configured retention says."""
        retention = self.config.retention
        decaying = added if retention == "anchor" else weights
        decay = chunk_decay(log_decay)
        written = fast_mlp_write(weights, decaying, tokens, decay, self.rule)
        if retention == "anchor":
            return written

        def one(new: Tensor, start: Tensor) -> Tensor:
            rows = new.unflatten(0, (-1, self.heads))
            if retention == "row_norm":
                rows = normalize(rows, dim=-1) * start.norm(dim=-1, keepdim=True)
            return (rows - start).flatten(0, 1)

        scalar = None
        if written.scalar is not None and initial.scalar is not None:
            scalar = one(written.scalar, initial.scalar)
        return FastWeights(
            one(written.hidden, initial.hidden), one(written.full, initial.full), scalar
        )
