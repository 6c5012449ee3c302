"""One chunk of a scan over Titans memories, forward and backward by hand. Floor 1.

The equations are those of ``nl.ops.titans`` and ``nl.ops.titans_scan``. Layers of one shape are a
group and are written together. Tokens are the second to last dimension here: narrow products are
faster that way. N rows times heads, C tokens, L layers of which a group has G, M parts of a state:
D, and S with momentum.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nl.ops.titans import CROWD_EPS, crowd


class Plan(NamedTuple):
    """What the loop over chunks has to know beside its tensors.

    Attributes:
        size: tokens C per chunk.
        groups: layers of one shape, by their numbers.
        crowded: step sizes are divided by what the inputs of a chunk share.
        anchored: D is added to a base; else it is all there is.
        segment: chunks that share a tape.
        recompute: run segments forward again in the backward pass; else all tapes are kept.
    """

    size: int
    groups: tuple[tuple[int, ...], ...]
    crowded: bool
    anchored: bool
    segment: int
    recompute: bool

    @property
    def places(self) -> list[tuple[int, int]]:
        """Group and place in it of every layer."""
        found = {i: (g, j) for g, group in enumerate(self.groups) for j, i in enumerate(group)}
        return [found[i] for i in range(len(found))]

    @property
    def hidden(self) -> int:
        """All layers but the last."""
        return sum(len(group) for group in self.groups) - 1


class Tape:
    """What m chunks leave behind for the backward pass, with the views of it that passes need.

    Every kind is one tensor over chunks, so that views are made for all chunks at once.

    Attributes:
        inputs: per group (m, N, G, 2 C, in) of queries, then keys.
        deltas: per group (m, N, G, C, out).
        coefs: per group (m, N G, C, M) minus the step sizes.
        states: per group (m + 1, N, G, M, out, in) E at chunk starts, and at the end; m on a ring.
        slopes: per hidden layer (m, N, 2 C, out).
        curls: per hidden layer (m, N, C, out) minus second derivatives at the keys times what
            their slopes are multiplied with.
    """

    def __init__(self, plan: Plan, tensors: Sequence[Tensor]) -> None:
        G, hidden, C = len(plan.groups), plan.hidden, plan.size
        ends = list(itertools.accumulate((G, G, G, G, hidden, hidden), initial=0))
        parts = [tensors[a:b] for a, b in itertools.pairwise(ends)]
        self.inputs, self.deltas, self.coefs, self.states, self.slopes, self.curls = parts
        places = [(g, j) for g, j in plan.places]
        self.x = [self.inputs[g][:, :, j].unbind(0) for g, j in places]
        self.delta = [self.deltas[g][:, :, j].unbind(0) for g, j in places]
        self.keys = [t[:, :, :, C:].flatten(1, 2).unbind(0) for t in self.inputs]
        self.spread = [t.flatten(1, 2).unsqueeze(3).unbind(0) for t in self.deltas]
        self.coef = [t.unbind(0) for t in self.coefs]
        self.rows = [self._slots(t.flatten(4).flatten(1, 2)) for t in self.states]
        self.held = [self._slots(t[:, :, :, 0]) for t in self.states]
        self.slope = [t.unbind(0) for t in self.slopes]
        self.slope_keys = [t[:, :, C:].unbind(0) for t in self.slopes]
        self.curl = [t.unbind(0) for t in self.curls]

    def _slots(self, states: Tensor) -> tuple[Tensor, ...]:
        """E chunk by chunk; on a ring the first slot follows the last."""
        slots = states.unbind(0)
        return (*slots, slots[0]) if len(slots) == len(self.inputs[0]) else slots

    @classmethod
    def empty(cls, plan: Plan, states: Sequence[Tensor], chunks: int, ring: bool = False) -> Tape:
        """Room for ``chunks`` chunks; ``states`` per group (N, G, M, out, in), E before them.

        A ring is used again and again by a pass that nothing goes back over.
        """
        C, made = plan.size, [list[Tensor]() for _ in range(6)]
        for state in states:
            N, G, M, out, into = state.shape
            made[0].append(state.new_empty(chunks, N, G, 2 * C, into))
            made[1].append(state.new_empty(chunks, N, G, C, out))
            made[2].append(state.new_empty(chunks, N * G, C, M))
            made[3].append(state.new_empty(chunks + (not ring), *state.shape))
        for g, _ in plan.places[:-1]:
            N, out = states[g].shape[0], states[g].shape[3]
            made[4].append(states[g].new_empty(chunks, N, 2 * C, out))
            made[5].append(states[g].new_empty(chunks, N, C, out))
        tape = cls(plan, [t for part in made for t in part])
        tape.start(states)
        return tape

    def start(self, states: Sequence[Tensor]) -> None:
        """Put E before the first chunk."""
        for held, state in zip(self.states, states, strict=True):
            held[0].copy_(state)

    def tensors(self) -> list[Tensor]:
        """What ``__init__`` takes."""
        kinds = (self.inputs, self.deltas, self.coefs, self.states, self.slopes, self.curls)
        return [t for kind in kinds for t in kind]


class ChunkAdjoints(NamedTuple):
    """Adjoints of what one chunk was given, the last four per group.

    Attributes:
        pair: (N, 2 C, K).
        value: (N, C, K).
        mixes: (N G, M, M).
        lifts: (N G, C, M).
        rates: (N G, C); empty where steps are not crowded.
        states: (N, G, M, out, in) of E at the chunk start.
    """

    pair: Tensor
    value: Tensor
    mixes: list[Tensor]
    lifts: list[Tensor]
    rates: list[Tensor]
    states: list[Tensor]


def _square(weight: Tensor) -> bool:
    """Whether a hidden layer of this weight adds its input to its output."""
    return weight.shape[-2] == weight.shape[-1]


class ChunkPass:
    """The passes over single chunks; tensors per chunk are split once.

    Args:
        plan: see ``Plan``.
        pairs: (n, N, 2 C, K) queries, then keys.
        values: (n, N, C, K).
        mixes: per group (n, N G, M, M), the G of the scan's equation.
        lifts: per group (n, N G, C, M), minus the step sizes, if crowded before the division.
        rates: per group (n, N G, C), what weighs the inputs of a crowded layer.
        base: per group (N, G, out, in), what D is added to; empty if D is all there is.
    """

    def __init__(
        self,
        plan: Plan,
        pairs: Tensor,
        values: Tensor,
        mixes: Sequence[Tensor],
        lifts: Sequence[Tensor],
        rates: Sequence[Tensor],
        base: Sequence[Tensor],
    ) -> None:
        self.plan, self.base = plan, base
        self.pairs, self.values = pairs.unbind(0), values.unbind(0)
        self.mixes, self.lifts, self.rates = (
            [t.unbind(0) for t in part] for part in (mixes, lifts, rates)
        )
        self.places = plan.places
        # Room that every chunk uses again: large tensors made anew are new pages each time.
        self._sums = [torch.empty_like(start) for start in base]

    def _layers(self, groups: Sequence[Tensor]) -> list[Tensor]:
        """What groups hold, in the order of the layers."""
        return [groups[g][:, j] for g, j in self.places]

    def _weights(self, tape: Tape, k: int) -> list[Tensor]:
        """The weights in force at a chunk's start, (N, out, in) per layer."""
        held = [h[k] for h in tape.held]
        if self.base:
            both = zip(self.base, held, self._sums, strict=True)
            held = [torch.add(start, more, out=room) for start, more, room in both]
        return self._layers(held)

    def forward(self, at: int, tape: Tape, k: int, taped: bool = True) -> Tensor:
        """Read and write chunk ``at``: slot k of the tape, E from its slot k to k + 1.

        Args:
            at: number of the chunk.
            tape: room for it.
            k: place of the chunk in the tape.
            taped: fill in what only the backward pass needs, too.

        Returns:
            Answers (N, C, K).
        """
        C, weights = self.plan.size, self._weights(tape, k)
        x = tape.x[0][k]
        x.copy_(self.pairs[at])
        for i, weight in enumerate(weights[:-1]):
            y = torch.bmm(x, weight.mT)
            gate = torch.sigmoid(y)
            y.mul_(gate)
            y_keys, above = y[:, C:], tape.x[i + 1][k]
            if taped:
                rest = 1 - gate
                torch.addcmul(gate, y, rest, out=tape.slope[i][k])
                bend = torch.sub(y_keys, tape.slope_keys[i][k], alpha=2)
                torch.mul(bend, rest[:, C:], out=tape.curl[i][k])
            else:
                gate = gate[:, C:]
                torch.addcmul(gate, y_keys, 1 - gate, out=tape.slope_keys[i][k])
            if _square(weight):
                torch.add(y, x, out=above)
            else:
                above.copy_(y)
            x = above
        out = torch.bmm(x, weights[-1].mT)
        torch.sub(out[:, C:], self.values[at], out=tape.delta[-1][k])
        back: Tensor | None = None
        for i in range(len(weights) - 1, 0, -1):
            below = torch.bmm(tape.delta[i][k], weights[i])
            back = below.add_(back) if back is not None and _square(weights[i]) else below
            torch.mul(back, tape.slope_keys[i - 1][k], out=tape.delta[i - 1][k])
            if taped:
                tape.curl[i - 1][k].mul_(back)
        for g, keys in enumerate(tape.keys):
            coef = self.lifts[g][at]
            if self.plan.crowded:
                coef = coef / crowd(keys[k].mT, self.rates[g][at]).unsqueeze(-1)
            if taped:
                tape.coef[g][k].copy_(coef)
            step = (coef.unsqueeze(-1) * tape.spread[g][k]).flatten(2)
            rows, new = tape.rows[g][k], tape.rows[g][k + 1]
            torch.bmm(step.mT, keys[k], out=new.view(len(rows), -1, keys[k].shape[-1]))
            new.baddbmm_(self.mixes[g][at], rows)
        return out[:, :C]

    def pull_back(
        self,
        at: int,
        tape: Tape,
        k: int,
        to_out: Tensor,
        adjoints: tuple[Sequence[Tensor], Sequence[Tensor]],
    ) -> tuple[ChunkAdjoints, list[Tensor]]:
        """The adjoints of what chunk ``at`` was given.

        Args:
            at: number of the chunk.
            tape: of its forward pass.
            k: place of the chunk in the tape.
            to_out: (N, 2 C, K), those of the answers in front; the rest is written over.
            adjoints: per group (N, G, M, out, in), of E at the chunk's end, and room for those at
                its start.

        Returns:
            The adjoints, and per layer (N, out, in) the weights' part in those of E.
        """
        made = ChunkAdjoints(to_out, to_out, [], [], [], [])
        to_deltas, to_keys = [], []
        for g, (adjoint, room) in enumerate(zip(*adjoints, strict=True)):
            N, G, M, out, into = adjoint.shape
            x, coef, spread = tape.keys[g][k], tape.coef[g][k].unsqueeze(-1), tape.spread[g][k]
            flat, rows = adjoint.view(N * G, M * out, into), adjoint.view(N * G, M, out * into)
            to_step = torch.bmm(x, flat.mT).unflatten(2, (M, out))
            to_x = torch.bmm((coef * spread).flatten(2), flat)
            to_coef = (to_step * spread).sum(3)
            to_delta = (to_step * coef).sum(2)
            if self.plan.crowded:
                parts = _backward_crowd(x, self.rates[g][at], to_coef, coef.squeeze(-1))
                to_coef, to_rate, more = parts
                to_x.add_(more)
                made.rates.append(to_rate)
            made.lifts.append(to_coef)
            made.mixes.append(torch.bmm(rows, tape.rows[g][k].mT))
            torch.bmm(self.mixes[g][at].mT, rows, out=room.view(rows.shape))
            made.states.append(room)
            to_deltas.append(to_delta.view(N, G, -1, out))
            to_keys.append(to_x.view(N, G, -1, into))
        weights = self._weights(tape, k)
        errors, pulls = self._backward_errors(tape, k, self._layers(to_deltas), weights)
        to_out[:, self.plan.size :].copy_(errors[-1])
        given = (to_out, errors, self._layers(to_keys))
        pair, to_weights = self._backward_reads(tape, k, given, weights)
        for to_weight, pull in zip(to_weights[1:], pulls, strict=True):
            to_weight.baddbmm_(*pull)
        return made._replace(pair=pair, value=-errors[-1]), to_weights

    def _backward_errors(
        self, tape: Tape, k: int, to_deltas: list[Tensor], weights: list[Tensor]
    ) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
        """Through delta_i = back_i slope_i, back_{i-1} = delta_i W_i (+ back_i).

        Returns:
            The adjoints of all deltas, the last that of the error; the factors of what this adds
            to the adjoints of all weights but the first.
        """
        made: list[Tensor] = []
        pulls: list[tuple[Tensor, Tensor]] = []
        to_back: Tensor | None = None
        for i, (to_delta, weight) in enumerate(zip(to_deltas, weights, strict=True)):
            if to_back is not None:
                to_delta = torch.baddbmm(to_delta, to_back, weight.mT)
                pulls.append((tape.delta[i][k].mT, to_back))
            made.append(to_delta)
            if i < len(weights) - 1:
                own = to_delta * tape.slope_keys[i][k]
                to_back = own.add_(to_back) if to_back is not None and _square(weight) else own
        return made, pulls

    def _backward_reads(
        self,
        tape: Tape,
        k: int,
        given: tuple[Tensor, list[Tensor], list[Tensor]],
        weights: list[Tensor],
    ) -> tuple[Tensor, list[Tensor]]:
        """Through the layers' outputs at queries and keys.

        ``given``: adjoints of the last layer's output, of the deltas, and of the inputs as far as
        writes go. Returns the adjoint of the pair and what this adds to those of the weights.
        """
        to_out, to_deltas, to_keys = given
        C, to_weights = self.plan.size, list[Tensor]()
        above: Tensor | None = None
        for i in range(len(weights) - 1, -1, -1):
            to_weights.insert(0, torch.bmm(to_out.mT, tape.x[i][k]))
            to_x = torch.bmm(to_out, weights[i])
            if above is not None and _square(weights[i]):
                to_x.add_(above)
            to_x[:, C:].add_(to_keys[i])
            above = to_x
            if i:
                to_out = to_x * tape.slope[i - 1][k]
                to_out[:, C:].addcmul_(to_deltas[i - 1], tape.curl[i - 1][k], value=-1)
        assert above is not None
        return above, to_weights


def _backward_crowd(
    x: Tensor, rate: Tensor, to_coef: Tensor, coef: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Through coef = lift / crowd(x, rate): adjoints of lift, rate and x (N G, C, in)."""
    gram = torch.bmm(x, x.mT)
    size = gram.abs()
    shared = torch.bmm(size, rate.unsqueeze(-1)).squeeze(-1)
    own = gram.diagonal(dim1=-2, dim2=-1)
    divisor = torch.maximum(own, shared).add_(CROWD_EPS)
    to_divisor = -(to_coef * coef).sum(-1) / divisor
    # A tie is shared out evenly, as by torch.maximum.
    to_shared = to_divisor * ((torch.sign(shared - own) + 1) / 2)
    to_rate = torch.bmm(size, to_shared.unsqueeze(-1)).squeeze(-1)
    to_gram = gram.sign().mul_(to_shared.unsqueeze(-1)).mul_(rate.unsqueeze(-2))
    to_gram.diagonal(dim1=-2, dim2=-1).add_(to_divisor - to_shared)
    return to_coef / divisor.unsqueeze(-1), to_rate, torch.bmm(to_gram + to_gram.mT, x)
