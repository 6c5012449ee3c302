"""Titans memories over many chunks in one autograd node, backward written by hand. Floor 1.

What ``nl.ops.titans`` does chunk by chunk: read the queries of a chunk at the memory of its start,
then write its keys and values. All that does not wait for a memory (products of gates, the steps of
the first layer) is computed for all chunks at once; the rest is a loop with few operations. Per
layer, D and S of a memory are one tensor E (N, M, out, in), M = 2 with momentum and 1 without, so
that a chunk's write is

    E <- G E - step X^T      G = [[b_C, f_C], [0, m_C]]      step = (theta r, theta m_C / m) delta

in the notation of ``nl.ops.titans``. The backward pass keeps the inputs and the memories at the
start of each segment of chunks and runs a segment forward once more, or keeps everything. On the
CPU a kernel (``nl.ops.titans_native``) does the same, and never keeps more than inputs and starts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nl.ops.titans import (
    TitansMemory,
    TitansTokens,
    chunk_scales,
    titans_read,
    titans_write_reference,
)
from nl.ops.titans_chunk import ChunkPass, Plan, Tape
from nl.ops.titans_native import NativeScan, _takes
from nl.ops.titans_programs import ChunkSpec, ProgramScan

SEGMENT = 64
"""Tokens of a segment, at least one chunk: run forward again together, or kept together."""


class ScanRule(NamedTuple):
    """How the memories of a scan are written.

    Attributes:
        chunk: tokens C per chunk.
        normalised: which step; see ``nl.ops.titans``.
        recompute: run segments forward again in the backward pass instead of keeping everything.
    """

    chunk: int
    normalised: bool
    recompute: bool = True


class _Scan(torch.autograd.Function):
    """A plan, then the tensors of ``ChunkPass`` and E, one after another -> answers and E."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, *flat: Tensor) -> tuple[Tensor, ...]:
        chunks, first = _opened(plan, flat)
        run = _again if plan.recompute else _kept
        answers, states, kept = run(plan, chunks, first)
        ctx.plan, ctx.count = plan, len(flat)
        ctx.save_for_backward(*flat, *kept)
        ctx.set_materialize_grads(False)
        return torch.stack(answers), *states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        saved: tuple[Tensor, ...] = ctx.saved_tensors  # once: checkpoints hand them out once
        with torch.autocast(saved[0].device.type, enabled=False):
            return _Scan._adjoints(ctx, saved, *grads)

    @staticmethod
    def _adjoints(
        ctx: Any,
        saved: tuple[Tensor, ...],
        to_answers: Tensor | None,
        *to_states: Tensor | None,
    ) -> Any:
        plan: Plan = ctx.plan
        flat, kept = saved[: ctx.count], saved[ctx.count :]
        chunks, first = _opened(plan, flat)
        if to_answers is None:
            to_answers = torch.zeros_like(flat[1])
        to_outs = torch.cat([to_answers, torch.empty_like(to_answers)], 2).unbind(0)
        adjoints = [
            torch.zeros_like(state) if a is None else a.contiguous()
            for a, state in zip(to_states, first, strict=True)
        ]
        rooms = [[torch.empty_like(state) for state in first] for _ in range(2)]
        base = [torch.zeros_like(w) for w in chunks.base]
        made = []
        for at, tape, k in _tapes(plan, chunks, first, kept):
            given = (adjoints, rooms[at % 2])
            one, to_weights = chunks.pull_back(at, tape, k, to_outs[at], given)
            adjoints = one.states
            for (g, j), more in zip(chunks.places, to_weights, strict=True):
                adjoints[g][:, j, 0].add_(more)
                if base:
                    base[g][:, j].add_(more)
            made.append(one)
        made.reverse()
        pairs = torch.stack([one.pair for one in made])
        values = torch.stack([one.value for one in made])
        rest: list[Tensor | None] = []
        for parts in ([one.mixes for one in made], [one.lifts for one in made]):
            rest += [torch.stack(part) for part in zip(*parts, strict=True)]
        if plan.crowded:
            rest += [torch.stack(part) for part in zip(*(one.rates for one in made), strict=True)]
        rest += [None] * (0 if plan.crowded else len(first))
        return None, pairs, values, *rest, *base, *adjoints


def _opened(plan: Plan, flat: Sequence[Tensor]) -> tuple[ChunkPass, list[Tensor]]:
    """The passes over single chunks and E before the first, from the flat list of tensors."""
    G = len(plan.groups)
    sizes = [G, G, G, G if plan.anchored else 0, G]
    ends = list(itertools.accumulate(sizes, initial=2))
    parts = [list(flat[a:b]) for a, b in itertools.pairwise(ends)]
    return ChunkPass(plan, flat[0], flat[1], *parts[:4]), parts[4]


_Run = tuple[list[Tensor], list[Tensor], list[Tensor]]
"""Answers chunk by chunk, E at the end, and what is kept."""


def _again(plan: Plan, chunks: ChunkPass, first: Sequence[Tensor]) -> _Run:
    """Forward on a ring of two chunks; kept: E where segments begin, but for the first."""
    tape, answers, kept = Tape.empty(plan, first, 2, ring=True), [], list[Tensor]()
    count = len(chunks.values)
    for at in range(count):
        if at and at % plan.segment == 0:
            kept += [state[at % 2].clone() for state in tape.states]
        answers.append(chunks.forward(at, tape, at % 2, taped=False))
    return answers, [state[count % 2].clone() for state in tape.states], kept


def _kept(plan: Plan, chunks: ChunkPass, first: Sequence[Tensor]) -> _Run:
    """Forward with a tape per segment; kept: all of them."""
    states, answers, kept = list(first), [], list[Tensor]()
    for start, size in _segments(plan, len(chunks.values)):
        tape = Tape.empty(plan, states, size)
        answers += [chunks.forward(start + k, tape, k) for k in range(size)]
        states = [state[-1] for state in tape.states]
        kept += tape.tensors()
    return answers, [state.clone() for state in states], kept


def _segments(plan: Plan, count: int) -> list[tuple[int, int]]:
    """First chunk and number of chunks of each segment."""
    return [(a, min(plan.segment, count - a)) for a in range(0, count, plan.segment)]


def _tapes(
    plan: Plan, chunks: ChunkPass, first: Sequence[Tensor], kept: Sequence[Tensor]
) -> Iterator[tuple[int, Tape, int]]:
    """(chunk, its tape, its place there) from the last to the first, run again where not kept."""
    segments = _segments(plan, len(chunks.values))
    again = Tape.empty(plan, first, segments[0][1]) if plan.recompute else None
    each = len(first) if plan.recompute else len(kept) // len(segments)
    for which, (start, size) in reversed(list(enumerate(segments))):
        if again is None:
            tape = Tape(plan, kept[which * each : (which + 1) * each])
        else:
            tape = again
            tape.start(kept[(which - 1) * each : which * each] if which else first)
            for k in range(size):
                chunks.forward(start + k, tape, k)
        for k in range(size - 1, -1, -1):
            yield start + k, tape, k


class ScanMemory(NamedTuple):
    """The memories of a scan before its first chunk, or after its last.

    Attributes:
        base: L times (N, out, in), what D is added to; empty if D is all there is.
        added: L times (N, out, in), D.
        surprise: the same, S; empty without momentum.
    """

    base: tuple[Tensor, ...]
    added: tuple[Tensor, ...]
    surprise: tuple[Tensor, ...]


def titans_scan(
    memory: ScanMemory,
    queries: Tensor,
    tokens: TitansTokens,
    hidden_share: Tensor | None,
    rule: ScanRule,
) -> tuple[Tensor, ScanMemory]:
    """Read and write whole chunks, one after another.

    Args:
        memory: before the first chunk.
        queries: (N, K, n C), read at the memory of their chunk's start.
        tokens: n C of them.
        hidden_share: (N, 1), the rate of all layers but the last as a share of ``tokens.rate``;
            None for a memory of one layer.
        rule: chunk size C and step.

    Returns:
        Answers (N, K, n C) and the memory after the last chunk.
    """
    C, n = rule.chunk, queries.shape[-1] // rule.chunk
    shapes: dict[torch.Size, list[int]] = {}
    for i, more in enumerate(memory.added):
        shapes.setdefault(more.shape, []).append(i)
    graded = torch.is_grad_enabled()
    plan = Plan(
        size=C,
        groups=tuple(tuple(group) for group in shapes.values()),
        crowded=rule.normalised,
        anchored=bool(memory.base),
        segment=max(1, SEGMENT // C) if graded else n,
        recompute=rule.recompute or not graded,
    )
    sides = [memory.added, memory.surprise] if memory.surprise else [memory.added]
    rest = [
        *_steps(plan, tokens, hidden_share),
        *(_gathered(plan, memory.base, 1) if memory.base else ()),
        *_gathered(plan, [torch.stack(pair, 1) for pair in zip(*sides, strict=True)], 1),
    ]
    by_token = (queries, tokens.keys, tokens.values)
    if _takes(plan, by_token, rest):
        answers, *ends = NativeScan.apply(plan, *(x.mT for x in by_token), *rest)
        read = answers.mT
    else:
        pairs = torch.cat([_cut(queries, C), _cut(tokens.keys, C)], 2)
        answers, *ends = _Scan.apply(plan, pairs, _cut(tokens.values, C).contiguous(), *rest)
        read = answers.movedim((0, 2), (-2, -1)).flatten(-2)
    moved = [tuple(ends[g][:, j, m] for g, j in plan.places) for m in range(len(sides))]
    return read, ScanMemory(memory.base, moved[0], moved[1] if memory.surprise else ())


def _cut(x: Tensor, size: int) -> Tensor:
    """(N, ..., n C) -> (n, N, C, ...)."""
    return x.unflatten(-1, (-1, size)).movedim((-2, -1), (0, 2))


def _gathered(plan: Plan, parts: Sequence[Tensor], dim: int) -> list[Tensor]:
    """Tensors per layer as tensors per group, with the layers as a new dimension."""
    return [torch.stack([parts[i] for i in group], dim) for group in plan.groups]


def _steps(plan: Plan, tokens: TitansTokens, hidden_share: Tensor | None) -> list[Tensor]:
    """Mixes, lifts and rates of ``ChunkPass``."""
    hidden, rate = plan.hidden, _cut(tokens.rate, plan.size)
    inertia = None if tokens.log_inertia is None else _cut(tokens.log_inertia, plan.size)
    mix, scale = _scales(_cut(tokens.log_kept, plan.size), inertia)
    rates = [rate if hidden_share is None else rate * hidden_share] * hidden + [rate]
    free = 1.0 if inertia is None or not plan.crowded else -torch.expm1(inertia)
    lifts = [-(theta * free).unsqueeze(-1) * scale for theta in rates]
    made = [_gathered(plan, parts, 2) for parts in ([mix] * (hidden + 1), lifts, rates)]
    return [part.flatten(1, 2) for parts in made for part in parts]


def _scales(log_kept: Tensor, log_inertia: Tensor | None) -> tuple[Tensor, Tensor]:
    """G (n, N, M, M) and the scales (n, N, C, M) of each token's step, from gates (n, N, C)."""
    scales = chunk_scales(log_kept, log_inertia)
    kept, write = scales.kept, scales.write
    if scales.push is None or scales.carried is None or scales.inertia is None:
        return kept[..., None, None], write.unsqueeze(-1)
    none = torch.zeros_like(kept)
    rows = [torch.stack([kept, scales.carried], -1), torch.stack([none, scales.inertia], -1)]
    return torch.stack(rows, -2), torch.stack([write, scales.push], -1)


def titans_scan_programs(
    memory: ScanMemory,
    queries: Tensor,
    tokens: TitansTokens,
    hidden_share: Tensor | None,
    rule: ScanRule,
) -> tuple[Tensor, ScanMemory]:
    """``titans_scan`` by programs of one chunk, compiled where ``train.compile`` is on."""
    spec = ChunkSpec(
        size=rule.chunk,
        depth=len(memory.added),
        momentum=tokens.log_inertia is not None,
        shared=hidden_share is not None,
        anchored=bool(memory.base),
        normalised=rule.normalised,
    )
    by_token = [queries, *(t for t in tokens if t is not None)]
    common = [*([] if hidden_share is None else [hidden_share]), *memory.base]
    every = max(1, SEGMENT // rule.chunk) if rule.recompute else 1
    if not torch.is_grad_enabled():
        every = queries.shape[-1]  # nothing is kept
    answers, *state = ProgramScan.apply(
        spec,
        every,
        *(t.unflatten(-1, (-1, rule.chunk)).movedim(-2, 0).contiguous() for t in by_token),
        *(t.contiguous() for t in (*common, *memory.added, *memory.surprise)),
    )
    read = answers.movedim(0, -2).flatten(-2)
    added, surprise = tuple(state[: spec.depth]), tuple(state[spec.depth :])
    return read, ScanMemory(memory.base, added, surprise)


def titans_scan_reference(
    memory: ScanMemory,
    queries: Tensor,
    tokens: TitansTokens,
    hidden_share: Tensor | None,
    rule: ScanRule,
) -> tuple[Tensor, ScanMemory]:
    """The chunks one by one, each read and then written token by token."""
    answers = []
    for start in range(0, queries.shape[-1], rule.chunk):
        part = slice(start, start + rule.chunk)
        base = memory.base or tuple(torch.zeros_like(d) for d in memory.added)
        weights = tuple(w + d for w, d in zip(base, memory.added, strict=True))
        answers.append(titans_read(weights, queries[..., part]))
        chunk = TitansTokens(*(None if t is None else t[..., part] for t in tokens))  # type: ignore[arg-type]
        before = TitansMemory(weights, memory.added, memory.surprise)
        moved = titans_write_reference(before, chunk, hidden_share, rule.normalised)
        memory = ScanMemory(memory.base, *moved)
    return torch.cat(answers, -1), memory
