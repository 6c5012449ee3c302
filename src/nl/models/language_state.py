"""State of a language model, and how one call reads. Floor 3."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from nl.config import ConfigError, require
from nl.core.batch import IGNORE
from nl.core.output import Knobs
from nl.core.state import check_fits, map_tensors, state_type, tensors
from nl.nn.surprise import SurpriseState
from nl.ops.head_walk import HeadWrites


@state_type
class PendingLabel(NamedTuple):
    """The newest token, read but not yet labelled: its label is the next token to come.

    Attributes:
        hidden: (B, 1, D) what the head read.
        traces: per block, the traces of its levels (None for blocks without).
        ended: (B,) rows whose document ended with this token, so that no label will come; they are
            zero. None: no row.
    """

    hidden: Tensor
    traces: Any
    ended: Tensor | None = None

    def reset_rows(self, fresh: Any, mask: Tensor) -> PendingLabel:
        """Rows of ``mask`` wait for no label."""
        del fresh

        def erase(tensor: Tensor) -> Tensor:
            return tensor.masked_fill(mask[:, None, None], 0.0)

        ended = mask if self.ended is None else self.ended | mask
        return PendingLabel(erase(self.hidden), map_tensors(erase, self.traces), ended)

    def labels(self, next_B1: Tensor) -> Tensor:
        """The labels (B, 1) that the next tokens are."""
        if self.ended is None:
            return next_B1
        return next_B1.masked_fill(self.ended[:, None], IGNORE)


@state_type
class LanguageState(NamedTuple):
    """Everything that changes while reading.

    Attributes:
        position: tokens read since fresh, the same for all rows.
        blocks: one BlockState per block.
        pending: set while the newest token waits for its label (PendingLabel), or tokens for the
            signal of their tile (PendingTile of nl.models.block_signal).
        gate: the surprise gate, where there is one.
        head: what the head has learned, where it does.
    """

    position: int
    blocks: Any
    pending: Any = None
    gate: SurpriseState | None = None
    head: HeadWrites | None = None


class Read(NamedTuple):
    """How one call reads: ``write`` False freezes memories, ``keep`` False drops the State.

    ``knobs`` may freeze some of the memories. ``routed`` takes what the routers of every block
    chose: (layer, one record per router), piece by piece.
    """

    write: bool = True
    keep: bool = True
    knobs: Knobs | None = None
    routed: list[Any] | None = None


def check_inputs(inputs: Tensor, state: LanguageState | None) -> None:
    """Refuse inputs that are no rows of tokens, or not as many rows as the State has."""
    require(
        inputs.dim() == 2 and inputs.shape[1] >= 1,
        f"inputs: shape {tuple(inputs.shape)}; must be (rows, tokens) with at least 1 token.",
    )
    rows = {len(tensor) for tensor in tensors(state)} or {len(inputs)}
    require(
        rows == {len(inputs)},
        f"inputs: {len(inputs)} rows, but the State is of {min(rows)}; start from "
        "init_state(rows) or choose rows of the State with nl.core.state.select_rows.",
    )


def check_state(model: Any, state: LanguageState | None) -> None:
    """Refuse the State of a model with other blocks, another width or, if it is known, vocabulary.

    It is where a head has learned.
    """
    if state is None:
        return
    fresh = model.__dict__.get("_fresh")
    if fresh is None:
        fresh = map_tensors(lambda t: t.detach().to("meta"), model.init_state(1))
        model.__dict__["_fresh"] = fresh  # types and widths only
    try:
        check_fits(state, fresh)
        if model.head_memory is not None:
            _check_head(state.head or HeadWrites(), *model.head.weight.shape)
        elif state.head is not None:
            raise ValueError("state.head: HeadWrites, but this model's head does not learn")
    except ValueError as error:
        raise ConfigError(f"{error}: the State of another model.") from error


def _check_head(writes: HeadWrites, words: int, dim: int) -> None:
    """Refuse what a head of another size has learned from.

    Raises:
        ValueError: the part, its size and that of this head (V, D).
    """
    sizes = (("fast", (words, dim)), ("residuals", (words,)), ("keys", (dim,)))
    for name, size in sizes:
        held = getattr(writes, name)
        if held is not None and held.shape[-len(size) :] != size:
            found = tuple(held.shape[-len(size) :])
            raise ValueError(f"state.head.{name}: {found}, not {size}")


def check_places(longest: int, length: int, state: LanguageState | None, starts: Any) -> None:
    """Refuse what learned positions cannot give: a longer row, a document inside a row."""
    end = length + (0 if state is None else state.position)
    require(
        end <= longest,
        f"inputs: position {end}, but model.positions=learned knows {longest}; read shorter rows, "
        "or train with model.positions=rope.",
    )
    require(
        starts is None,
        "starts: documents inside a row would begin at a place that is not their first; set "
        "stream.documents=ignore or model.positions=rope.",
    )


def cut(traces: tuple[Any, ...], tokens: slice) -> tuple[Any, ...]:
    """The traces of some of the tokens."""
    return map_tensors(lambda t: t[:, tokens], traces)


def each_token(hidden: Tensor) -> Tensor:
    """Weight 1 for every token (B, T, 1): the signal of levels that need no label."""
    return torch.ones_like(hidden[..., :1], requires_grad=False)
