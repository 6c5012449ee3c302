"""The scan over Titans memories as one C++ kernel, forward and backward. Floor 1.

``ops/native/titans.cpp`` runs all chunks of a row one after another while its memory stays in the
cache. It is given the tensors of ``nl.ops.titans_chunk`` as they are, and keeps for the backward
pass E where segments begin, as the torch form does when it recomputes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nl.core.native import Kernel
from nl.ops.titans_chunk import Plan

KERNEL = Kernel("titans")

_Given = tuple[list[Tensor | None], list[int]]
"""What the kernel is given of the scan, with a place for every tensor, and its numbers."""


def _forward(plan: Plan, flat: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Answers (n, N, C, K), E at the end and what is kept; ``flat`` as ``_Scan`` has it."""
    given, numbers = _given(plan, flat)
    first = flat[len(flat) - len(plan.groups) :]
    answers, states = _room(flat[1]), [_room(state) for state in first]
    starts = -(-len(flat[1]) // plan.segment) - 1
    kept = [state.new_empty(starts, *state.shape) for state in first] if starts else []
    places: list[Tensor | None] = [*kept] or [None] * len(first)
    KERNEL.run("titans_forward", numbers, [*given, answers, *states, *places])
    return answers, states, kept


def _backward(
    plan: Plan,
    flat: Sequence[Tensor],
    kept: Sequence[Tensor],
    to_answers: Tensor | None,
    to_states: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The adjoints of ``flat``, None where steps are not crowded and rates thus not used."""
    given, numbers = _given(plan, flat)
    G = len(plan.groups)
    if to_answers is not None:
        to_answers = to_answers.contiguous()
    made: list[Tensor | None] = [_room(t) for t in flat[: 2 + 2 * G]]
    made += [_room(t) if plan.crowded else None for t in flat[2 + 2 * G : 2 + 3 * G]]
    base: list[Tensor | None] = [_room(t).zero_() for t in flat[2 + 3 * G : -G]]
    adjoints = [
        _room(state).zero_() if a is None else a.clone(memory_format=torch.contiguous_format)
        for a, state in zip(to_states, flat[-G:], strict=True)
    ]
    none: list[Tensor | None] = [None] * G
    places = [*made, *(base or none), *adjoints]
    KERNEL.run("titans_backward", numbers, [*given, *(kept or none), to_answers, *places])
    return [*made, *base, *adjoints]


def _room(like: Tensor) -> Tensor:
    return like.new_empty(like.shape)


def _given(plan: Plan, flat: Sequence[Tensor]) -> _Given:
    G, first = len(plan.groups), flat[len(flat) - len(plan.groups) :]
    given: list[Tensor | None] = [t.contiguous() for t in flat]
    if not plan.anchored:
        given[-G:-G] = [None] * G
    rows, parts = first[0].shape[0], first[0].shape[2]
    numbers = [rows, len(flat[1]), plan.size, parts, plan.segment, G, int(plan.crowded)]
    numbers.append(plan.hidden + 1)
    for g, j in plan.places:
        numbers += [g, j, *(first[g].shape[k] for k in (1, 3, 4))]
    return given, numbers
