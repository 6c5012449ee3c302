"""Chunks of Titans memories as programs: what ``train.compile`` makes of a scan. Floor 1.

One chunk, read and written by the closed form of ``nl.ops.titans``, is a program
(``nl.core.program``), and so is the way back through it: the chunk is computed again and taken
back in one piece of machine code, so that nothing of a chunk's inside is ever kept. What is kept
is the memory before some chunks, from where those before the others are computed once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nl.core.program import Program
from nl.ops.titans import TitansMemory, TitansTokens, titans_read, titans_write

WORTH = 32
"""Tokens of a chunk from which on the programs are faster than ``titans_scan`` written by hand."""


class ChunkSpec(NamedTuple):
    """What the tensors of a chunk are: see ``_chunk``.

    Attributes:
        size: tokens of a chunk.
        depth: layers L.
        momentum: there are momentum gates and S.
        shared: there is a share of the hidden layers' rate.
        anchored: D is added to a base; else it is all there is.
        normalised: which step; see ``nl.ops.titans``.
    """

    size: int
    depth: int
    momentum: bool
    shared: bool
    anchored: bool
    normalised: bool

    @property
    def cut(self) -> int:
        """Tensors that every chunk has its own of."""
        return 5 + self.momentum

    @property
    def held(self) -> int:
        """Tensors that all chunks have in common."""
        return self.shared + self.depth * self.anchored

    @property
    def moved(self) -> int:
        """Tensors of the memory."""
        return self.depth * (1 + self.momentum)


def _chunk(spec: ChunkSpec, *flat: Tensor) -> tuple[Tensor, ...]:
    """Read and write one chunk.

    ``flat``: queries, keys and values (N, K, C), rate, log kept and, with momentum, log inertia
    (N, C); the share (N, 1), if any; the base, if any, D and, with momentum, S, L tensors each.
    Returns the answers (N, K, C), D and S.
    """
    cut, held, state = _parted(spec, flat)
    queries, keys, values, *gates = cut
    share = held[0] if spec.shared else None
    base, added = held[spec.shared :], state[: spec.depth]
    weights = [w + d for w, d in zip(base, added, strict=True)] if base else added
    memory = TitansMemory(tuple(weights), tuple(added), tuple(state[spec.depth :]))
    rate, log_kept, *inertia = gates
    tokens = TitansTokens(keys, values, rate, log_kept, inertia[0] if inertia else None)
    read = titans_read(weights, queries)
    more, surprise = titans_write(memory, tokens, share, spec.normalised)
    return read, *more, *surprise


def _chunk_back(spec: ChunkSpec, *flat: Tensor) -> tuple[Tensor, ...]:
    """Adjoints of what ``_chunk`` was given; ``flat``: those of what it gave, then its own."""
    adjoints, given = flat[: 1 + spec.moved], flat[1 + spec.moved :]
    if torch.compiler.is_compiling():
        return tuple(torch.func.vjp(partial(_chunk, spec), *given)[1](adjoints))
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in given]
        made = _chunk(spec, *leaves)
        return torch.autograd.grad(made, leaves, adjoints, materialize_grads=True)


CHUNK, CHUNK_BACK = Program(_chunk), Program(_chunk_back)


def _parted(
    spec: ChunkSpec, flat: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Tensors by chunk, tensors in common, memory."""
    first, last = spec.cut, spec.cut + spec.held
    return list(flat[:first]), list(flat[first:last]), list(flat[last:])


class ProgramScan(torch.autograd.Function):
    """As ``_chunk``, of n chunks: tensors by chunk and the answers have a first dimension n.

    ``every``: chunks from one kept memory to the next.
    """

    @staticmethod
    def forward(ctx: Any, spec: ChunkSpec, every: int, *flat: Tensor) -> tuple[Tensor, ...]:
        cut, held, state = _parted(spec, flat)
        answers, kept = [], list[Tensor]()
        for at, chunk in enumerate(zip(*cut, strict=True)):
            if at and at % every == 0:
                kept += state
            read, *state = CHUNK(spec, *chunk, *held, *state, tokens=spec.size)
            answers.append(read)
        ctx.spec, ctx.every, ctx.count = spec, every, len(flat)
        ctx.save_for_backward(*flat, *kept)
        return torch.stack(answers), *state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        with torch.autocast(grads[0].device.type, enabled=False):
            return ProgramScan._adjoints(ctx, *grads)

    @staticmethod
    def _adjoints(ctx: Any, to_answers: Tensor, *to_state: Tensor) -> Any:
        spec: ChunkSpec = ctx.spec
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        cut, held, first = _parted(spec, saved[: ctx.count])
        starts = _split([*first, *saved[ctx.count :]], spec.moved)
        chunks = list(zip(*cut, strict=True))
        to_held = [torch.zeros_like(t) for t in held]
        adjoints, made = [a.contiguous() for a in to_state], list[tuple[Tensor, ...]]()
        for which in range(len(starts) - 1, -1, -1):
            segment = chunks[which * ctx.every : (which + 1) * ctx.every]
            states = [starts[which]]
            for chunk in segment[:-1]:
                given = (*chunk, *held, *states[-1])
                states.append(list(CHUNK(spec, *given, tokens=spec.size)[1:]))
            for at in range(len(segment) - 1, -1, -1):
                given = (*segment[at], *held, *states[at])
                to_read = to_answers[which * ctx.every + at].contiguous()
                found = CHUNK_BACK(spec, to_read, *adjoints, *given, tokens=spec.size)
                own, more, adjoints = _parted(spec, found)
                for total, part in zip(to_held, more, strict=True):
                    total.add_(part)
                made.append(tuple(own))
        by_chunk = [torch.stack(parts[::-1]) for parts in zip(*made, strict=True)]
        return None, None, *by_chunk, *to_held, *adjoints


def _split(tensors: Sequence[Tensor], size: int) -> list[list[Tensor]]:
    return [list(tensors[i : i + size]) for i in range(0, len(tensors), size)]
