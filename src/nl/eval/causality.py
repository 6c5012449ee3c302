"""Does a model look ahead? A late token is changed; what was said before must stay. Floor 6."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nl.config import ConfigError
from nl.eval.context import evaluating

CLOSE = 1e-3
"""Largest change of a logit that rounding may make, in float32, times the largest logit."""


def look_ahead(model: nn.Module, inputs: Tensor, *, write: bool = True) -> tuple[int, float]:
    """Where the model says something else after a later token was changed.

    Two places are tried: the last token, and the one at three quarters of the row; each gets the id
    of another row or the next one, so that only ids that occur are read.

    Args:
        model: a language model.
        inputs: (B, T) ids, T of 2 or more.
        write: whether memories are written.

    Returns:
        The changed place whose earlier logits moved most, and by how much, as a share of the
        largest logit there.
    """
    anything: Any = model
    length = inputs.shape[1]
    known = torch.unique(inputs)
    worst = (length - 1, 0.0)
    with evaluating(model):
        before = anything(inputs, None, targets=None, write=write).pred
        for place in sorted({length - 1, max(1, length * 3 // 4)}):
            changed = inputs.clone()
            at = torch.searchsorted(known, changed[:, place].contiguous())
            changed[:, place] = known[(at + 1) % len(known)]
            after = anything(changed, None, targets=None, write=write).pred
            gap = (after[:, :place] - before[:, :place]).abs().max()
            share = float(gap / before[:, :place].abs().max().clamp(min=1.0))
            if not share <= worst[1]:
                worst = (place, share)
    return worst


def require_causal(model: nn.Module, inputs: Tensor) -> None:
    """Refuse a model whose logits move when a later token does: its losses would mean nothing.

    Raises:
        ConfigError: saying where and by how much.
    """
    place, share = look_ahead(model, inputs)
    if not share <= CLOSE:
        raise ConfigError(
            f"model: not causal; with another token at {place} its logits before {place} move by "
            f"{share:.2g} of their size (allowed: {CLOSE:g}). Its losses are those of a model that "
            "sees what it predicts: mend its attention, convolution or state before measuring it."
        )
