"""The signal ``block``: dL/d(block output) per token, by autograd inside the step. Floor 3.

L is the summed cross-entropy of one tile (the smallest period). The output of a token moves the
loss of every later token of its tile, so the signal exists when the tile is complete and labelled.
Where a call has read the whole tile for training, its own graph gives the signal; otherwise the
tokens of the tile wait in the State, beside what the blocks held when it began, and are read once
more. Either way the numbers are the same, so the cut does not matter. The signal is a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nl.core.batch import IGNORE
from nl.core.output import Knobs
from nl.core.state import detach, reset_rows, send, state_type
from nl.models.language_state import LanguageState, Read
from nl.models.writing import absorb
from nl.ops.losses import linear_cross_entropy


@state_type
class PendingTile(NamedTuple):
    """Tokens of an unfinished or not yet fully labelled tile.

    Attributes:
        begin: position of the first of them.
        waits: 1 if the newest token has no label yet: it is the next token to come.
        blocks: the States of the blocks before the first of them.
        tokens, labels: (B, n) int64.
        resets: (n,) offsets and (B,) masks of the rows in which a document begins there.
    """

    begin: int
    waits: int
    blocks: Any
    tokens: Tensor
    labels: Tensor
    resets: tuple[tuple[int, Tensor], ...] = ()

    def labelled(self, next_B1: Tensor) -> PendingTile:
        """The newest token has got its label, unless the next token begins a document."""
        for offset, mask in self.resets:
            if offset == self.tokens.shape[1]:
                next_B1 = next_B1.masked_fill(mask[:, None], IGNORE)
        return self._replace(labels=torch.cat([self.labels[:, :-1], next_B1], 1), waits=0)

    def reset_rows(self, fresh: Any, mask: Tensor) -> PendingTile:
        """Refused: what the blocks held when the tile began has to become fresh too."""
        raise ValueError(
            "signal=block: a tile waits in this State; use model.reset_rows(state, rows)"
        )

    def restarted(self, fresh: Any, rows: Tensor | Sequence[int]) -> PendingTile:
        """Some rows begin a document: nothing of what they held is left."""
        if isinstance(rows, Tensor):
            mask = rows
        else:
            mask = torch.zeros(len(self.tokens), dtype=torch.bool)
            mask[list(rows)] = True
            mask = send(mask, self.tokens.device)
        blocks = reset_rows(self.blocks, fresh, rows)
        tokens = self.tokens.masked_fill(mask[:, None], 0)
        labels = self.labels.masked_fill(mask[:, None], IGNORE)
        resets = (*self.resets, (tokens.shape[1], mask))
        return PendingTile(self.begin, self.waits, blocks, tokens, labels, resets)


class TileRead(NamedTuple):
    """One read of (a part of) a tile: its tokens, and for training what its signal follows from.

    Attributes:
        tokens: what the State has of it.
        loss: summed cross-entropy, with its graph; None where there is none.
        outputs: per part (a document may begin inside), (B, T, D) of every block.
        traces, signal: of the levels; teach signal (B, T, D) of the head.
    """

    tokens: PendingTile
    loss: Tensor | None = None
    outputs: tuple[tuple[Tensor, ...], ...] = ()
    traces: tuple[Any, ...] = ()
    signal: Tensor | None = None


def tile_of(state: LanguageState, tokens: Tensor, labels: Tensor) -> PendingTile:
    """``tokens`` read from ``state`` with labels for all of them, or for all but the newest."""
    missing = tokens.shape[1] - labels.shape[1]
    labels = torch.nn.functional.pad(labels, (0, missing), value=IGNORE)
    held = state.pending
    if not isinstance(held, PendingTile):
        return PendingTile(state.position, missing, state.blocks, tokens, labels)
    tokens, labels = torch.cat([held.tokens, tokens], 1), torch.cat([held.labels, labels], 1)
    return held._replace(waits=missing, tokens=tokens, labels=labels)


def gather(
    model: Any,
    state: LanguageState,
    read: TileRead,
    knobs: Knobs | None,
    needed: int | None = None,
) -> LanguageState:
    """Hand the signal of a complete tile to the levels; tokens of another wait in the State."""
    tile = read.tokens
    end = tile.begin + tile.tokens.shape[1]
    if tile.waits or end % min(model.config.cms.periods):
        return state._replace(pending=tile)
    if needed is not None and end > needed:
        return state._replace(pending=None)
    return _hand_over(model, state, read, knobs, needed)


def resume(
    model: Any, state: LanguageState, inputs: Tensor, knobs: Knobs | None, write: bool
) -> LanguageState:
    """What waited, now that the next tokens are there: the newest token has got its label.

    Where memories are frozen from here on, the part of the tile that was read counts as one.
    """
    tile: Any = state.pending
    if write and tile.waits:
        return gather(model, state, TileRead(tile.labelled(inputs[:, :1])), knobs)
    if write:
        return state
    return _hand_over(model, state, TileRead(tile), knobs, None)


def _hand_over(
    model: Any,
    state: LanguageState,
    read: TileRead,
    knobs: Knobs | None,
    needed: int | None,
) -> LanguageState:
    live = read.loss is not None and all(out.requires_grad for out in read.outputs[0])
    with torch.enable_grad():
        read = read if live else _again(model, read.tokens, knobs)
        assert read.loss is not None
        assert read.signal is not None
        with torch.autocast(read.loss.device.type, enabled=False):  # as backward passes are run
            grads = torch.autograd.grad(read.loss, list(chain(*read.outputs)), retain_graph=live)
    parts = [grads[i :: len(model.blocks)] for i in range(len(model.blocks))]
    own = tuple(torch.cat(part, 1) for part in parts)
    state = state._replace(pending=None)
    start, levels = read.tokens.begin, (read.traces, read.signal)
    return absorb(model, state, *levels, start, knobs, needed, own)


def _again(model: Any, tile: PendingTile, knobs: Knobs | None) -> TileRead:
    """Read a tile once more from where it began, for its signal alone."""
    state = LanguageState(tile.begin, detach(tile.blocks))
    length = tile.tokens.shape[1]
    cuts = sorted({0, length, *(offset for offset, _ in tile.resets)})
    heads, outputs, traces = [], [], []
    for start, end in pairwise(cuts):
        for offset, mask in tile.resets:
            state = model.reset_rows(state, mask) if offset == start else state
        found: list[Tensor] = []
        hidden, trace, state = model.read(
            tile.tokens[:, start:end], state, Read(knobs=knobs), found
        )
        heads.append(hidden)
        outputs.append(tuple(found))
        traces.append(detach(trace))
    hidden, labels = torch.cat(heads, 1), tile.labels.flatten()
    nll, signal, _ = linear_cross_entropy(hidden.flatten(0, 1), model.head.weight, labels)
    joined = _join(traces)
    return TileRead(tile, nll.sum(), tuple(outputs), joined, signal.view_as(hidden))


def _join(parts: Sequence[Any]) -> Any:
    """Traces of the parts of a tile as those of one read."""
    first = parts[0]
    if len(parts) == 1 or first is None:
        return first
    if isinstance(first, Tensor):
        return torch.cat(list(parts), 1)
    joined = [_join(items) for items in zip(*parts, strict=True)]
    return type(first)(*joined) if hasattr(first, "_fields") else tuple(joined)
