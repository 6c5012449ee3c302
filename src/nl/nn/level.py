"""One memory level: meta weights, learned inner rates, the write that ends a period. Floor 2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nl.config.groups import InnerConfig
from nl.core.state import state_type
from nl.nn.experts_config import ExpertsConfig
from nl.nn.init import init_linear
from nl.nn.rebuilt import Gathered, Move, gathered, moved, note_sums, note_write, rebuilding
from nl.nn.router import RouteContext, Router, Routing
from nl.ops.delta_rule import delta_chunk
from nl.ops.level import (
    LevelForm,
    LevelWeights,
    level_activate,
    level_branch,
    level_gradients,
    level_hidden_signal,
    level_normalize,
)
from nl.ops.level_chain import ChainForm, Link, Pair, heard, level_moves, shrunk


@state_type
class LevelState(NamedTuple):
    """Memory of one level. A field is None while it would be zero.

    Attributes:
        fast_up (B, F, D), fast_down (B, D, F): decayed sums of past writes.
        sum_up, sum_down: what the unfinished period has gathered, same shapes: summed gradients,
            or, for the delta rule, the fast weights after the tokens read so far.
        slots_up, slots_down: what the inner optimizer keeps between writes.
    """

    fast_up: Tensor | None = None
    fast_down: Tensor | None = None
    sum_up: Tensor | None = None
    sum_down: Tensor | None = None
    slots_up: tuple[Tensor, ...] | None = None
    slots_down: tuple[Tensor, ...] | None = None


@state_type
class LevelTrace(NamedTuple):
    """What a write needs of a read: input (B, T, D) and pre-activation (B, T, F).

    ``gate`` (B, T, E): with experts, the weight of each, zero where it did not read. Detached,
    unless gradients go through the write.
    """

    x: Tensor
    z: Tensor
    gate: Tensor | None = None


class LevelTokens(NamedTuple):
    """Read tokens whose signal is known: x, signal (B, T, D); z, hidden_signal (B, T, F).

    ``unit`` (B, T, F): the gate of every hidden unit; None: 1.
    """

    x: Tensor
    z: Tensor
    signal: Tensor
    hidden_signal: Tensor
    unit: Tensor | None = None

    @classmethod
    def of(cls, trace: LevelTrace, signal: Tensor, weights: LevelWeights) -> LevelTokens:
        """The tokens of a trace with the signal at both layers."""
        x, z = trace.x.to(signal.dtype), trace.z.to(signal.dtype)
        unit = unit_gates(trace.gate, weights)
        return cls(x, z, signal, level_hidden_signal(z, signal, weights, unit), unit)

    def pooled(self) -> LevelTokens:
        """The tokens of all rows as those of one."""
        flat = (t if t is None else t.reshape(1, -1, t.shape[-1]) for t in self)
        return LevelTokens(*flat)  # type: ignore[arg-type]


def unit_gates(gate_BTE: Tensor | None, w: LevelWeights) -> Tensor | None:
    """The gate of every hidden unit (B, T, F): experts have equally many neighbouring ones."""
    if gate_BTE is None:
        return None
    return gate_BTE.repeat_interleave(w.down.shape[1] // gate_BTE.shape[-1], -1)


Reduce = Callable[[Tensor], Tensor]
"""Elementwise sum over ranks; may write into its argument."""


class WriteRule(NamedTuple):
    """How a level writes: fast <- retention * fast + clip(inner optimizer(gradient)).

    ``own``: the gradient is that of the level's own loss between keys and values of its input.
    ``shared``: it is summed over the rows, and all rows have the same memory.
    """

    inner: InnerConfig
    retention: float
    clip: float
    own: bool = False
    shared: bool = False


class LevelShape(NamedTuple):
    """Width, form and biases of a level's MLP.

    ``experts`` share out its hidden units; ``salt`` tells their noise from that of other levels.
    """

    hidden: int
    form: LevelForm = LevelForm()
    bias: bool = False
    experts: ExpertsConfig = ExpertsConfig()
    salt: int = 0


class Level(nn.Module):
    """One MLP of a chain with its inner learning rates."""

    def __init__(
        self, dim: int, shape: LevelShape, rate: float, residual_scale: float, rule: WriteRule
    ) -> None:
        super().__init__()
        hidden, self.form, bias, experts, salt = shape
        gated = self.form.activation == "swiglu"
        self.up = nn.Linear(dim, 2 * hidden if gated else hidden, bias=bias)
        self.down = nn.Linear(hidden, dim, bias=bias)
        init_linear(self.up)
        init_linear(self.down, scale=residual_scale)
        self.log_rate = nn.Parameter(torch.full((2,), rate).log())
        # A write moves what the same input reads by rate * signal: divide by the input's norm^2.
        self.scale_up, self.scale_down = 1.0 / dim, 1.0 / hidden
        if rule.own:
            # Keys begin as what is asked (the input itself), values in the size of an answer.
            self.key = nn.Linear(dim, dim, bias=False)
            self.value = nn.Linear(dim, dim, bias=False)
            nn.init.eye_(self.key.weight)
            init_linear(self.value, scale=residual_scale)
        self.chain = ChainForm(self.form, (self.scale_up, self.scale_down))
        self.rule = rule
        self.router = Router(experts, dim, salt) if experts.sparse else None

    def read(
        self, x_BTD: Tensor, memory: LevelState, route: RouteContext | None
    ) -> tuple[Tensor, LevelTrace, Routing | None]:
        """The branch to add, what a write needs of it, and what its router chose."""
        w, again = self.weights(memory), rebuilding(memory.fast_up, memory.fast_down)
        if self.router is None:
            y, z = level_branch(x_BTD, w, None, again)
            return y, LevelTrace(x_BTD, z), None
        assert route is not None
        gate, found = self.router.gates(level_normalize(x_BTD, w.form), route)
        y, z = level_branch(x_BTD, w, unit_gates(gate, w), again)
        return y, LevelTrace(x_BTD, z, gate), found

    def weights(self, state: LevelState) -> LevelWeights:
        """The weights in force for each row."""
        rate_up, rate_down = self.log_rate.exp().unbind()
        up, down = state.fast_up, state.fast_down
        if self.rule.shared:
            up, down = (None if fast is None else fast[0] for fast in (up, down))
        return LevelWeights(
            self.up.weight,
            self.down.weight,
            up,
            down,
            rate_up * self.scale_up,
            rate_down * self.scale_down,
            self.up.bias,
            self.down.bias,
            self.form,
        )

    def link(self, state: LevelState) -> Link:
        """The same for a level without biases whose rows have memories of their own."""
        meta = self.up.weight, self.down.weight
        return Link(*meta, state.fast_up, state.fast_down, self.log_rate)

    def recall(self, x_BTD: Tensor, w: LevelWeights) -> tuple[LevelTrace, Tensor]:
        """Answer the level's own keys: what a write without labels needs.

        With n = x / rms(x): key k = W_k n, value v = W_v n, loss |MLP(k) - v|^2 / 2 per token.

        Returns:
            The trace of the keys and the signal MLP(k) - v (B, T, D).
        """
        n = level_normalize(x_BTD, self.form)
        keys = n @ self.key.weight.to(n.dtype).T
        answer, z = level_branch(keys, w)
        return LevelTrace(keys, z), answer - n @ self.value.weight.to(n.dtype).T

    def absorb(
        self,
        memory: LevelState,
        tokens: LevelTokens,
        w: LevelWeights,
        closes: bool,
        base: LevelState | None = None,
        reduce: Reduce | None = None,
        read: LevelTrace | None = None,
    ) -> tuple[LevelState, Tensor | None]:
        """Gather what the tokens say; write if they close the period.

        Args:
            memory: the level's state.
            tokens: tokens of this period only.
            w: the weights they were read with, in the dtype of the memory.
            closes: whether the last of them is the last of the period.
            base: the memory that this one decays toward; None: toward its meta weights.
            reduce: sums the gradients of a shared memory over ranks before it is written.
            read: the trace of the tokens, if what is written may be made again of it going back
                (a ``linear`` inner optimizer without base and reduce); None: it is kept.

        Returns:
            The new state and, after a write, which rows had a signal (B, 1, 1).
        """
        inner: Any = self.rule.inner
        to = (None, None) if base is None else (base.fast_up, base.fast_down)
        up = _Side(memory.fast_up, memory.slots_up, w.up, w.rate_up, self.scale_up, to[0])
        down = _Side(
            memory.fast_down, memory.slots_down, w.down, w.rate_down, self.scale_down, to[1]
        )
        sums: tuple[Tensor, ...]
        if inner.per_token:
            n, a = level_normalize(tokens.x, w.form), level_activate(tokens.z, w.form)
            a = a if tokens.unit is None else a * tokens.unit
            sums = (
                _delta_tokens(memory.sum_up, up, n, tokens.hidden_signal),
                _delta_tokens(memory.sum_down, down, a, tokens.signal),
            )
        else:
            seen = tokens.pooled() if self.rule.shared else tokens
            grads = level_gradients(*seen[:-1], w.form, seen.unit)
            pairs = zip((memory.sum_up, memory.sum_down), grads, strict=True)
            sums = tuple(g if s is None else s + g for s, g in pairs)
        known = known_tokens(memory, tokens, read)
        if not closes:
            return gather(memory, sums, known), None
        if inner.per_token:
            fast = (memory.fast_up, memory.fast_down)
            sums = tuple(s if f is None else s - f for s, f in zip(sums, fast, strict=True))
        if reduce is not None:
            sums = tuple(reduce(s) for s in sums)
        active = heard((sums[0], sums[1]))
        fast_up, slots_up, by_up = self._write(sums[0], up, active)
        fast_down, slots_down, by_down = self._write(sums[1], down, active)
        before = memory.fast_up, memory.fast_down
        note_write(before, fast_up, known, (by_up, by_down), w.form)
        return LevelState(fast_up, fast_down, None, None, slots_up, slots_down), active

    def descend(
        self, memory: LevelState, sums: Pair, known: tuple[Gathered, ...] | None
    ) -> LevelState:
        """What the sums of a whole period make of a level of a chain."""
        rule = self.rule
        how = level_moves(sums, self.link(memory), self.chain, 1 - rule.retention, rule.clip)
        before = memory.fast_up, memory.fast_down
        moves = [
            Move(None if fast is None else how.kept, shrink)
            for fast, shrink in zip(before, how[1:], strict=True)
        ]
        up, down = map(moved, before, moves, sums)
        note_write(before, up, known, (moves[0], moves[1]), self.form)
        return LevelState(up, down)

    def _write(
        self, grad: Tensor, side: _Side, active: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...] | None, Move]:
        """fast <- retention * fast + clip(step); rows without any signal stay as they are."""
        inner: Any = self.rule.inner
        step, slots = inner.step(grad, side.slots, side.meta, side.scale)
        if slots:
            step = torch.where(active, step, 0.0)
        shrink = on = active.to(step.dtype)
        if self.rule.clip:
            shrink = on * shrunk(step, side.meta, side.rate, self.rule.clip)
        fast = side.fast
        if fast is None and side.base is not None:
            fast = torch.zeros_like(step)  # the slower level wrote while this one was frozen
        # Factors of a row, not torch.where of its matrices: a third of the time.
        lost = (1 - self.rule.retention) * on
        move = Move(None if fast is None else 1 - lost, shrink)
        step = moved(fast, move, step)
        if side.base is not None:
            step = torch.addcmul(step, lost, side.base)
        old = side.slots or tuple(torch.zeros_like(s) for s in slots)
        slots = tuple(torch.where(active, n, o) for n, o in zip(slots, old, strict=True))
        return step, slots or None, move


def restart(memory: LevelState, slower: LevelState, rows: Tensor) -> LevelState:
    """What a level starts from again after the next slower one has been written.

    Args:
        memory: the level, just written itself.
        slower: the slower level after its write.
        rows: (B, 1, 1) rows in which that write had a signal.
    """
    old: Any = memory
    new: Any = slower

    def clear(slots: tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
        return slots and tuple(torch.where(rows, 0.0, s) for s in slots)

    return LevelState(
        torch.where(rows, new.fast_up, old.fast_up),
        torch.where(rows, new.fast_down, old.fast_down),
        None,
        None,
        clear(old.slots_up),
        clear(old.slots_down),
    )


def gather(
    memory: LevelState, sums: Sequence[Tensor], known: tuple[Gathered, ...] | None
) -> LevelState:
    """The memory within a period, and what its sums are known to be made of."""
    note_sums(sums[0], known)
    return memory._replace(sum_up=sums[0], sum_down=sums[1])


def known_tokens(
    memory: LevelState, tokens: LevelTokens, read: LevelTrace | None
) -> tuple[Gathered, ...] | None:
    """The tokens that the sums of the period are made of, if all of them are known."""
    if read is None:
        return None
    one = Gathered(read.x, read.z, tokens.unit, tokens.signal, tokens.hidden_signal)
    return gathered(memory.sum_up, one)


class _Side(NamedTuple):
    """One of the two layers of a level, as a write sees it."""

    fast: Tensor | None
    slots: tuple[Tensor, ...] | None
    meta: Tensor
    rate: Tensor
    scale: float
    base: Tensor | None = None


def _delta_tokens(pending: Tensor | None, side: _Side, x_BTN: Tensor, g_BTP: Tensor) -> Tensor:
    """Fast weights (B, P, N) after tokens with inputs x and gradients g; zeros of either skip.

    With unit inputs x and the rate r = rate / (1 + rate) (Nested Learning, Eq. 57), what is added
    to the meta weights, -rate * fast, moves by (I - r x x^T) and - r g x^T / |x|.
    """
    start = side.fast if pending is None else pending
    if start is None:
        start = side.meta.new_zeros(len(x_BTN), *side.meta.shape)
    size = x_BTN.norm(dim=-1, keepdim=True)
    spoken = size > torch.finfo(x_BTN.dtype).tiny  # zero has no direction to learn along
    heard = (g_BTP.abs().amax(-1, keepdim=True) > 0) & spoken
    size = torch.where(heard, size, 1.0)
    keys = torch.where(heard, x_BTN / size, 0.0)
    rate = side.rate / side.scale
    rates = (rate / (1 + rate)).expand(x_BTN.shape[:2])
    grads = torch.where(heard, -g_BTP / (size * side.rate), 0.0)
    return delta_chunk(start, keys, grads, torch.zeros_like(rates), rates)
