"""What memories did, as scalar tensors for the log. Floor 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nl.models.blocks import Block
from nl.models.language_state import LanguageState
from nl.nn.head_memory import HeadMemory


@torch.no_grad()
def memory_statistics(
    blocks: Sequence[Block], state: LanguageState, head: HeadMemory | None, weight: Tensor
) -> dict[str, Tensor]:
    """Relative size of what label-driven levels have written, mean over blocks and rows.

    Args:
        blocks: of the model.
        state: of them.
        head, weight: memory and weight (V, D) of the head.

    Returns:
        ``memory/level<i>``: |rate * fast| / |meta weights| of level i, for levels that have
        written since the State was fresh. ``memory/open_rate``: share of scored tokens that the
        surprise gate let write, where there is a gate. ``memory/head``: as levels, of the head, at
        the last place where the call formed its fast matrix.
    """
    sizes: dict[str, list[Tensor]] = {}
    for block, own in zip(blocks, state.blocks, strict=True):
        if block.levels is None:
            continue
        for i, (level, memory) in enumerate(zip(block.levels.levels, own.levels, strict=True)):
            if memory.fast_down is None:
                continue
            weights: Any = level
            w = weights.weights(memory)
            size = memory.fast_down.flatten(1).norm(dim=1).mean() * w.rate_down / w.down.norm()
            sizes.setdefault(f"memory/level{i}", []).append(size)
    found = {key: torch.stack(values).mean() for key, values in sizes.items()}
    if head is not None and state.head is not None and state.head.fast is not None:
        found["memory/head"] = head.added(weight, state.head)
    if state.gate is not None:
        found["memory/open_rate"] = state.gate.opened.sum() / state.gate.seen.sum().clamp(min=1)
    return found
