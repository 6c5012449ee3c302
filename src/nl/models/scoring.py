"""Reading and scoring a call tile by tile; in segments that are read again going back. Floor 3."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nl.models.block_signal import TileRead, gather, tile_of
from nl.models.documents import Part
from nl.models.embedding import embedded_tiles
from nl.models.language_state import LanguageState, Read, each_token
from nl.models.reading import ReadTile, score_tile
from nl.models.writing import absorb
from nl.nn.rebuilt import anchored


@dataclass(frozen=True)
class Call:
    """What stays the same over the tiles of a call.

    Attributes:
        inputs, targets: (B, T).
        read: how it reads.
        parts: its tiles.
        needed: levels whose next write falls after this position may be left out; None: none.
    """

    inputs: Tensor
    targets: Tensor
    read: Read
    parts: Sequence[Part]
    needed: int | None


def score(
    model: Any, state: LanguageState, call: Call
) -> tuple[list[Tensor], list[Tensor], LanguageState]:
    """Cross-entropy and hits (B, T_i) per tile, and the State after the last.

    With ``model.recompute_every`` only the State between segments of that many tokens (at least a
    tile) is kept for the backward pass, which reads each segment again.
    """
    every = model.recompute_every if torch.is_grad_enabled() else 0
    losses, hits = list[Tensor](), list[Tensor]()
    for parts in segments(call.parts, every):
        if not every or parts[-1] is call.parts[-1]:  # the last would be read again at once
            found = score_tiles(model, state, call, parts)
        else:
            found = checkpoint(
                score_tiles,
                model,
                state,
                call,
                parts,
                use_reentrant=False,
                preserve_rng_state=False,
            )
        losses += found[0]
        hits += found[1]
        state = anchored(found[2])
    return losses, hits, state


def segments(parts: Sequence[Part], every: int) -> Iterator[Sequence[Part]]:
    """Tiles in groups of at least ``every`` tokens; 0: all in one."""
    group: list[Part] = []
    for part in parts:
        group.append(part)
        if every and part.tokens.stop - group[0].tokens.start >= every:
            yield group
            group = []
    if group:
        yield group


def score_tiles(
    model: Any, state: LanguageState, call: Call, parts: Sequence[Part]
) -> tuple[list[Tensor], list[Tensor], LanguageState]:
    """``score`` for some of the tiles, everything kept."""
    losses, hits = list[Tensor](), list[Tensor]()
    read, knobs = call.read, call.read.knobs
    for (tile, begins), x in embedded_tiles(model, call.inputs, state.position, parts):
        state = model.reset_rows(state, begins) if begins else state
        start, before = state.position, state
        outputs: list[Tensor] | None = [] if model.inner and torch.is_grad_enabled() else None
        last = tile is call.parts[-1].tokens
        step = read._replace(keep=read.keep or not last)
        tokens = call.inputs[:, tile]
        hidden, traces, state = model.read(tokens, state, step, outputs, x)
        target = call.targets[:, tile]
        tile_read = ReadTile(tokens, target, hidden, traces, before, last)
        nll, signal, logits, state = score_tile(model, state, tile_read, step)
        losses.append(nll)
        hits.append(logits.argmax(-1) == target)
        if model.inner and read.write:
            found = TileRead(tile_of(before, tokens, target))
            if outputs and found.tokens.begin == start:
                live = (nll.sum(), (tuple(outputs),), traces, signal)
                found = TileRead(found.tokens, *live)
            state = gather(model, state, found, knobs, call.needed)
        elif model.taught and read.write:
            signal = signal if model.labelled else each_token(hidden)
            state = absorb(model, state, traces, signal, start, knobs, call.needed)
    return losses, hits, state
