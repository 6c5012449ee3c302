"""State of a language model, and how one call reads. Floor 3."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from nl.core.state import map_tensors, state_type
from nl.nn.surprise import SurpriseState


@state_type
class PendingLabel(NamedTuple):
    """The newest token, read but not yet labelled: its label is the next token to come.

    Attributes:
        hidden: (B, 1, D) what the head read.
        traces: per block, the traces of its levels (None for blocks without).
    """

    hidden: Tensor
    traces: Any


@state_type
class LanguageState(NamedTuple):
    """Everything that changes while reading.

    Attributes:
        position: tokens read since fresh, the same for all rows.
        blocks: one BlockState per block.
        pending: set while the newest token waits for its label.
        gate: the surprise gate, where there is one.
    """

    position: int
    blocks: Any
    pending: PendingLabel | None = None
    gate: SurpriseState | None = None


class Read(NamedTuple):
    """How one call reads: ``write`` False freezes memories, ``keep`` False drops the State."""

    write: bool = True
    keep: bool = True


def cut(traces: tuple[Any, ...], tokens: slice) -> tuple[Any, ...]:
    """The traces of some of the tokens."""
    return map_tensors(lambda t: t[:, tokens], traces)


def each_token(hidden: Tensor) -> Tensor:
    """Weight 1 for every token (B, T, 1): the signal of levels that need no label."""
    return torch.ones_like(hidden[..., :1], requires_grad=False)
