"""The memories of one Titans layer: what they hold, what waits, when it is written. Floor 2.

A bank turns its input into keys, values and gates, lets them wait until a chunk is complete and
then writes the chunk (``nl.ops.titans``). What to ask the memories, and what to do with the
answers, is up to the layer around it: everything is read at the state of the chunk start.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, pad, softplus
from torch.utils.checkpoint import checkpoint

from nl.config import require
from nl.core.state import state_type
from nl.nn.conv import CausalConv, convolve
from nl.nn.init import init_linear, zeros_beside
from nl.nn.titan_config import TitanConfig
from nl.ops.titans import TitansMemory, TitansTokens, titans_read, titans_write
from nl.ops.titans_native import KERNEL
from nl.ops.titans_programs import CHUNK, WORTH
from nl.ops.titans_scan import ScanMemory, ScanRule, titans_scan, titans_scan_programs

_UNIT_EPS = 1e-6
_OUTPUT_SCALE = 0.3
_GATE_SCALE = 0.3


@state_type
class TitanBankState(NamedTuple):
    """What a bank carries from token to token; batch first, fp32.

    Attributes:
        added: per layer (B, H, out, in), what has been added to the initial memory.
        surprise: per layer the momentum, of the same shapes; empty without momentum.
        waiting: (B, H, 2 K + 3, P) keys, values, rate, log kept and log inertia of the
            unfinished chunk; zero where empty. Without momentum the last is left out.
        tail: (B, W - 1, 2 D) last inputs of the convolution over keys and values, or None.
        writes: how often the memories have been written.
    """

    added: tuple[Tensor, ...]
    surprise: tuple[Tensor, ...]
    waiting: Tensor
    tail: Tensor | None
    writes: int


class OpenBank(NamedTuple):
    """A bank while a call reads: rows and heads as one dimension N.

    Attributes:
        memory: weights in force, what has been added, momentum.
        waiting: (N, 2 K + 3, c) the c tokens of the unfinished chunk.
        tail: of the convolution over keys and values.
        writes: how often the memories have been written.
    """

    memory: TitansMemory
    waiting: Tensor
    tail: Tensor | None
    writes: int


def unit(x: Tensor) -> Tensor:
    """Unit L2 norm over the features (..., K, C), at least fp32; smooth at zero."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x * torch.rsqrt(x.square().sum(-2, keepdim=True) + _UNIT_EPS)


def split_heads(x_BTD: Tensor, heads: int) -> Tensor:
    """(B, T, H K) -> (N, K, T): tokens last."""
    B, T, _ = x_BTD.shape
    return x_BTD.view(B, T, heads, -1).permute(0, 2, 3, 1).flatten(0, 1)


def join_heads(x_NKT: Tensor, heads: int) -> Tensor:
    """The inverse of ``split_heads``."""
    return x_NKT.unflatten(0, (-1, heads)).permute(0, 3, 1, 2).flatten(2)


class TitanBank(nn.Module):
    """H memories K -> K of any depth and all that writes them.

    Args:
        config: see ``TitanConfig``.
        dim: width D of what is written, a multiple of ``config.head_size``.
    """

    hidden_matrices: ClassVar[dict[str, bool]] = {"gates.weight": False}

    untraced = ("_chunks",)
    """Methods that ``nl.models.compiled`` has called and not looked into."""

    def __init__(self, config: TitanConfig, dim: int) -> None:
        super().__init__()
        require(
            dim % config.head_size == 0,
            f"titan.head_size: {config.head_size}; must divide the width {dim}",
        )
        self.config = c = config
        self.period = c.period
        self.heads = H = dim // c.head_size
        self.write = nn.Linear(dim, 2 * dim, bias=False)
        self.conv = CausalConv(2 * dim, c.conv) if c.conv else None
        self.gates = nn.Linear(dim, (3 if c.momentum else 2) * H)
        init_linear(self.write)
        init_linear(self.gates, scale=_GATE_SCALE)
        lost = -math.log(c.retain) / c.period
        starts = [math.log(c.rate / (1 - c.rate)), math.log(math.expm1(lost))]
        starts += [math.log(c.inertia / (1 - c.inertia))] if c.momentum else []
        with torch.no_grad():
            self.gates.bias.copy_(torch.tensor(starts).repeat_interleave(H))
        scales = [1.0] * (c.depth - 1) + [_OUTPUT_SCALE]
        sides = zip(c.widths[1:], c.widths[:-1], scales, strict=True)
        self.weights = nn.ParameterList(
            scale * torch.randn(H, out, into) / math.sqrt(into) for out, into, scale in sides
        )
        self.share: nn.Parameter | None = None
        if c.depth > 1:
            share = c.rate_hidden / c.rate
            self.share = nn.Parameter(torch.full((H, 1), math.log(share / (1 - share))))

    def init_state(self, batch: int) -> TitanBankState:
        """Nothing written yet."""
        like = self.gates.weight
        zeros = tuple(zeros_beside(like, batch, *w.shape) for w in self.weights)
        rows = 2 * self.config.head_size + (3 if self.config.momentum else 2)
        waiting = zeros_beside(like, batch, self.heads, rows, self.period)
        tail = None if self.conv is None else self.conv.init_tail(batch)
        return TitanBankState(zeros, zeros if self.config.momentum else (), waiting, tail, 0)

    def open(self, state: TitanBankState, clock: int) -> OpenBank:
        """The bank after ``clock`` written tokens."""
        added = tuple(d.flatten(0, 1) for d in state.added)
        surprise = tuple(s.flatten(0, 1) for s in state.surprise)
        waiting = state.waiting.flatten(0, 1)[..., : clock % self.period]
        memory = TitansMemory(self._in_force(added), added, surprise)
        return OpenBank(memory, waiting, state.tail, state.writes)

    def close(self, bank: OpenBank) -> TitanBankState:
        """The state to carry on with."""
        added, surprise = (
            tuple(t.unflatten(0, (-1, self.heads)) for t in side) for side in bank.memory[1:]
        )
        waiting = pad(bank.waiting, (0, self.period - bank.waiting.shape[-1]))
        waiting = waiting.unflatten(0, (-1, self.heads))
        return TitanBankState(added, surprise, waiting, bank.tail, bank.writes)

    def read(self, bank: OpenBank, queries: Tensor) -> Tensor:
        """Answers (N, K, c) to queries (N, K, c), which are brought to unit norm."""
        return titans_read(bank.memory.weights, unit(queries))

    def tokens(self, bank: OpenBank, x_BTD: Tensor) -> tuple[Tensor, OpenBank]:
        """What has to wait of some tokens: (N, 2 K + 3, T), at least fp32; the new tail is kept."""
        made, tail = self.again(self._made, self.write(x_BTD), self.gates(x_BTD), bank.tail)
        return made, bank._replace(tail=tail)

    def _made(self, written: Tensor, gates: Tensor, tail: Tensor | None) -> Any:
        """Tokens and the new tail from projections (B, T, 2 D) and gates (B, T, 3 H)."""
        made, tail = convolve(self.conv, written, tail)
        keys, values = (split_heads(part, self.heads) for part in made.chunk(2, -1))
        gates = gates.unflatten(-1, (-1, self.heads)).permute(0, 3, 2, 1).flatten(0, 1)
        gates = gates.to(torch.promote_types(gates.dtype, torch.float32))
        parts = [unit(keys), unit(values), torch.sigmoid(gates[:, :1]), -softplus(gates[:, 1:2])]
        parts += [logsigmoid(gates[:, 2:])] if self.config.momentum else []
        # What a token is made of lies side by side, as it came and as scans want it.
        return torch.cat([part.mT for part in parts], 2).mT, tail

    def again(self, function: Callable[..., Any], *given: Any) -> Any:
        """``function(*given)``, computed again in the backward pass where ``recompute`` is set."""
        if not (self.config.recompute and torch.is_grad_enabled()):
            return function(*given)
        return checkpoint(function, *given, use_reentrant=False, preserve_rng_state=False)

    def absorb(self, bank: OpenBank, tokens: Tensor) -> OpenBank:
        """Let tokens (N, 2 K + 3, c) wait; write if they complete the chunk."""
        waiting = torch.cat([bank.waiting, tokens.to(bank.waiting.dtype)], dim=-1)
        if waiting.shape[-1] < self.period:
            return bank._replace(waiting=waiting)
        with torch.autocast(waiting.device.type, enabled=False):
            memory: TitansMemory = self.again(self._written, bank.memory, waiting)
        return OpenBank(memory, waiting[..., :0], bank.tail, bank.writes + 1)

    def scan(self, bank: OpenBank, queries: Tensor, tokens: Tensor) -> tuple[Tensor, OpenBank]:
        """Read unit queries (N, K, T) and let tokens (N, 2 K + 3, T) wait; write at chunk ends.

        Whole chunks are read and written in one node of the graph (``nl.ops.titans_scan``); what
        completes a chunk that has begun, and what is left over, goes piece by piece.
        """
        total, answers = tokens.shape[-1], []
        head = min(-bank.waiting.shape[-1] % self.period, total)
        whole = (total - head) // self.period * self.period
        sizes = [head, whole, total - head - whole]
        parts = zip(queries.split(sizes, -1), tokens.split(sizes, -1), strict=True)
        for which, (query, new) in enumerate(parts):
            if new.shape[-1] == 0:
                continue
            if which == 1:
                with torch.autocast(new.device.type, enabled=False):
                    read, bank = self._chunks(bank, query, new)
            else:
                read = titans_read(bank.memory.weights, query)
                bank = self.absorb(bank, new)
            answers.append(read.to(torch.promote_types(read.dtype, torch.float32)))
        return answers[0] if len(answers) == 1 else torch.cat(answers, -1), bank

    def _chunks(self, bank: OpenBank, queries: Tensor, tokens: Tensor) -> tuple[Tensor, OpenBank]:
        """``scan`` of whole chunks from a chunk's start; a compiled block must not unroll it."""
        memory, c = bank.memory, self.config
        tokens = tokens.to(bank.waiting.dtype)
        whole = c.retention == "zero"
        rows = len(tokens) // self.heads
        start = ScanMemory((), memory.weights, memory.surprise)
        if not whole:
            base = (w.to(tokens.dtype).expand(rows, *w.shape).flatten(0, 1) for w in self.weights)
            start = ScanMemory(tuple(base), memory.added, memory.surprise)
        rule = ScanRule(self.period, c.step == "normalised", c.recompute)
        share = self._hidden_share(rows)
        programs = self.period >= WORTH and CHUNK.wanted(self.period)
        programs = programs and not KERNEL.takes(queries, tokens)  # which is faster still
        run = titans_scan_programs if programs else titans_scan
        read, end = run(start, queries.to(tokens.dtype), self._split(tokens), share, rule)
        added = self._beside_initial(end.added) if whole else end.added
        memory = TitansMemory(self._in_force(added), added, end.surprise)
        writes = bank.writes + tokens.shape[-1] // self.period
        return read, OpenBank(memory, bank.waiting, bank.tail, writes)

    def _split(self, waiting: Tensor) -> TitansTokens:
        """Waiting tokens (N, 2 K + 3, c) by what they are."""
        K = self.config.head_size
        keys, values, gates = waiting.split([K, K, waiting.shape[1] - 2 * K], dim=1)
        inertia = gates[:, 2] if self.config.momentum else None
        return TitansTokens(keys, values, gates[:, 0], gates[:, 1], inertia)

    def _hidden_share(self, rows: int) -> Tensor | None:
        """The share of all layers but the last in the rate, (N, 1)."""
        return None if self.share is None else torch.sigmoid(self.share).repeat(rows, 1)

    def _beside_initial(self, whole: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What has been added, from the weights that the initial ones have become part of."""
        initial = zip(whole, self.weights, strict=True)
        return tuple((d.unflatten(0, (-1, self.heads)) - w).flatten(0, 1) for d, w in initial)

    def _written(self, memory: TitansMemory, waiting: Tensor) -> TitansMemory:
        whole = self.config.retention == "zero"
        start = memory._replace(added=memory.weights) if whole else memory
        share = self._hidden_share(len(waiting) // self.heads)
        tokens, normalised = self._split(waiting), self.config.step == "normalised"
        added, surprise = titans_write(start, tokens, share, normalised)
        if whole:
            added = self._beside_initial(added)
        return TitansMemory(self._in_force(added), added, surprise)

    def _in_force(self, added: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Initial weights (H, ...) plus what has been added (N, ...)."""
        pairs = zip(self.weights, added, strict=True)
        return tuple((w + d.unflatten(0, (-1, self.heads))).flatten(0, 1) for w, d in pairs)
