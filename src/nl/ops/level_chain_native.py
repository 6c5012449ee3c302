"""``nl.ops.level_chain`` in machine code: the tensors that go there and come back. Floor 1.

Every function gives None where it must run as torch operations; ``nl.ops.level_native`` says when.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nl.core.native import sizes_of, ungraded
from nl.ops.level_native import FEW_TOKENS, KERNEL, Named, _fits, _numbers

_LINK = ("FD", "DF", "BFD", "BDF", "2")


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


def _read_native(
    chain: Any, links: Sequence[Any], x: Tensor
) -> tuple[list[Tensor], list[Tensor]] | None:
    """What every level makes of what it reads, residual included, and its z."""
    given: Named = [("BTD", x)]
    for link in links:
        given += zip(_LINK, link, strict=True)
    sizes = _sizes(chain, given)
    if sizes is None:
        return None
    made = [_rooms(x, sizes, "BTD BTF") for _ in links]
    rooms = [t for pair in made for t in pair]
    _run("chain", chain, sizes, [*(t for _, t in given), *rooms], levels=len(links))
    return [pair[0] for pair in made], [pair[1] for pair in made]


def _back_native(
    chain: Any, links: Sequence[Any], inputs: Sequence[Tensor], zs: Sequence[Tensor], grad: Tensor
) -> tuple[Tensor, list[list[Tensor]]] | None:
    """Gradients of x, and per level, row by row, of the weights in force and the log rates."""
    given: Named = []
    for link in links:
        given += zip(_LINK, link, strict=True)
    given += [*(("BTD", x) for x in inputs), *(("BTF", z) for z in zs), ("BTD", grad)]
    sizes = _sizes(chain, given)
    if sizes is None:
        return None
    (by_x,) = _rooms(grad, sizes, "BTD")
    made = [_rooms(grad, sizes, "BFD BDF B2") for _ in links]
    rooms = [by_x, *(t for three in made for t in three)]
    _run("chain_back", chain, sizes, [*(t for _, t in given), *rooms], levels=len(links))
    return by_x, made


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
