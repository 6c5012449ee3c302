"""The Titans memory as a layer: ask, answer, norm, gate; write at chunk ends. Floor 2.

With x the input of a token, per head, everything read at the state of the chunk start:

    q = unit(c(W_q x))     k = unit(c(W_k x))     v = unit(c(W_v x))
    o = W_o (norm(M(q)) * silu(W_g x))      (the gate only with ``gate``)

where c is the SiLU of a causal convolution per channel.

The gates of the write are sigmoids of W x + b: step size, forgetting, momentum (Titans, arXiv
2501.00663, section 3.1 and equations 13 and 14; the write itself in ``nl.ops.titans``). Unit
values and forgetting toward the initial memory are ours, see ``docs/nested_core.md``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from nl.core.state import state_type
from nl.nn.conv import CausalConv, convolve
from nl.nn.init import init_linear
from nl.nn.titan_bank import TitanBank, TitanBankState, join_heads, split_heads, unit
from nl.nn.titan_config import TitanConfig
from nl.ops.norm_linear import RMS_EPS
from nl.ops.titans import titans_read

__all__ = ["TitanConfig", "TitanMemory", "TitanState"]


@state_type
class TitanState(NamedTuple):
    """What the layer carries from token to token.

    Attributes:
        bank: the memories and the unfinished chunk.
        tail: (B, W - 1, D) last inputs of the convolution over queries, or None.
        frozen: tokens read with ``write=False``; they do not advance the chunks.
    """

    bank: TitanBankState
    tail: Tensor | None
    frozen: int


class TitanMemory(nn.Module):
    """The layer; see the module's equations. Returns the branch that a block adds to its stream.

    The output projection starts at zero, so a fresh layer adds nothing.

    Args:
        config: see ``TitanConfig``.
        dim: width D of input and output, a multiple of ``config.head_size``.
    """

    memory_path = "titan"

    def __init__(self, config: TitanConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.shortest_period = config.period
        self.bank = TitanBank(config, dim)
        self.conv = CausalConv(dim, config.conv) if config.conv else None
        self.ask = nn.Linear(dim, 2 * dim if config.gate else dim, bias=False)
        init_linear(self.ask)
        self.gain = nn.Parameter(torch.ones(dim))
        self.out = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.out.weight)

    def init_state(self, batch: int) -> TitanState:
        """The state before the first token, for ``batch`` rows."""
        tail = None if self.conv is None else self.conv.init_tail(batch)
        return TitanState(self.bank.init_state(batch), tail, 0)

    def forward(
        self, x: Tensor, state: TitanState | None = None, *, position: int, write: bool = True
    ) -> tuple[Tensor, TitanState]:
        """Read T tokens; write at every chunk that they complete.

        Args:
            x: (B, T, D), normalised by the caller.
            state: of the tokens before; None is the fresh state.
            position: tokens read before this call. Chunks end where the number of tokens read
                with ``write=True`` is a multiple of the period.
            write: False reads only: nothing is written, nothing waits to be.

        Returns:
            (B, T, D) and the state after the last token.
        """
        if state is None:
            state = self.init_state(len(x))
        asked, gate = self.ask(x).tensor_split([x.shape[-1]], dim=-1)
        queries, tail = self.bank.again(self._queries, asked, state.tail)
        clock = position - state.frozen
        bank = self.bank.open(state.bank, clock)
        if write:
            tokens, bank = self.bank.tokens(bank, x)
            read, bank = self.bank.scan(bank, queries, tokens)
            state = TitanState(self.bank.close(bank), tail, state.frozen)
        else:
            read = titans_read(bank.memory.weights, queries)
            state = TitanState(state.bank, tail, state.frozen + x.shape[1])
        y = join_heads(read, self.bank.heads)
        y = (rms_norm(y, (y.shape[-1],), eps=RMS_EPS) * self.gain).to(x.dtype)
        return self.out(y * silu(gate) if self.config.gate else y), state

    def _queries(self, asked: Tensor, tail: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Unit queries (N, K, T) from projections (B, T, D), and the new tail."""
        mixed, tail = convolve(self.conv, asked, tail)
        return unit(split_heads(mixed, self.bank.heads)), tail
