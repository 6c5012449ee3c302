"""Handing a signal to the levels of every block. Floor 3."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nl.core.output import Knobs
from nl.models.language_state import LanguageState
from nl.models.memories import open_levels
from nl.nn.surprise import surprise_weight


def absorb(
    model: Any,
    state: LanguageState,
    traces: tuple[Any, ...],
    signal: Tensor,
    start: int,
    knobs: Knobs | None,
    needed: int | None = None,
    own: tuple[Tensor, ...] | None = None,
) -> LanguageState:
    """Hand the signal of read tokens ``start ..`` to the levels of every block.

    ``own``: a signal for every block instead; ``signal`` then decides the surprise only.
    """
    weight: Tensor | float = 1.0
    if state.gate is not None:  # by the signal as it is: a smaller scale surprises no less
        closes = (start + signal.shape[1]) % min(model.config.cms.periods) == 0
        heard, gate = surprise_weight(signal, state.gate, model.config.cms.surprise, closes)
        weight, signal = heard, signal * heard.to(signal.dtype)
        state = state._replace(gate=gate)
    if knobs is not None and knobs.write_scale != 1.0:
        weight, signal = weight * knobs.write_scale, signal * knobs.write_scale
    blocks = list(state.blocks)
    for i, (module, trace) in enumerate(zip(model.blocks, traces, strict=True)):
        block: Any = module
        if block.levels is not None:
            only = open_levels(knobs, i, len(trace))
            taught = signal if own is None else own[i] * weight
            levels = block.levels.absorb(
                blocks[i].levels, trace, taught, start=start, needed=needed, only=only
            )
            blocks[i] = blocks[i]._replace(levels=levels)
    return state._replace(blocks=tuple(blocks))
