"""``nl.ops.level_chain`` in machine code: the tensors that go there and come back. Floor 1.

Every function gives None where it must run as torch operations; ``nl.ops.level_native`` says when.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nl.core.native import sizes_of, ungraded
from nl.ops.level_native import FEW_TOKENS, KERNEL, Named, _fits, _numbers

_LINK = ("FD", "DF", "BFD", "BDF", "2")
_PLACES = len(_LINK)


def _sizes(chain: Any, given: Named) -> dict[str, int] | None:
    """Sizes of a call that runs here: B rows, T tokens, D wide, F hidden units."""
    if not _fits(chain.form) or not KERNEL.takes(*(t for _, t in given)):
        return None
    if torch.is_autocast_enabled("cpu"):  # which would choose a dtype
        return None
    sizes = sizes_of(given, {"2": 2})
    if sizes is None or "F" not in sizes or sizes.get("T", FEW_TOKENS) < FEW_TOKENS:
        return None
    return sizes


def _run(
    function: str, chain: Any, sizes: Any, tensors: Sequence[Tensor | None], **told: Any
) -> None:
    plain = [None if t is None else t.contiguous() for t in tensors]
    KERNEL.run(function, _numbers(sizes, chain.form.eps, scales=chain.scales, **told), plain)


def _rooms(like: Tensor, sizes: dict[str, int], letters: str) -> list[Tensor]:
    return [like.new_empty([sizes[c] for c in word]) for word in letters.split()]


class _Chain(torch.autograd.Function):
    """What the levels share, sizes and how fast weights are made again; x, five tensors per level.

    Gives the result and, without gradients, per level z and then inputs of all but the first.
    """

    @staticmethod
    def forward(
        ctx: Any, chain: Any, sizes: Any, again: Any, x: Tensor, *links: Any
    ) -> tuple[Tensor, ...]:
        count = len(again)
        made = [_rooms(x, sizes, "BTD BTF") for _ in range(count)]
        flat = [t for pair in made for t in pair]
        _run("chain", chain, sizes, [x, *links, *flat], levels=count)
        results, zs = [pair[0] for pair in made], [pair[1] for pair in made]
        kept: list[Any] = []
        for k, one in enumerate(again):
            own = links[_PLACES * k : _PLACES * (k + 1)]
            if one is not None:
                own = (*own[:2], None, None, own[4], *one.tensors)
            kept += own
        ctx.chain, ctx.sizes = chain, sizes
        ctx.again = [None if one is None else (one.make, len(one.tensors)) for one in again]
        ctx.save_for_backward(x, *results[:-1], *zs, *kept)
        ctx.mark_non_differentiable(*results[:-1], *zs)
        ctx.set_materialize_grads(False)
        return results[-1], *zs, *results[:-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
        count = len(ctx.again)
        if grad is None:
            return (None,) * (4 + _PLACES * count)
        saved: tuple[Tensor, ...] = ctx.saved_tensors  # once: checkpoints hand them out once
        tokens, links, at = saved[: 2 * count], list[Any](), 2 * count
        for one in ctx.again:
            own: list[Any] = list(saved[at : at + _PLACES])
            at += _PLACES
            if one is not None:
                make, size = one
                own[2:4] = make(saved[at : at + size])
                at += size
            links += own
        (by_x,) = _rooms(grad, ctx.sizes, "BTD")
        made = [_rooms(grad, ctx.sizes, "BFD BDF B2") for _ in range(count)]
        flat = [t for three in made for t in three]
        _run("chain_back", ctx.chain, ctx.sizes, [*links, *tokens, grad, by_x, *flat], levels=count)
        found = [by_x]
        for k, by in enumerate(made):
            wanted = ctx.needs_input_grad[4 + _PLACES * k + 2 : 4 + _PLACES * k + 4]
            found += _of_link(ctx.chain.scales, links[_PLACES * k : _PLACES * (k + 1)], by, wanted)
        return None, None, None, *found


def _of_link(scales: Any, link: Sequence[Any], by: Sequence[Tensor], wanted: Any) -> list[Any]:
    """Gradients of a level's five tensors from those of its weights in force, row by row."""
    metas = [t[0] if len(t) == 1 else t.sum(0) for t in by]
    if link[2] is None:
        return [*metas[:2], None, None, None]
    rates = link[4].exp().unbind()
    parts = zip(wanted, rates, scales, by[:2], strict=True)
    return [*metas[:2], *(-(r * s) * grad if on else None for on, r, s, grad in parts), metas[2]]


def _chain_native(
    chain: Any, links: Sequence[Any], again: Any, x: Tensor
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]] | None:
    given: Named = [("BTD", x)]
    for link in links:
        given += zip(_LINK, link, strict=True)
    sizes = _sizes(chain, given)
    if sizes is None:
        return None
    out, *made = _Chain.apply(chain, sizes, tuple(again), x, *(t for link in links for t in link))
    inputs = [x.detach(), *made[len(links) :]]
    return out, list(zip(inputs, made[: len(links)], strict=True))


def _signals_native(
    chain: Any, signal: Tensor, parts: Sequence[Any]
) -> list[tuple[Tensor, Tensor, Any]] | None:
    given: Named = [("BTD", signal)]
    for link, x, z, _, sums in parts:
        given += zip((*_LINK, "BTD", "BTF"), (*link, x, z), strict=True)
        given += zip(("BFD", "BDF"), sums or (None, None), strict=True)
    if not ungraded(*(t for _, t in given)):
        return None
    sizes = _sizes(chain, given)
    if sizes is None:
        return None
    found, made = list[tuple[Tensor, Tensor, Any]](), list[Tensor | None]()
    told: Tensor | None = signal
    for k, part in enumerate(parts):
        assert told is not None
        (hidden,) = _rooms(signal, sizes, "BTF")
        both = tuple(_rooms(signal, sizes, "BFD BDF")) if part[3] else None
        found.append((told, hidden, both))
        told = _rooms(signal, sizes, "BTD")[0] if k < len(parts) - 1 else None
        made += [hidden, *(both or (None, None)), told]
    _run("chain_signals", chain, sizes, [*(t for _, t in given), *made], levels=len(parts))
    return found


def _moves_native(
    chain: Any, sums: Sequence[Tensor], link: Any, lost: float, clip: float
) -> list[Tensor] | None:
    tensors = (*sums, link[0], link[1], link[4])
    given: Named = list(zip(("BFD", "BDF", "FD", "DF", "2"), tensors, strict=True))
    if not ungraded(*tensors):
        return None
    sizes = _sizes(chain, given)
    if sizes is None:
        return None
    made = _rooms(sums[0], {**sizes, "1": 1}, "B11 B11 B11")
    _run("moves", chain, {**sizes, "T": 0}, [*tensors, *made], lost=lost, clip=clip)
    return made
