"""Fast weights that the backward pass makes again instead of keeping them. Floor 2.

After every write the rows of a batch have weights of their own, 2 F D numbers each, and going back
what was read with them needs them again. A write by plain gradient descent is a sum over its
tokens, fast <- kept * fast + shrink * gradient: it can be done again, bit for bit, from the
C (D + F) numbers of their signals and from what the read of those tokens keeps anyway. Every
``SPAN``-th write stays as it is, so that no more than that many have to be there at a time.

What a write was made of is found by its tensor (``rebuilding``) and lives as long as that. A read
saves those tensors instead of the weights, with a ``_Plan`` that holds none, so that checkpoints
and other hooks of autograd see all that is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from nl.core.state import map_tensors
from nl.ops.level import Again, LevelForm, level_gradients

SPAN = 4
"""Writes from one whose weights are kept to the next."""
WORTH = 6
"""A write has at least so many times the numbers of its tokens' signals."""

Pair = tuple[Tensor | None, Tensor | None]


class Gathered(NamedTuple):
    """Tokens of a period, in the dtypes that their read keeps.

    Attributes:
        x, z, unit: as the level read them, (B, T, D), (B, T, F) and (B, T, F) or None.
        signal, hidden_signal: (B, T, D) and (B, T, F) in the dtype of the memory.
    """

    x: Tensor
    z: Tensor
    unit: Tensor | None
    signal: Tensor
    hidden_signal: Tensor

    def gradients(self, form: LevelForm) -> tuple[Tensor, Tensor]:
        """What the tokens add to the sums of a period."""
        x, z = self.x.to(self.signal.dtype), self.z.to(self.signal.dtype)
        return level_gradients(x, z, self.signal, self.hidden_signal, form, self.unit)


class Move(NamedTuple):
    """How the rows took a write: factors (B, 1, 1); ``kept`` is None where nothing was before."""

    kept: Tensor | None
    shrink: Tensor


def moved(fast: Tensor | None, move: Move, step: Tensor) -> Tensor:
    """kept * fast + shrink * step."""
    if fast is None or move.kept is None:
        return step * move.shrink
    return (move.kept * fast).addcmul_(move.shrink, step)


def worth_rebuilding(up: Tensor, down: Tensor, period: int) -> bool:
    """Whether a write into these weights is that much larger than what it is made of."""
    return up.numel() + down.numel() >= WORTH * period * sum(up.shape)


_TOKENS, _MOVES = len(Gathered._fields), 2 * len(Move._fields)
"""Tensors of a group of tokens, and of how both layers moved."""


class _Step(NamedTuple):
    """One write of a plan: what its result is known by, and how many groups of tokens it has."""

    key: object
    groups: int


class _Plan(NamedTuple):
    """How saved tensors become the weights of one read. Holds no tensors but what ``made`` does.

    ``made``: what this backward pass has made, shared by all plans of a level and a call.
    """

    steps: tuple[_Step, ...]
    form: LevelForm
    made: dict[object, Pair]

    def make(self, saved: Sequence[Any]) -> Pair:
        """Do what is missing; forget what was made for later reads: a backward pass goes back."""
        keys = {step.key for step in self.steps}
        for key in [key for key in self.made if key not in keys]:
            del self.made[key]
        up, down = saved[:2]
        place = 2
        for key, groups in self.steps:
            begin, place = place, place + _TOKENS * groups + _MOVES
            if key not in self.made:
                self.made[key] = up, down = self._write(up, down, saved[begin:place])
            up, down = self.made[key]
        return up, down

    def _write(self, up: Tensor | None, down: Tensor | None, parts: Sequence[Any]) -> Pair:
        *tokens, kept_up, by_up, kept_down, by_down = parts
        sums: tuple[Tensor, ...] | None = None
        for i in range(0, len(tokens), _TOKENS):
            grads = Gathered(*tokens[i : i + _TOKENS]).gradients(self.form)
            sums = grads if sums is None else tuple(map(torch.add, sums, grads))
        assert sums is not None
        to_up, to_down = Move(kept_up, by_up), Move(kept_down, by_down)
        return moved(up, to_up, sums[0]), moved(down, to_down, sums[1])


class _Write(NamedTuple):
    """A write with all tensors from the last kept weights on; None: its weights are kept."""

    plan: _Plan
    tensors: tuple[Tensor | None, ...] | None


_writes = WeakTensorKeyDictionary()
_sums = WeakTensorKeyDictionary()


def rebuilding(fast_up: Tensor | None, fast_down: Tensor | None) -> Again | None:
    """What a read saves in the place of these fast weights; None: nothing is known of them."""
    if fast_up is None or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return None
    found: _Write | None = _writes.get(fast_up)
    if found is None:
        return None
    kept = (fast_up, fast_down) if found.tensors is None else found.tensors
    return Again(kept, found.plan.make)


def anchored(state: Any) -> Any:
    """The State with its weights kept as they are, not as what they were made of."""
    if not len(_writes) and not len(_sums):  # nothing learns: a token of a stream costs nothing
        return state
    return map_tensors(lambda t: t.detach() if t in _writes or t in _sums else t, state)


def gathered(sum_up: Tensor | None, tokens: Gathered) -> tuple[Gathered, ...] | None:
    """All tokens of an unfinished period; None: nothing is known of the earlier ones."""
    earlier: tuple[Gathered, ...] | None = () if sum_up is None else _sums.get(sum_up)
    return None if earlier is None else (*earlier, tokens)


def note_sums(sum_up: Tensor, tokens: tuple[Gathered, ...] | None) -> None:
    """These tokens are what the sums of an unfinished period are made of; None: not all known."""
    if tokens is not None:
        _sums[sum_up] = tokens


def note_write(
    before: Pair,
    after: Tensor,
    tokens: tuple[Gathered, ...] | None,
    moves: tuple[Move, Move],
    form: LevelForm,
) -> None:
    """``after`` is the fast up weights of a write of ``tokens`` onto ``before`` (up, down)."""
    if tokens is None:
        return
    found: _Write | None = None if before[0] is None else _writes.get(before[0])
    plan, known = found or (_Plan((), form, {}), None)
    if len(plan.steps) == SPAN - 1:
        _writes[after] = _Write(plan._replace(steps=()), None)
        return
    steps = (*plan.steps, _Step(object(), len(tokens)))
    parts = (t for group in tokens for t in group)
    kept = before if known is None else known
    _writes[after] = _Write(plan._replace(steps=steps), (*kept, *parts, *moves[0], *moves[1]))
