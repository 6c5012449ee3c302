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
tokens the others are (``nl.ops.fast_write``). Source: the self-modifying Titans of Nested Learning
(NeurIPS 2025) with the changes that ``docs/nested_core.md`` gives evidence for: unit-norm values
and targets, decay toward the initial memory, the delta rule on both layers, static projections in
front of the memories, the value itself as the target of ``memory``.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from nl.config import require
from nl.nn.chunks import pieces
from nl.nn.conv import CausalConv
from nl.nn.init import init_linear, zeros_beside
from nl.nn.selfmod_config import SelfModConfig
from nl.nn.selfmod_state import Chunk, SelfModState, added_banks, waiting_tokens, with_memories
from nl.ops.fast_mlp import Bank, FastWeights, WriteRule, fast_mlp, in_force
from nl.ops.fast_write import WriteGroup, fast_mlp_write
from nl.ops.fast_write_native import _answers_native
from nl.ops.norm_linear import norm_linear
from nl.ops.selfmod_read import Banks, ReadInputs, Recalled, selfmod_read, unit

__all__ = ["SelfMod", "SelfModConfig", "SelfModState"]

_OUTPUT_SCALE = 0.3
_GATE_SCALE = 0.1


def _logit(share: float) -> float:
    return math.log(share / (1 - share))


class SelfMod(nn.Module):
    """The layer of the equations above: the branch a block adds to its stream, zero at first.

    Args:
        config: see ``SelfModConfig``.
        dim: width D of input and output, a multiple of ``config.head_size``.
    """

    hidden_matrices: ClassVar[dict[str, bool]] = {"gate_input.weight": False}

    memory_path = "selfmod"

    def __init__(self, config: SelfModConfig, dim: int) -> None:
        super().__init__()
        require(
            dim % config.head_size == 0,
            f"selfmod.head_size: {config.head_size}; must divide the width {dim}",
        )
        self.config = c = config.resolved()
        anchored = c.retention == "anchor"
        self.rule = WriteRule(
            c.activation, c.objective, c.output_rule, anchored, c.clip or math.inf
        )
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
        self.memory_hidden, self.memory_output = self._memories(1, c.head_size, c.hidden)
        self.makers_hidden, self.makers_output = self._memories(self.makers, c.head_size, c.hidden)
        self.gates_hidden, self.gates_output = self._memories(2, 1, c.gate_hidden)
        self.rate_bias = nn.Parameter(torch.full((H,), _logit(c.rate)))
        self.hidden_rate = nn.Parameter(torch.full((H,), _logit(c.rate_hidden / c.rate)))
        self.other_rate = nn.Parameter(torch.full((H,), _logit(c.rate_other / c.rate)))
        lost = -math.log(c.retain) / c.period
        self.decay_bias = nn.Parameter(torch.full((H,), math.log(math.expm1(lost))))

    def _memories(
        self, count: int, outputs: int, hidden_units: int
    ) -> tuple[nn.Parameter, nn.Parameter]:
        """First layers, orthogonal so that features keep the keys' angles, and second layers.

        With fewer units than inputs the rows are orthonormal: a unit sees what it would among many.
        """
        H, K, F = self.heads, self.config.head_size, hidden_units
        scale = _OUTPUT_SCALE if outputs > 1 else _GATE_SCALE
        hidden = torch.empty(H * count, F, K)
        for layer in hidden:
            nn.init.orthogonal_(layer, gain=math.sqrt(max(F / K, 1)))
        hidden = hidden.view(H, count * F, K)
        output = scale * torch.randn(H, count, outputs, F) / math.sqrt(F)
        return nn.Parameter(hidden), nn.Parameter(output)

    def init_state(self, batch: int) -> SelfModState:
        """The state before the first token, for ``batch`` rows."""
        H, K, P = self.heads, self.config.head_size, max(self.period, self.period_other)

        def zeros(*shape: int) -> Tensor:
            return zeros_beside(self.gain, batch, *shape)

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
        padded, tail = self._pad(self.project(x), state.tail)
        logits = self._gate_logits(x)
        if write:
            read, state = self._scan(padded, logits, state, position - state.frozen)
        else:
            read = self._read(padded, logits, added_banks(state)).answers
            state = state._replace(frozen=state.frozen + T)
        y = read.view(B, self.heads, -1, T).permute(0, 3, 1, 2).reshape(B, T, -1)
        return norm_linear(y, self.gain, self.out.weight, x.dtype), state._replace(tail=tail)

    def _pad(self, projected: Tensor, tail: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Projections (B, T, 4 D) with those before them in front, and the new tail."""
        if tail is None:
            return projected, None
        length, width = projected.shape[1], tail.shape[-1]
        # The part for the gates is not convolved: nothing is known, or needed, of its past.
        before = pad(tail.to(projected.dtype), (0, projected.shape[-1] - width))
        padded = torch.cat([before, projected], dim=1)
        return padded, padded[:, length:, :width].to(tail.dtype).contiguous()

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

    def _initial(self) -> Banks:
        return Banks(
            FastWeights(self.memory_hidden, self.memory_output),
            FastWeights(self.makers_hidden, self.makers_output),
            FastWeights(self.gates_hidden, self.gates_output),
        )

    def _read(self, padded: Tensor, logits: Tensor, added: Banks) -> Recalled:
        c, taps = self.config, None if self.conv is None else self.conv.weight
        inputs = ReadInputs(padded, taps, logits)
        return selfmod_read(inputs, self._initial(), added, c.activation, c.skip)

    def _scan(
        self, padded: Tensor, logits: Tensor, state: SelfModState, clock: int
    ) -> tuple[Tensor, SelfModState]:
        """Read T tokens chunk by chunk, writing where chunks end -> (N, K, T) and the state."""
        longer = max(self.period, self.period_other)
        added, waiting = added_banks(state), waiting_tokens(state, clock % longer)
        before, start = padded.shape[1] - logits.shape[-1], 0
        reads, writes = [], list(state.writes)
        for size in pieces(clock, logits.shape[-1], self.shortest_period):
            end = start + size
            new = self._read(padded[:, start : end + before], logits[..., start:end], added)
            reads.append(new.answers)
            waiting = waiting.join(Chunk(*new[:4]))
            start, clock = end, clock + size
            due = clock % self.period == 0, clock % self.period_other == 0
            writes = [count + now for count, now in zip(writes, due, strict=True)]
            if any(due):
                with torch.autocast(logits.device.type, enabled=False):
                    added = self._write(added, waiting, due)
            if clock % longer == 0:
                waiting = waiting.last(0)
        state = with_memories(state, added, waiting, longer)
        read = reads[0] if len(reads) == 1 else torch.cat(reads, dim=-1)
        return read, state._replace(writes=(writes[0], writes[1]))

    def _write(self, added: Banks, waiting: Chunk, due: tuple[bool, bool]) -> Banks:
        """What has been added after a chunk: memory where due[0], makers and gates where due[1]."""
        if due[0] and due[1] and self.period == self.period_other:
            groups = [self._memory_group(added, waiting), self._other_group(added, waiting)]
            memory, makers, gates = self._retained(groups, waiting)
            return Banks(memory, makers, gates)
        memory, makers, gates = added
        if due[0]:
            chunk = waiting.last(self.period)
            (memory,) = self._retained([self._memory_group(added, chunk)], chunk)
        if due[1]:
            chunk = waiting.last(self.period_other)
            makers, gates = self._retained([self._other_group(added, chunk)], chunk)
        return Banks(memory, makers, gates)

    def _memory_group(self, added: Banks, chunk: Chunk) -> WriteGroup:
        """What the memory that is read out is taught."""
        initial, targets = self._initial().memory, chunk.values.unsqueeze(1)
        if self.config.target == "self":
            # These carry gradients: no other path teaches the values anything.
            targets = self._targets(initial, added.memory, targets, self.config.skip)
        bank = Bank(initial, added.memory, targets, self.config.skip)
        return WriteGroup(chunk.rate, self._share(chunk.rate, self.hidden_rate), [bank])

    def _other_group(self, added: Banks, chunk: Chunk) -> WriteGroup:
        """What the memories behind keys, values, queries and gates are taught."""
        initial = self._initial()
        with torch.no_grad():
            values = chunk.values.unsqueeze(1)
            made = self._targets(initial.makers, added.makers, values)
            wanted = self._targets(initial.gates, added.gates, values)
        rate = self._share(chunk.rate, self.other_rate)
        makers = Bank(initial.makers, added.makers, made, True)
        gates = Bank(initial.gates, added.gates, wanted, False)
        return WriteGroup(rate, None, [makers, gates])

    def _share(self, rate: Tensor, logit: Tensor) -> Tensor:
        """A learned share, per head, of the rates (N, C)."""
        share = torch.sigmoid(logit).unsqueeze(-1)
        return (rate.unflatten(0, (-1, self.heads)) * share).flatten(0, 1)

    def _targets(
        self, initial: FastWeights, added: FastWeights, values: Tensor, skip: bool = True
    ) -> Tensor:
        """What the memories of a bank say to the values themselves."""
        norm = self.config.target_norm and initial.output.shape[2] > 1
        made = _answers_native(initial, added, values.squeeze(1), self.rule, skip, norm)
        if made is not None:
            return made
        weights = FastWeights(*(in_force(b, d) for b, d in zip(initial, added, strict=True)))
        made = fast_mlp(weights, values, self.config.activation, skip)
        return unit(made) if norm else made

    def _retained(self, groups: list[WriteGroup], chunk: Chunk) -> list[FastWeights]:
        """Write banks with the decay toward what the configured retention says -> added."""
        written = fast_mlp_write(groups, chunk.keys, chunk.log_decay, self.rule)
        if self.rule.anchored:
            return written

        def one(new: Tensor, start: Tensor) -> Tensor:
            rows = new.unflatten(0, (-1, self.heads))
            if self.config.retention == "row_norm":
                rows = normalize(rows, dim=-1) * start.norm(dim=-1, keepdim=True)
            return (rows - start).flatten(0, 1)

        banks = [bank for group in groups for bank in group.banks]
        pairs = zip(written, banks, strict=True)
        return [
            FastWeights(*(one(new, start) for new, start in zip(whole, bank.initial, strict=True)))
            for whole, bank in pairs
        ]
