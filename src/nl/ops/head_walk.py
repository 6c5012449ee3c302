"""Reading a block of tokens with a head that learns, chunk by chunk. Floor 1."""

from __future__ import annotations

import functools
import math
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nl.core.batch import IGNORE
from nl.core.state import state_type

GROUP = 64
"""Tokens that look at once at what came before all of them."""


@state_type
class HeadWrites(NamedTuple):
    """What a head has learned from. A field is None while it would be zero or empty.

    Attributes:
        fast: S (B, V, D).
        residuals, keys: r (B, n, V) and k (B, n, D) of the newest tokens, which are not in S yet.
        old: how many of them count to the chunk of the token behind them: what was left when a
            call ended. The others are the tokens before that one.
    """

    fast: Tensor | None = None
    residuals: Tensor | None = None
    keys: Tensor | None = None
    old: int = 0


class HeadRule(NamedTuple):
    """How a head writes.

    Attributes:
        period: tokens of a chunk; they end at multiples of it.
        retention: what S keeps of itself at the end of a chunk.
        size: tokens between the places where a call forms S, a multiple of the period. About D: up
            to there looking back costs less, and what is looked at is no larger than S.
        gain: multiplies what is gathered; None: nothing is gathered, S is only read.
        last: whether the call ends here: all chunks that are complete go into S.
        keep: whether what is gathered is asked for again; if not, the writes after it are none.
    """

    period: int
    retention: float
    size: int
    gain: float | None = 1.0
    last: bool = True
    keep: bool = True

    def blocks(self, start: int, length: int) -> list[tuple[int, int, HeadRule]]:
        """Ranges of a part between the places where S is formed, and the rule of each.

        A call ends, and what it has gathered is left, with the last of them alone.
        """
        cuts = range(-start % self.size, length, self.size) if self.gain is not None else ()
        inner = self._replace(last=False, keep=True)
        places = pairwise(sorted({0, *cuts, length}))
        return [(begin, end, self if end == length else inner) for begin, end in places]


class HeadWeights(NamedTuple):
    """W (V, D) and what the rates of words follow from: log_rate (1,), toward (D,).

    rate = limit sigmoid(z - log limit) with z = log_rate + scale W toward: about exp(z) far below
    the limit. It is a function of the word's row, which is a constant of it: what training has told
    about frequent words serves rare ones like them.
    """

    weight: Tensor
    log_rate: Tensor
    toward: Tensor
    scale: float
    limit: float

    def rate(self) -> Tensor:
        """The rate of every word (V,)."""
        spread = self.weight.detach() @ (self.scale * self.toward)
        return self.limit * (self.log_rate + spread - math.log(self.limit)).sigmoid()


class _Plan(NamedTuple):
    """Which token of a block reads what.

    Attributes:
        groups: where chunks begin and the last ends, some at a time (``GROUP``).
        decay (T,): what is left of S when a token reads.
        kept (T, n + T): what is left of a token's write when another reads; 0: not written yet.
        fold (done,): what is left of a write at the end of the block.
        last: what is left of S then.
        looks: whether any token reads another's write outside S.
    """

    groups: tuple[tuple[int, ...], ...]
    decay: Tensor
    kept: Tensor
    fold: Tensor
    last: float
    looks: bool


class _Sizes(NamedTuple):
    """Tokens of a block: ``old``, ``held`` of this call, ``length`` to read, ``known`` labels.

    ``offset``: how far into a chunk the first of those held (or to read) is. ``fold``: whether S is
    formed behind them.
    """

    old: int
    held: int
    length: int
    known: int
    offset: int
    fold: bool


def _plan(sizes: _Sizes, rule: HeadRule, like: Tensor) -> _Plan:
    """The plan of a block, in the dtype and on the device of ``like``."""
    old, held, length, offset = sizes.old, sizes.held, sizes.length, sizes.offset
    groups, closed, done = _layout(sizes, rule.period if rule.gain is not None else 0)
    place = torch.arange(offset - old, offset + held + length, dtype=like.dtype, device=like.device)
    if rule.gain is None:
        chunk = torch.zeros_like(place)
    else:
        chunk = place.clamp(min=0).div(rule.period, rounding_mode="floor")
    reads = chunk[old + held :]
    ago = reads[:, None] - chunk - 1
    kept = torch.where(ago >= 0, rule.retention**ago, 0.0)
    fading = rule.retention ** (closed - 1 - chunk[:done])
    looks = rule.gain is not None and (offset + held + length - 1) // rule.period > 0
    return _Plan(groups, rule.retention**reads, kept, fading, rule.retention**closed, looks)


@functools.lru_cache(maxsize=256)
def _layout(sizes: _Sizes, period: int) -> tuple[tuple[tuple[int, ...], ...], int, int]:
    """Groups of chunks, how many of them go into S, and how many tokens; period 0: no chunks."""
    old, held, length, known, offset, fold = sizes
    if not period:
        return ((0, length),), 0, 0
    cuts = [i for i in range(1, length) if (offset + held + i) % period == 0]
    end = offset + held + length
    full = known == length and end % period == 0
    closed = (end - 1) // period + full if fold else 0
    done = sum((offset + i) // period < closed for i in range(held + known))
    return _groups([0, *cuts, length]), closed, done + (old if closed else 0)


def _groups(cuts: list[int]) -> tuple[tuple[int, ...], ...]:
    """Chunks in a row, until they are ``GROUP`` tokens."""
    groups = [[0]]
    for cut in cuts[1:]:
        groups[-1].append(cut)
        if cut - groups[-1][0] >= GROUP and cut < cuts[-1]:
            groups.append([cut])
    return tuple(tuple(group) for group in groups)


class HeadBlock(NamedTuple):
    """A block to read: targets (B, K) of its first K tokens, writes before it, position, rule."""

    target: Tensor
    before: HeadWrites
    start: int
    rule: HeadRule


class HeadWalk(NamedTuple):
    """A block, read chunk by chunk; n tokens of the unfinished chunk come before its T.

    Attributes:
        plan: its plan.
        total (B, T): logsumexp of the logits.
        logits, moved (B, T, V): what the head says, and what its writes took from that by rate 1.
        residuals (B, n + K, V), keys (B, n + K, D): of the labelled tokens.
        fast: S before the block.
        after: writes after the block.
    """

    plan: _Plan
    total: Tensor
    logits: Tensor
    moved: Tensor | None
    residuals: Tensor
    keys: Tensor
    fast: Tensor | None
    after: HeadWrites

    @classmethod
    def read(cls, hidden: Tensor, weight: Tensor, rate: Tensor, block: HeadBlock) -> HeadWalk:
        """Read a block: every chunk looks at the residuals of those before it."""
        target, writes, start, rule = block
        (rows, length, dim), known = hidden.shape, target.shape[1]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logits = (hidden @ weight.mT).to(wide)
        hidden, rate = hidden.to(wide), rate.to(wide)
        waits = 0 if writes.keys is None or rule.gain is None else writes.keys.shape[1]
        held = waits - writes.old if waits else 0
        fold = rule.keep and (rule.last or (start + length) % rule.size == 0)
        offset = (start - held) % rule.period
        sizes = _Sizes(waits - held, held, length, known, offset, fold)
        plan = _plan(sizes, rule, hidden)
        residuals = logits.new_empty(rows, waits + known, logits.shape[-1])
        keys = hidden.new_empty(rows, waits + known, dim)
        if waits:
            past: Any = writes
            residuals[:, :waits], keys[:, :waits] = past.residuals, past.keys
        torch.mul(hidden[:, :known], (rule.gain or 0.0) / dim, out=keys[:, waits:])
        moved: Tensor | None = None
        if writes.fast is not None:
            moved = (hidden @ writes.fast.to(wide).mT).mul_(plan.decay[:, None])
        elif plan.looks:
            moved = torch.zeros_like(logits)

        def look(reads: slice, seen: slice) -> None:
            if plan.looks and seen.stop > seen.start:
                weights = (hidden[:, reads] @ keys[:, seen].mT).mul_(plan.kept[reads, seen])
                moved[:, reads].add_(weights @ residuals[:, seen])  # type: ignore[index]

        total = logits.new_empty(rows, length)
        for group in plan.groups:
            first, stop = group[0], group[-1]
            look(slice(first, stop), slice(0, waits + first))
            for begin, end in pairwise(group):
                look(slice(begin, end), slice(waits + first, waits + begin))
                part = logits[:, begin:end]
                if moved is not None:
                    part.addcmul_(moved[:, begin:end], rate, value=-1)
                named = residuals[:, waits + begin : waits + end]
                total[:, begin:end] = _residual(part, target[:, begin:end], named)
        after = writes
        if rule.gain is not None:
            after = _after(plan, residuals, keys, writes, rule)
        return cls(plan, total, logits, moved, residuals, keys, writes.fast, after)

    def signal(self, weight: Tensor, rate: Tensor) -> Tensor:
        """d nll_t / d hidden_t (B, K, D) of the labelled tokens, in the dtype of the weight."""
        told = self.told()
        known = told.shape[1]
        signal = told.to(weight.dtype) @ weight
        told = told * rate.to(told.dtype)
        if self.fast is not None:
            decay = self.plan.decay[:known, None]
            signal -= (told @ self.fast.to(told.dtype)).mul_(decay).to(signal.dtype)
        if self.plan.looks:
            kept = self.plan.kept[:known, : self.keys.shape[1]]
            look = (told @ self.residuals.mT).mul_(kept)
            signal -= (look @ self.keys).to(signal.dtype)
        return signal

    def told(self) -> Tensor:
        """The residuals (B, K, V) of the block's own labelled tokens."""
        waits = self.plan.kept.shape[1] - self.plan.kept.shape[0]
        return self.residuals[:, waits:]


def _residual(logits: Tensor, target: Tensor, out: Tensor) -> Tensor:
    """Logsumexp (B, T); into ``out`` softmax - onehot of the labelled tokens, or zero."""
    scored, known = target != IGNORE, target.shape[1]
    found = logits.softmax(-1)
    total = logits.amax(-1) - found.amax(-1).log()
    index = torch.where(scored, target, 0)[..., None]
    found = found[:, :known].scatter_add_(-1, index, -torch.ones_like(index, dtype=found.dtype))
    torch.mul(found, scored[..., None], out=out)
    return total


def _after(
    plan: _Plan, residuals: Tensor, keys: Tensor, writes: HeadWrites, rule: HeadRule
) -> HeadWrites:
    """S with the chunks in it that are complete, where it is formed; the rest waits.

    The count of what waits outlives it where all rows of a State were made fresh.
    """
    if not rule.keep:
        return HeadWrites(writes.fast)
    done, known, fast = len(plan.fold), keys.shape[1], writes.fast
    old = 0 if writes.keys is None else writes.old
    if done:
        left, right = residuals[:, :done].mT, keys[:, :done] * plan.fold[:, None]
        if fast is None:
            fast = left @ right
        else:
            fast = torch.baddbmm(fast.to(right.dtype), left, right, beta=plan.last)
        residuals, keys, old = residuals[:, done:].clone(), keys[:, done:].clone(), 0
    if done == known:
        return HeadWrites(fast)
    return HeadWrites(fast, residuals, keys, keys.shape[1] if rule.last else old)
