"""The scan over Titans memories as one C++ kernel, forward and backward. Floor 1.

``ops/native/titans.cpp`` runs all chunks of a row one after another while its memory stays in the
cache. Gates and states it is given as ``nl.ops.titans_chunk`` has them; queries, keys and values
with the features of a token next to each other, so that those of a chunk are a matrix as it is.
For the backward pass it keeps E where segments begin, as the torch form does when it recomputes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nl.core.native import Kernel
from nl.ops.titans_chunk import Plan

KERNEL = Kernel("titans")


class NativeScan(torch.autograd.Function):
    """A plan; queries, keys and values (N, n C, K); the rest of ``ChunkPass`` and E.

    Gives answers (N, n C, K) and, per group, E at the end.
    """

    @staticmethod
    def forward(ctx: Any, plan: Plan, *flat: Tensor) -> tuple[Tensor, ...]:
        flat = tuple(_by_token(t) for t in flat[:3]) + tuple(t.contiguous() for t in flat[3:])
        first = flat[len(flat) - len(plan.groups) :]
        answers, states = _room(flat[0]), [_room(state) for state in first]
        starts = -(-(flat[0].shape[1] // plan.size) // plan.segment) - 1
        kept = [state.new_empty(starts, *state.shape) for state in first] if starts else []
        given, numbers = _given(plan, flat)
        KERNEL.run("titans_forward", numbers, [*given, answers, *states, *_places(plan, kept)])
        ctx.plan, ctx.count = plan, len(flat)
        ctx.save_for_backward(*flat, *kept)
        ctx.set_materialize_grads(False)
        return answers, *states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        saved: tuple[Tensor, ...] = ctx.saved_tensors  # once: checkpoints hand them out once
        plan: Plan = ctx.plan
        flat, kept = saved[: ctx.count], saved[ctx.count :]
        to_answers = None if grads[0] is None else grads[0].contiguous()
        G = len(plan.groups)
        made: list[Tensor | None] = [_room(t) for t in flat[: 3 + 2 * G]]
        made += [_room(t) if plan.crowded else None for t in flat[3 + 2 * G : 3 + 3 * G]]
        base = [_room(t).zero_() for t in flat[3 + 3 * G : -G]]
        adjoints = [
            _room(state).zero_() if a is None else a.clone(memory_format=torch.contiguous_format)
            for a, state in zip(grads[1:], flat[-G:], strict=True)
        ]
        given, numbers = _given(plan, flat)
        found = [*made, *_places(plan, base), *adjoints]
        KERNEL.run("titans_backward", numbers, [*given, *_places(plan, kept), to_answers, *found])
        return None, *made, *base, *adjoints


def _takes(plan: Plan, by_token: Sequence[Tensor], rest: Sequence[Tensor]) -> bool:
    """Whether ``NativeScan`` runs here; what does not fit together torch says.

    Args:
        plan: of the scan.
        by_token: queries, keys and values (N, K, n C).
        rest: what follows them.
    """
    return KERNEL.takes(*by_token, *rest) and _fits(plan, by_token, rest)


def _fits(plan: Plan, by_token: Sequence[Tensor], rest: Sequence[Tensor]) -> bool:
    """Whether all sizes are what the kernel trusts them to be."""
    first = rest[len(rest) - len(plan.groups) :]
    N, K, tokens = by_token[0].shape
    M, n = first[0].shape[2], tokens // plan.size
    if not N * n or tokens % plan.size or M not in (1, 2):
        return False
    widths = [K] + [first[g].shape[3] for g, _ in plan.places]
    ins = [first[g].shape[4] for g, _ in plan.places]
    if widths[:-1] != ins or widths[-1] != K:
        return False
    wanted = [by_token[0].shape] * 3
    for sizes in ((M, M), (plan.size, M), (plan.size,)):
        wanted += [torch.Size((n, N * len(group), *sizes)) for group in plan.groups]
    states = [(N, len(group), M, *e.shape[3:]) for group, e in zip(plan.groups, first, strict=True)]
    if plan.anchored:
        wanted += [torch.Size((*sizes[:2], *sizes[3:])) for sizes in states]
    wanted += [torch.Size(sizes) for sizes in states]
    return [t.shape for t in (*by_token, *rest)] == wanted


def _by_token(x: Tensor) -> Tensor:
    """(N, n C, K) with the features of a token next to each other, in place where they are."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _room(like: Tensor) -> Tensor:
    return like.new_empty(like.shape)


def _places(plan: Plan, tensors: Sequence[Tensor]) -> list[Tensor | None]:
    """One per group, or none."""
    return [*tensors] or [None] * len(plan.groups)


def _given(plan: Plan, flat: Sequence[Tensor]) -> tuple[list[Tensor | None], list[int]]:
    """What the kernel is given of a scan, with a place for every tensor, and its numbers."""
    G, first = len(plan.groups), flat[len(flat) - len(plan.groups) :]
    rows, parts = first[0].shape[0], first[0].shape[2]
    chunks = flat[0].shape[1] // plan.size
    numbers = [rows, chunks, plan.size, parts, plan.segment, G, int(plan.crowded), plan.hidden + 1]
    numbers += [stride for x in flat[:3] for stride in x.stride()[:2]]
    for g, j in plan.places:
        numbers += [g, j, *(first[g].shape[k] for k in (1, 3, 4))]
    starts = [x.as_strided((1,), (1,)) for x in flat[:3]]  # their strides are among the numbers
    return [*starts, *flat[3 : 3 + 3 * G], *_places(plan, flat[3 + 3 * G : -G]), *first], numbers
