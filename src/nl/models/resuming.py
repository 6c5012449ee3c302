"""Where a call begins: inputs checked, rows reset, what waited for a label written. Floor 3."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nl.core.output import Knobs
from nl.models.block_signal import PendingTile, resume
from nl.models.documents import Starts, check_starts, first_rows
from nl.models.language_state import LanguageState, check_inputs, check_places, check_state
from nl.models.memories import check_writes
from nl.models.reading import label_newest
from nl.models.routes import check_experts


def begin_call(
    model: Any,
    inputs: Tensor,
    state: LanguageState | None,
    knobs: Knobs | None,
    write: bool,
    starts: Starts | None,
) -> LanguageState:
    """The State to read on from: the pending token, if any, has now got its label."""
    check_state(model, state)
    check_inputs(inputs, state)
    check_writes(model, knobs)
    check_experts(model, knobs)
    if model.places is not None:
        check_places(model.config.max_positions, inputs.shape[1], state, starts)
    if starts is not None:
        check_starts(starts, *inputs.shape)
    if state is None:
        fresh: LanguageState = model.init_state(len(inputs))
        return fresh
    begins = first_rows(starts)
    state = model.reset_rows(state, begins) if begins else state
    if state.pending is None:
        return state
    if isinstance(state.pending, PendingTile):
        return resume(model, state, inputs, knobs, write)
    if not write:
        return state._replace(pending=None)
    return label_newest(model, state, inputs, knobs)
