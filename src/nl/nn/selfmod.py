"""The self-modifying memory: fast MLPs that make their own keys, values, rates and decays. Floor 2.

Per head, with x the input of a token, x_k, x_v, x_q = silu(conv(W x)), x_g = W_g x and everything
read at the state of the chunk start (norm = unit L2 norm):

    k = norm(M_k(x_k))      v = norm(M_v(x_v))      q = norm(x_q), or norm(M_q(x_q)) if adaptive
    r = sigmoid(M_eta(x_g) + w_eta x + b_eta)
    log alpha = -softplus(M_alpha(x_g) + w_alpha x + b_alpha)
    o = M_memory(q)

M(x) = x + W1 phi(W2 x) for the memories of keys, values and queries, W1 phi(W2 x) for the others.
The second layer of ``memory`` learns at rate r, its first layer and the other memories at learned
shares of it, small at first: what is stored was stored under the old features and keys. Every
``period`` tokens ``memory`` is written from the chunk's (k, v, r, alpha), every ``period_other``
tokens the others are (``nl.ops.fast_mlp``). Source: the self-modifying Titans of Nested Learning
(NeurIPS 2025) with the changes that ``docs/nested_core.md`` gives evidence for: unit-norm values
and targets, decay toward the initial memory, the delta rule on both layers, static projections in
front of the memories, the value itself as the target of ``memory``.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad, rms_norm, softplus

from nl.config import require
from nl.core.state import state_type
from nl.nn.chunks import pieces
from nl.nn.conv import CausalConv, convolve
from nl.nn.init import init_linear
from nl.nn.selfmod_config import SelfModConfig
from nl.ops.fast_mlp import Bank, FastWeights, WriteRule, WriteTokens, fast_mlp
from nl.ops.fast_write import fast_mlp_write

__all__ = ["SelfMod", "SelfModConfig", "SelfModState"]

_UNIT_EPS = 1e-6
_OUTPUT_SCALE = 0.3
_GATE_SCALE = 0.1


@state_type
class SelfModState(NamedTuple):
    """What the layer carries from token to token; batch first, fp32.

    Attributes:
        memory: what has been added to the memory that is read out, (B, H, ...).
        makers: the same for the memories that make keys, values (and queries).
        gates: the same for the memories that make rates and decays.
        keys: (B, H, K, P) keys of the unfinished chunk, P the longer period; zero where empty.
        values: (B, H, K, P).
        rate: (B, H, P); zero where empty, so that an empty slot writes nothing.
        log_decay: (B, H, P).
        tail: (B, W - 1, 3 D) last inputs of the convolution, or None.
        frozen: tokens read with ``write=False``; they do not advance the chunks.
        writes: how often (memory, others) have been written.
    """

    memory: FastWeights
    makers: FastWeights
    gates: FastWeights
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


class _Inputs(NamedTuple):
    """What the memories are given: inputs (N, 4, K, T) of theirs, logits (N, 2, T) of the gates."""

    streams: Tensor
    logits: Tensor

    def split(self, sizes: list[int]) -> list[_Inputs]:
        streams, logits = (part.split(sizes, dim=-1) for part in self)
        return [_Inputs(*pair) for pair in zip(streams, logits, strict=True)]


class _Banks(NamedTuple):
    """The three banks, as initial weights, as what has been added to them, or as their sum."""

    memory: FastWeights
    makers: FastWeights
    gates: FastWeights


def _current(initial: _Banks, added: _Banks) -> _Banks:
    """Initial weights (H, ...) plus what has been added per row and head, (N, ...) -> (N, ...)."""

    def one(start: Tensor, more: Tensor) -> Tensor:
        return (start + more.unflatten(0, (-1, start.shape[0]))).flatten(0, 1)

    def bank(start: FastWeights, more: FastWeights) -> FastWeights:
        return FastWeights(one(start.hidden, more.hidden), one(start.output, more.output))

    return _Banks(*(bank(start, more) for start, more in zip(initial, added, strict=True)))


def _added(state: SelfModState) -> _Banks:
    """The banks of a state with rows and heads as one dimension."""
    banks = (state.memory, state.makers, state.gates)
    return _Banks(*(FastWeights(*(w.flatten(0, 1) for w in bank)) for bank in banks))


def _unit(x: Tensor) -> Tensor:
    """Unit L2 norm over the features (..., K, C), at least fp32; smooth at zero."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x * torch.rsqrt(x.square().sum(-2, keepdim=True) + _UNIT_EPS)


def _logit(share: float) -> float:
    return math.log(share / (1 - share))


class SelfMod(nn.Module):
    """The layer of the equations above: the branch a block adds to its stream, zero at first.

    Args:
        config: see ``SelfModConfig``.
        dim: width D of input and output, a multiple of ``config.head_size``.
    """

    hidden_matrices: ClassVar[dict[str, bool]] = {"gate_input.weight": False}

    def __init__(self, config: SelfModConfig, dim: int) -> None:
        super().__init__()
        require(
            dim % config.head_size == 0,
            f"selfmod.head_size: {config.head_size}; must divide the width {dim}",
        )
        self.config = c = config.resolved()
        anchored = c.retention == "anchor"
        self.rule = WriteRule(c.activation, c.objective, c.output_rule, anchored)
        self.heads = H = dim // c.head_size
        self.makers = 3 if c.adaptive_q else 2
        self.period = c.period
        self.period_other = c.period if c.period_other is None else c.period_other
        self.shortest_period = min(self.period, self.period_other)
        self.conv = CausalConv(3 * dim, c.conv) if c.conv else None
        self.project = nn.Linear(dim, 4 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.out.weight)
        self.gain = nn.Parameter(torch.ones(dim))
        self.gate_input: nn.Linear | None = None
        if c.direct_gates:
            self.gate_input = nn.Linear(dim, 2 * H, bias=False)
            init_linear(self.gate_input)
        self.memory_hidden, self.memory_output = self._memories(1, c.head_size)
        self.makers_hidden, self.makers_output = self._memories(self.makers, c.head_size)
        self.gates_hidden, self.gates_output = self._memories(2, 1)
        self.rate_bias = nn.Parameter(torch.full((H,), _logit(c.rate)))
        self.hidden_rate = nn.Parameter(torch.full((H,), _logit(c.rate_hidden / c.rate)))
        self.other_rate = nn.Parameter(torch.full((H,), _logit(c.rate_other / c.rate)))
        lost = -math.log(c.retain) / c.period
        self.decay_bias = nn.Parameter(torch.full((H,), math.log(math.expm1(lost))))

    def _memories(self, count: int, outputs: int) -> tuple[nn.Parameter, nn.Parameter]:
        """First layers, orthogonal so that features keep the keys' angles, and second layers."""
        H, K, F = self.heads, self.config.head_size, self.config.hidden
        scale = _OUTPUT_SCALE if outputs > 1 else _GATE_SCALE
        hidden = torch.empty(H * count, F, K)
        for layer in hidden:
            nn.init.orthogonal_(layer, gain=math.sqrt(F / K))
        hidden = hidden.view(H, count * F, K)
        output = scale * torch.randn(H, count, outputs, F) / math.sqrt(F)
        return nn.Parameter(hidden), nn.Parameter(output)

    def init_state(self, batch: int) -> SelfModState:
        """The state before the first token, for ``batch`` rows."""
        dtype = torch.promote_types(self.gain.dtype, torch.float32)
        H, K, P = self.heads, self.config.head_size, max(self.period, self.period_other)

        def zeros(*shape: int) -> Tensor:
            return self.gain.new_zeros(batch, *shape, dtype=dtype)

        def bank(weights: FastWeights) -> FastWeights:
            return FastWeights(zeros(*weights.hidden.shape), zeros(*weights.output.shape))

        initial = self._initial()
        return SelfModState(
            memory=bank(initial.memory),
            makers=bank(initial.makers),
            gates=bank(initial.gates),
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
        projected, for_gates = self.project(x).tensor_split([3 * x.shape[-1]], dim=-1)
        projected, tail = convolve(self.conv, projected, state.tail)
        projected = torch.cat([projected, for_gates], dim=-1)
        inputs = _Inputs(self._split(projected), self._gate_logits(x))
        if write:
            read, state = self._scan(inputs, state, position - state.frozen)
        else:
            weights = _current(self._initial(), _added(state))
            read = self._read(weights.memory, self._generate(weights, inputs)[1])
            state = state._replace(frozen=state.frozen + T)
        y = read.view(B, self.heads, -1, T).permute(0, 3, 1, 2).reshape(B, T, -1)
        y = (rms_norm(y, (y.shape[-1],)) * self.gain).to(x.dtype)
        return self.out(y), state._replace(tail=tail)

    def _split(self, projected: Tensor) -> Tensor:
        """(B, T, 4 D) -> (N, 4, K, T): inputs of keys, values, queries, gates; tokens last."""
        B, T, _ = projected.shape
        heads = projected.view(B, T, 4, self.heads, -1).permute(0, 3, 2, 4, 1)
        return heads.reshape(B * self.heads, 4, -1, T)

    def _gate_logits(self, mixed: Tensor) -> Tensor:
        """(B, T, D) -> (N, 2, T), at least fp32: rates and decays but for their memories' part."""
        bias = torch.stack([self.rate_bias, self.decay_bias])
        bias = bias.to(torch.promote_types(bias.dtype, torch.float32)).unsqueeze(-1)
        if self.gate_input is None:
            logits = bias.expand(mixed.shape[0], -1, -1, mixed.shape[1])
        else:
            direct = self.gate_input(mixed).transpose(1, 2).unflatten(1, (2, self.heads))
            logits = direct.to(bias.dtype) + bias
        return logits.transpose(1, 2).flatten(0, 1)

    def _initial(self) -> _Banks:
        return _Banks(
            FastWeights(self.memory_hidden, self.memory_output),
            FastWeights(self.makers_hidden, self.makers_output),
            FastWeights(self.gates_hidden, self.gates_output),
        )

    def _generate(self, weights: _Banks, inputs: _Inputs) -> tuple[_Chunk, Tensor]:
        """Keys, values, gates and queries (N, K, c) of some tokens at the current state."""
        streams, logits = inputs
        made = fast_mlp(weights.makers, streams[:, : self.makers], self.config.activation)
        query = made[:, 2] if self.config.adaptive_q else streams[:, 2]
        gates = fast_mlp(weights.gates, streams[:, 3:], self.config.activation)
        gates = gates.to(logits.dtype).squeeze(2) + logits
        rate, log_decay = torch.sigmoid(gates[:, 0]), -softplus(gates[:, 1])
        return _Chunk(_unit(made[:, 0]), _unit(made[:, 1]), rate, log_decay), _unit(query)

    def _read(self, memory: FastWeights, queries: Tensor) -> Tensor:
        c = self.config
        return fast_mlp(memory, queries.unsqueeze(1), c.activation, c.skip).squeeze(1)

    def _scan(
        self, inputs: _Inputs, state: SelfModState, clock: int
    ) -> tuple[Tensor, SelfModState]:
        """Read T tokens chunk by chunk, writing where chunks end -> (N, K, T) and the state."""
        longer = max(self.period, self.period_other)
        shorter = self.shortest_period
        initial, added = self._initial(), _added(state)
        weights = _current(initial, added)
        waiting = _Chunk(state.keys, state.values, state.rate, state.log_decay)
        waiting = _Chunk(*(t.flatten(0, 1)[..., : clock % longer] for t in waiting))
        reads, writes = [], list(state.writes)
        for piece in inputs.split(pieces(clock, inputs.logits.shape[-1], shorter)):
            new, queries = self._generate(weights, piece)
            reads.append(self._read(weights.memory, queries))
            waiting = waiting.join(_Chunk(*(t.to(state.rate.dtype) for t in new)))
            clock += piece.logits.shape[-1]
            due = clock % self.period == 0, clock % self.period_other == 0
            writes = [count + now for count, now in zip(writes, due, strict=True)]
            if any(due):
                with torch.autocast(inputs.logits.device.type, enabled=False):
                    added = self._write(weights, added, waiting, due)
                    weights = _current(initial, added)
            if clock % longer == 0:
                waiting = waiting.last(0)
        lead = (state.rate.shape[0], self.heads)
        fill = longer - waiting.rate.shape[-1]
        slots = _Chunk(*(pad(t, (0, fill)).unflatten(0, lead) for t in waiting))
        banks = _Banks(*(FastWeights(*(w.unflatten(0, lead) for w in bank)) for bank in added))
        state = state._replace(
            memory=banks.memory,
            makers=banks.makers,
            gates=banks.gates,
            keys=slots.keys,
            values=slots.values,
            rate=slots.rate,
            log_decay=slots.log_decay,
            writes=(writes[0], writes[1]),
        )
        return torch.cat(reads, dim=-1), state

    def _write(
        self, weights: _Banks, added: _Banks, waiting: _Chunk, due: tuple[bool, bool]
    ) -> _Banks:
        """What has been added after a chunk: memory where due[0], makers and gates where due[1]."""
        initial, (memory, makers, gates) = self._initial(), added
        if due[0]:
            chunk = waiting.last(self.period)
            targets = chunk.values.unsqueeze(1)
            if self.config.target == "self":
                # These carry gradients: no other path teaches the values anything.
                targets = self._targets(weights.memory, targets, self.config.skip)
            slow = self._share(chunk.rate, self.hidden_rate)
            tokens = WriteTokens(chunk.keys, chunk.rate, slow, chunk.log_decay)
            bank = Bank(initial.memory, memory, targets, self.config.skip)
            (memory,) = self._retained([bank], tokens)
        if due[1]:
            chunk = waiting.last(self.period_other)
            with torch.no_grad():
                values = chunk.values.unsqueeze(1)
                targets = self._targets(weights.makers, values)
                wanted = fast_mlp(weights.gates, values, self.config.activation)
            rate = self._share(chunk.rate, self.other_rate)
            tokens = WriteTokens(chunk.keys, rate, rate, chunk.log_decay)
            banks = [
                Bank(initial.makers, makers, targets, True),
                Bank(initial.gates, gates, wanted, False),
            ]
            makers, gates = self._retained(banks, tokens)
        return _Banks(memory, makers, gates)

    def _share(self, rate: Tensor, logit: Tensor) -> Tensor:
        """A learned share, per head, of the rates (N, C)."""
        share = torch.sigmoid(logit).unsqueeze(-1)
        return (rate.unflatten(0, (-1, self.heads)) * share).flatten(0, 1)

    def _targets(self, weights: FastWeights, values: Tensor, skip: bool = True) -> Tensor:
        made = fast_mlp(weights, values, self.config.activation, skip)
        return _unit(made) if self.config.target_norm else made

    def _retained(self, banks: list[Bank], tokens: WriteTokens) -> list[FastWeights]:
        """Write banks with the decay toward what the configured retention says -> added."""
        written = fast_mlp_write(banks, tokens, self.rule)
        if self.rule.anchored:
            return written

        def one(new: Tensor, start: Tensor) -> Tensor:
            rows = new.unflatten(0, (-1, self.heads))
            if self.config.retention == "row_norm":
                rows = normalize(rows, dim=-1) * start.norm(dim=-1, keepdim=True)
            return (rows - start).flatten(0, 1)

        pairs = zip(written, banks, strict=True)
        return [
            FastWeights(*(one(new, start) for new, start in zip(whole, bank.initial, strict=True)))
            for whole, bank in pairs
        ]
