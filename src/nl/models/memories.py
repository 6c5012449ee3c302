"""Names of a model's memories, which of them may write, and what they have written. Floor 3.

A memory has a path (``selfmod``, ``gated_delta``, ``titan``, or ``level<i>`` of the continuum
memory, fastest first as configured) and a layer, the index of its block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from nl.config import require
from nl.core.output import Knobs
from nl.nn.context import ReadContext


def block_paths(block: Any) -> list[str]:
    """Paths of the memories of one block, in the order of reading."""
    own = [] if block.memory_path is None else [block.memory_path]
    levels = [] if block.levels is None else list(block.levels.levels)
    return [*own, *(f"level{i}" for i in range(len(levels)))]


def memory_paths(model: Any) -> list[str]:
    """Every path of a model, once."""
    return list(dict.fromkeys(path for block in model.blocks for path in block_paths(block)))


def check_writes(model: Any, knobs: Knobs | None) -> None:
    """Refuse paths and layers that the model does not have."""
    if knobs is None:
        return
    if knobs.paths is not None:
        known = memory_paths(model)
        for path in knobs.paths:
            require(
                path in known,
                f"paths: {path!r}; this model's memories are {', '.join(known) or 'none'}.",
            )
    depth = len(model.blocks)
    for layer in knobs.layers or ():
        require(0 <= layer < depth, f"layers: {layer}; this model's layers are 0 to {depth - 1}.")


def permitted(ctx: ReadContext, knobs: Knobs | None, layer: int, block: Any) -> ReadContext:
    """What the memory of a block that is driven by what it reads is told."""
    if knobs is None or block.memory_path is None or knobs.permits(block.memory_path, layer):
        return ctx
    return ctx._replace(write=False)


def open_levels(knobs: Knobs | None, layer: int, count: int) -> Sequence[int] | None:
    """Levels of one block that may write; None: all."""
    if knobs is None or (knobs.paths is None and knobs.layers is None):
        return None
    return [i for i in range(count) if knobs.permits(f"level{i}", layer)]


def resolve_layers(layers: Iterable[int], depth: int) -> tuple[int, ...]:
    """Indices of blocks; -1 is the last one.

    Raises:
        ConfigError: there is no such layer.
    """
    found = []
    for layer in layers:
        require(
            -depth <= layer < depth,
            f"layers: {layer}; this model's layers are 0 to {depth - 1}, or -{depth} to -1.",
        )
        found.append(layer % depth)
    return tuple(found)
