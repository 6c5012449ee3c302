"""State of the self-modifying memory, and the tokens that wait in it to be written. Floor 2."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from nl.core.state import state_type
from nl.ops.fast_mlp import FastWeights
from nl.ops.selfmod_read import Banks


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


class Chunk(NamedTuple):
    """Tokens to write; N = rows times heads. Keys, values (N, K, C); rate, log decay (N, C)."""

    keys: Tensor
    values: Tensor
    rate: Tensor
    log_decay: Tensor

    def join(self, new: Chunk) -> Chunk:
        """These tokens and then the new ones, in the dtype of these."""
        new = Chunk(*(t.to(self.rate.dtype) for t in new))
        if self.rate.shape[-1] == 0:
            return new
        return Chunk(*(torch.cat(pair, dim=-1) for pair in zip(self, new, strict=True)))

    def last(self, count: int) -> Chunk:
        """The last ``count`` tokens; where that is none, without a gradient."""
        size = self.rate.shape[-1]
        if 0 < count == size:
            return self
        held = self if count else (t.detach() for t in self)
        return Chunk(*(t[..., size - count :] for t in held))


def waiting_tokens(state: SelfModState, count: int) -> Chunk:
    """The first ``count`` tokens that wait in a state."""
    slots = Chunk(state.keys, state.values, state.rate, state.log_decay)
    held = slots if count else (t.detach() for t in slots)  # as in ``Chunk.last``
    return Chunk(*(t.flatten(0, 1)[..., :count] for t in held))


def added_banks(state: SelfModState) -> Banks:
    """The banks of a state with rows and heads as one dimension."""
    banks = (state.memory, state.makers, state.gates)
    return Banks(*(FastWeights(*(w.flatten(0, 1) for w in bank)) for bank in banks))


def with_memories(state: SelfModState, added: Banks, waiting: Chunk, period: int) -> SelfModState:
    """The state with these banks and these waiting tokens, ``period`` slots for them."""
    lead = state.rate.shape[:2]
    fill = period - waiting.rate.shape[-1]
    slots = Chunk(*(pad(t, (0, fill)).unflatten(0, lead) for t in waiting))
    banks = Banks(*(FastWeights(*(w.unflatten(0, lead) for w in bank)) for bank in added))
    return state._replace(**banks._asdict(), **slots._asdict())
