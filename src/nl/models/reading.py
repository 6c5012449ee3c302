"""What a tile of tokens says and teaches: logits, then writes of head and levels. Floor 3."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from nl.core.output import Knobs
from nl.core.state import detach
from nl.models.block_signal import TileRead, gather, tile_of
from nl.models.language_state import LanguageState, PendingLabel, Read, cut, each_token
from nl.models.memories import HEAD
from nl.models.writing import absorb
from nl.nn.head_memory import HeadMemory
from nl.ops.head_memory import head_cross_entropy, head_logits
from nl.ops.head_walk import HeadRule, HeadWeights, HeadWrites
from nl.ops.losses import differentiable_cross_entropy, linear_cross_entropy


class ReadTile(NamedTuple):
    """A tile that was read.

    Attributes:
        tokens (B, T), labels (B, T), or (B, T - 1) where the newest waits for its own.
        hidden (B, T, D): what the head reads.
        traces: of the levels of every block.
        before: the State before it.
        last: whether the call ends here.
    """

    tokens: Tensor
    labels: Tensor
    hidden: Tensor
    traces: tuple[Any, ...]
    before: LanguageState
    last: bool


def head_call(
    model: Any, state: LanguageState, read: Read, last: bool
) -> tuple[HeadWeights, HeadWrites, HeadRule]:
    """A head that learns: its weights, what it has learned and how it goes on.

    Its memory counts to the last layer. ``last``: whether the call ends with what is read.
    """
    memory, knobs = model.head_memory, read.knobs
    gain = None
    if read.write and (knobs is None or knobs.permits(HEAD, len(model.blocks) - 1)):
        gain = 1.0 if knobs is None else knobs.write_scale
    rule = memory.rule(gain, last, read.keep)
    return memory.weights(model.head.weight), state.head or HeadWrites(), rule


def read_tile(
    model: Any, state: LanguageState, tile: ReadTile, read: Read
) -> tuple[Tensor, LanguageState]:
    """Logits (B, T, V), and the State after head and levels have learned from the labels.

    Where the newest token has no label, it waits for it in the State.
    """
    hidden, start, knobs = tile.hidden, tile.before.position, read.knobs
    memory: HeadMemory | None = model.head_memory
    known = tile.labels.shape[1]
    if memory is None:
        logits = model.head(hidden)
    else:
        weights, writes, rule = head_call(model, state, read, tile.last)
        learned = head_logits(hidden, weights, tile.labels, writes, start, rule)
        logits, state = learned[0], state._replace(head=learned[2])
    if not read.write or not (model.taught or memory):
        return logits, state
    if not model.labelled:
        return logits, absorb(model, state, tile.traces, each_token(hidden), start, knobs)
    if model.inner:
        found = TileRead(tile_of(tile.before, tile.tokens, tile.labels))
        return logits, gather(model, state, found, knobs)
    if known:
        signal = learned[1] if memory else model.signal(logits[:, :known], tile.labels)
        traces = cut(tile.traces, slice(known))
        state = absorb(model, state, traces, signal, start, knobs)
    if known < hidden.shape[1]:
        newest = slice(hidden.shape[1] - 1, None)
        pending = PendingLabel(hidden[:, newest], cut(tile.traces, newest))
        pending = pending if model.through else detach(pending)
        state = state._replace(pending=pending)
    return logits, state


def label_newest(
    model: Any, state: LanguageState, inputs: Tensor, knobs: Knobs | None
) -> LanguageState:
    """The token that waited has got its label, the first of ``inputs`` (B, T): it is learned."""
    pending, state = state.pending, state._replace(pending=None)
    label, start = pending.labels(inputs[:, :1]), state.position - 1
    if model.head_memory is None:
        signal = model.signal(model.head(pending.hidden), label)
    else:
        weights, writes, rule = head_call(model, state, Read(knobs=knobs), last=True)
        found = head_logits(pending.hidden, weights, label, writes, start, rule)
        signal, state = found[1], state._replace(head=found[2])
    return absorb(model, state, pending.traces, signal, start, knobs)


def score_tile(
    model: Any, state: LanguageState, tile: ReadTile, read: Read
) -> tuple[Tensor, Tensor, Tensor, LanguageState]:
    """Cross-entropy (B, T), teach signal (B, T, D), logits (B, T, V); the head has learned then."""
    hidden, target = tile.hidden, tile.labels
    if model.head_memory is not None:
        weights, writes, rule = head_call(model, state, read, tile.last)
        call = hidden, weights, target, writes, tile.before.position, rule
        nll, signal, logits, head = head_cross_entropy(*call)
        return nll, signal, logits, state._replace(head=head)
    entropy = differentiable_cross_entropy if model.through else linear_cross_entropy
    nll, signal, logits = entropy(hidden.flatten(0, 1), model.head.weight, target.flatten())
    return (
        nll.view_as(target),
        signal.view_as(hidden),
        logits.view(*target.shape, logits.shape[-1]),
        state,
    )
