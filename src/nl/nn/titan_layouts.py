"""Attention and a Titans memory in one sub-layer: memory as gate, memory as context. Floor 2.

Source: Titans (arXiv 2501.00663), sections 4.1 and 4.2.

Memory as gate. Both read x; a memory that answers nothing leaves the attention as it is:

    o = attention(x) * 2 sigmoid(memory(x))

Memory as context. The sequence is cut into segments of ``period`` tokens. Token t of a segment,
with everything asked of the memory as it was when the segment began:

    h_t = norm(M(q(x_t)))                                         recalled, stands where t stands
    a_t = attention of x_t over persistent keys and, in its segment, over h_j and x_j for j <= t
    o_t = W_o a_t * 2 sigmoid(W_m norm(M(q'(y_t))))               y_t = norm(x_t + a_t)

and y_1 ... y_period are written to the memory when the segment is complete. Norms have learned
gains; queries, keys and values of the memory go through causal convolutions. The paper asks the
memory that has already read the segment for the gate; that would show a token what follows it.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, rms_norm, scaled_dot_product_attention

from nl.core.program import step
from nl.core.state import state_type
from nl.nn.attention import Attention, AttentionConfig, AttentionState
from nl.nn.chunks import pieces
from nl.nn.context import ReadContext
from nl.nn.conv import CausalConv, convolve
from nl.nn.init import init_linear
from nl.nn.titan import TitanMemory, TitanState
from nl.nn.titan_bank import OpenBank, TitanBank, TitanBankState, join_heads, split_heads
from nl.nn.titan_config import TitanConfig
from nl.nn.window import Persistent, WindowAttention
from nl.ops.attention import for_queries, seen_keys
from nl.ops.norm_linear import RMS_EPS


@state_type
class GateState(NamedTuple):
    """State of ``MemoryAsGate``."""

    attention: AttentionState
    memory: TitanState


class MemoryAsGate(nn.Module):
    """(B, T, D) -> (B, T, D): sliding-window attention, gated by what a memory answers.

    Args:
        config: of the memory, the window and the persistent keys.
        attention: heads and norms of the attention.
        dim: width D.
        residual_scale: of the attention's output projection at initialisation.
    """

    memory_path = "titan"

    def __init__(
        self, config: TitanConfig, attention: AttentionConfig, dim: int, residual_scale: float
    ) -> None:
        super().__init__()
        sizes = {"window": config.window, "persistent": config.persistent}
        self.attention = WindowAttention(attention, dim, residual_scale, **sizes)
        self.memory = TitanMemory(config, dim)

    def init_state(self, batch: int) -> GateState:
        """Nothing read yet."""
        return GateState(self.attention.init_state(batch), self.memory.init_state(batch))

    def forward(
        self, x_BTD: Tensor, state: GateState, ctx: ReadContext
    ) -> tuple[Tensor, GateState]:
        """Read, and write what the memory has to; the branch to add and the new state."""
        seen, attention = self.attention(x_BTD, state.attention, ctx)
        write = ctx.writes(x_BTD.shape[1], self.memory.shortest_period, state.memory.frozen)
        gate, memory = self.memory(x_BTD, state.memory, position=ctx.position, write=write)
        return seen * (2 * torch.sigmoid(gate)), GateState(attention, memory)


class SegmentAttention(Attention):
    """Attention inside a segment, over two keys per position: what is recalled and the token.

    Args:
        config: heads and norms.
        dim: width D.
        residual_scale: of the output projection at initialisation.
        titan: segment size and number of persistent keys.
    """

    def __init__(
        self, config: AttentionConfig, dim: int, residual_scale: float, titan: TitanConfig
    ) -> None:
        super().__init__(config, dim, residual_scale)
        self.period = titan.period
        count = titan.persistent
        self.persistent = Persistent(config, dim, count) if count else None

    def attend(
        self, queries: Tensor, fresh: AttentionState, seen: AttentionState
    ) -> tuple[Tensor, AttentionState]:
        """Attend from new positions of a segment.

        Args:
            queries: (B, H, c, K).
            fresh: (B, G, 2 c, K) keys and values of these positions, pairs side by side.
            seen: (B, G, 2 s, K), of the positions before them.

        Returns:
            (B, c, D), heads side by side, and the keys and values of all s + c positions.
        """
        after = self.past(seen).extended(fresh.keys, fresh.values)
        k, v = (for_queries(t, queries.shape[1]) for t in (after.keys, after.values))
        new, total = queries.shape[2], k.shape[2]
        mask = torch.ones(new, total // 2, dtype=torch.bool, device=k.device)
        mask = mask.tril(total // 2 - new).repeat_interleave(2, 1)
        if after.hidden is not None:
            mask = mask & seen_keys(after.hidden, total)[:, None, None]
        if self.persistent is not None:
            front = self.persistent()
            k, v = (
                torch.cat((f.to(t.dtype).expand(len(t), -1, -1, -1), t), 2)
                for f, t in zip(front, (k, v), strict=True)
            )
            mask = pad(mask, (front[0].shape[1], 0), value=True)
        k, v = k.to(queries.dtype), v.to(queries.dtype)
        y = scaled_dot_product_attention(queries, k, v, attn_mask=mask)
        return y.transpose(1, 2).flatten(2), after

    def attended(self, seq_len: int) -> float:
        """Keys that a token of a sequence of this length sees, on average."""
        return min(seq_len, self.period)


@state_type
class ContextState(NamedTuple):
    """State of ``MemoryAsContext``.

    Attributes:
        bank: the memories and what waits to be written.
        segment: keys and values of the newest segment, two per position.
        asked: (B, W - 1, D) tail of the convolution over the queries of the input, or None.
        found: the same for the queries of what attention found.
        frozen: tokens read without writing; they do not advance the chunks.
    """

    bank: TitanBankState
    segment: AttentionState
    asked: Tensor | None
    found: Tensor | None
    frozen: int


class Asking(NamedTuple):
    """What a call of ``MemoryAsContext`` computes of all its tokens at once.

    Attributes:
        x, questions: (B, T, D), the input and what is asked of the memory.
        queries: (B, H, T, K) of the attention.
        keys, values: (B, G, T, K) of the attention.
    """

    x: Tensor
    questions: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor

    def cut(self, part: slice) -> Asking:
        """Some of the tokens."""
        heads = (t[:, :, part] for t in self[2:])
        return Asking(self.x[:, part], self.questions[:, part], *heads)


class Known(NamedTuple):
    """What ``MemoryAsContext`` knows between two parts of a call: see ``ContextState``."""

    bank: OpenBank
    segment: AttentionState
    found: Tensor | None


class MemoryAsContext(nn.Module):
    """(B, T, D) -> (B, T, D); see the module's equations.

    Args:
        config: of the memory and the persistent keys; its period is the segment.
        attention: heads and norms of the attention.
        dim: width D.
        residual_scale: of the attention's output projection at initialisation.
    """

    memory_parameters = True

    memory_path = "titan"

    untraced = ("_segments",)

    def __init__(
        self, config: TitanConfig, attention: AttentionConfig, dim: int, residual_scale: float
    ) -> None:
        super().__init__()
        self.period = config.period
        self.attention = SegmentAttention(attention, dim, residual_scale, config)
        self.bank = TitanBank(config, dim)
        self.ask = nn.Linear(dim, dim, bias=False)
        self.ask_again = nn.Linear(dim, dim, bias=False)
        init_linear(self.ask)
        init_linear(self.ask_again)
        self.gain = nn.Parameter(torch.ones(3, dim))
        self.gate = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.gate.weight)
        self.conv_asked = CausalConv(dim, config.conv) if config.conv else None
        self.conv_found = CausalConv(dim, config.conv) if config.conv else None

    def init_state(self, batch: int) -> ContextState:
        """Nothing read yet."""
        convs = (self.conv_asked, self.conv_found)
        tails = [None if conv is None else conv.init_tail(batch) for conv in convs]
        empty = self.attention.init_state(batch)
        return ContextState(self.bank.init_state(batch), empty, tails[0], tails[1], 0)

    def forward(
        self, x_BTD: Tensor, state: ContextState, ctx: ReadContext
    ) -> tuple[Tensor, ContextState]:
        """Read segment by segment, writing where one ends.

        Returns:
            The branch to add to the residual, and the new state.
        """
        questions, asked = convolve(self.conv_asked, self.ask(x_BTD), state.asked)
        asking = Asking(x_BTD, questions, *self.attention.project(x_BTD, ctx))
        y_BTD, state = self._segments(asking, state, ctx)
        return y_BTD, state._replace(asked=asked)

    def _segments(
        self, asking: Asking, state: ContextState, ctx: ReadContext
    ) -> tuple[Tensor, ContextState]:
        """``forward`` after the projections; a compiled block must not unroll it."""
        length = asking.x.shape[1]
        write = ctx.writes(length, self.period, state.frozen)
        clock = ctx.position - state.frozen
        known = Known(self.bank.open(state.bank, clock), state.segment, state.found)
        out = []
        for part in self._parts(ctx.position, clock if write else None, length):
            if (ctx.position + part.start) % self.period == 0:
                known = known._replace(segment=self.attention.init_state(len(asking.x)))
            writes = known.bank.writes
            known = known._replace(bank=known.bank._replace(writes=0))  # no variant per number
            y_BcD, known = self._part(asking.cut(part), known, _at(ctx, part), write)
            known = known._replace(bank=known.bank._replace(writes=writes + known.bank.writes))
            out.append(y_BcD)
        frozen = state.frozen + (0 if write else length)
        held = self.bank.close(known.bank) if write else state.bank
        return torch.cat(out, 1), ContextState(
            held, known.segment, state.asked, known.found, frozen
        )

    @step
    def _part(
        self, asking: Asking, known: Known, ctx: ReadContext, write: bool
    ) -> tuple[Tensor, Known]:
        """Tokens between two cuts (B, c, D): what they are answered, and what is known then."""
        x_BcD, questions, q, k, v = asking
        bank, segment, tail = known
        recalled = self._answer(bank, questions, self.gain[0]).to(x_BcD.dtype)
        _, rk, rv = self.attention.project(recalled, ctx)
        fresh = AttentionState(_pair(rk, k), _pair(rv, v))
        found, segment = self.attention.attend(q, fresh, segment)
        found = found.to(x_BcD.dtype)
        content = _norm(found + x_BcD, self.gain[1])
        doubts, tail = convolve(self.conv_found, self.ask_again(content), tail)
        gate = self._answer(bank, doubts, self.gain[2]).to(x_BcD.dtype)
        y_BcD = self.attention.out(found) * (2 * torch.sigmoid(self.gate(gate)))
        if write:
            tokens, bank = self.bank.tokens(bank, content)
            bank = self.bank.absorb(bank, tokens)
        return y_BcD, Known(bank, segment, tail)

    def _parts(self, position: int, clock: int | None, length: int) -> list[slice]:
        """Cut a call where segments end and, if a clock is given, where chunks do."""
        ends = {0, *accumulate(pieces(position, length, self.period))}
        if clock is not None:
            ends |= set(accumulate(pieces(clock, length, self.period)))
        return [slice(a, b) for a, b in pairwise(sorted(ends))]

    def _answer(self, bank: OpenBank, questions_BTD: Tensor, gain: Tensor) -> Tensor:
        """What the memories say to (B, c, D), normalised."""
        answers = self.bank.read(bank, split_heads(questions_BTD, self.bank.heads))
        return _norm(join_heads(answers, self.bank.heads), gain)


def _pair(a_BHTK: Tensor, b_BHTK: Tensor) -> Tensor:
    """(B, H, 2 T, K): a and b of every position side by side."""
    return torch.stack((a_BHTK.to(b_BHTK.dtype), b_BHTK), 3).flatten(2, 3)


def _at(ctx: ReadContext, part: slice) -> ReadContext:
    """The context of some of the tokens."""
    if ctx.cos is None or ctx.sin is None:
        return ctx
    return ctx._replace(cos=ctx.cos[part], sin=ctx.sin[part])


def _norm(x: Tensor, gain: Tensor) -> Tensor:
    return rms_norm(x, (x.shape[-1],), eps=RMS_EPS) * gain
