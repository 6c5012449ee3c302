"""Surprise gate: which tokens may write into label-driven levels. Floor 2.

The surprise of a token is the norm of its teach signal. A hard gate lets a token write if its
surprise reaches the threshold, a soft gate weighs it. The threshold is a constant, or a running
quantile of each row's own surprise: it is frozen inside a tile and moves at the tile's end by

    log threshold <- log threshold + step * (quantile - share of the tile below the threshold)

so that it does not matter how the text is cut. Nothing is read back to the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from nl.config import require
from nl.core.state import state_type


@dataclass(frozen=True, kw_only=True)
class SurpriseConfig:
    """Which tokens write."""

    gate: Literal["none", "hard", "soft"] = "none"
    """none: every token writes. hard: those at or above the threshold. soft: weighed around it."""
    threshold: float | None = None
    """Constant threshold on the norm of a token's signal."""
    quantile: float | None = None
    """Running threshold instead: this share of tokens stays below it."""
    step: float = 0.5
    """How fast the running threshold moves, per tile, in log units."""
    temperature: float = 0.25
    """Width of the soft gate relative to the threshold."""

    def __post_init__(self) -> None:
        require(
            self.gate != "none" or (self.threshold is None and self.quantile is None),
            f"threshold, quantile: {self.threshold}, {self.quantile}; with gate=none every token "
            "writes: set gate=hard (or soft), or leave them out.",
        )
        require(
            self.gate == "none" or (self.threshold is None) != (self.quantile is None),
            "gate: hard and soft need either threshold or quantile, not both.",
        )
        if self.threshold is not None:
            require(self.threshold >= 0, f"threshold: {self.threshold}; must be >= 0.")
        if self.quantile is not None:
            require(0 < self.quantile < 1, f"quantile: {self.quantile}; must be in (0, 1).")
        require(self.step > 0, f"step: {self.step}; must be > 0.")
        require(self.temperature > 0, f"temperature: {self.temperature}; must be > 0.")


@state_type
class SurpriseState(NamedTuple):
    """What the gate carries; (B,) each.

    Attributes:
        threshold: running threshold; infinite before the first tile has ended.
        below, total, scored: of the unfinished tile: scored tokens below the threshold, sum of
            their surprise, number of scored tokens.
        opened, seen: since the State was fresh: summed gate and scored tokens.
    """

    threshold: Tensor
    below: Tensor
    total: Tensor
    scored: Tensor
    opened: Tensor
    seen: Tensor


def fresh_surprise(batch: int, like: Tensor) -> SurpriseState:
    """Nothing seen yet; at least fp32, on the device of ``like``."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    zero = torch.zeros(batch, dtype=dtype, device=like.device)
    return SurpriseState(torch.full_like(zero, torch.inf), zero, zero, zero, zero, zero)


@torch.no_grad()
def surprise_gate(
    signal_BTD: Tensor, state: SurpriseState, config: SurpriseConfig, closes: bool
) -> tuple[Tensor, SurpriseState]:
    """Weigh the signal of tokens by their surprise: the gated signal and the new state.

    See ``surprise_weight``.
    """
    weight, state = surprise_weight(signal_BTD, state, config, closes)
    return signal_BTD * weight.to(signal_BTD.dtype), state


@torch.no_grad()
def surprise_weight(
    signal_BTD: Tensor, state: SurpriseState, config: SurpriseConfig, closes: bool
) -> tuple[Tensor, SurpriseState]:
    """How much tokens may write, by their surprise.

    Args:
        signal_BTD: (B, T, D) teach signal, zero where unscored.
        state: of the tokens before.
        config: the gate, not ``none``.
        closes: whether the last token ends a tile, where a running threshold moves.

    Returns:
        Weights (B, T, 1) and the new state. Before the first tile has ended a running threshold
        does not exist and every token writes.
    """
    surprise = signal_BTD.norm(dim=-1).to(state.seen.dtype)
    scored = surprise > 0
    threshold = state.threshold
    if config.threshold is not None:
        threshold = torch.full_like(threshold, config.threshold)
    known = torch.isfinite(threshold)[:, None]
    level = torch.where(known, threshold[:, None], 0.0)
    if config.gate == "hard":
        weight = (surprise >= level).to(surprise.dtype)
    else:
        width = (config.temperature * level).clamp(min=torch.finfo(surprise.dtype).tiny)
        weight = torch.where(known, torch.sigmoid((surprise - level) / width), 1.0)
    weight = weight * scored
    state = SurpriseState(
        state.threshold,
        state.below + (scored & (surprise < level)).sum(1),
        state.total + surprise.sum(1),
        state.scored + scored.sum(1),
        state.opened + weight.sum(1),
        state.seen + scored.sum(1),
    )
    if closes and config.quantile is not None:
        state = _move(state, config)
    return weight[..., None], state


def _move(state: SurpriseState, config: SurpriseConfig) -> SurpriseState:
    """The running threshold at the end of a tile; rows without a scored token keep theirs."""
    assert config.quantile is not None
    heard = state.scored > 0
    count = state.scored.clamp(min=1)
    moved = state.threshold * torch.exp(config.step * (config.quantile - state.below / count))
    first = torch.isinf(state.threshold)
    threshold = torch.where(first, state.total / count, moved)
    zero = torch.zeros_like(state.scored)
    kept = torch.where(heard, threshold, state.threshold)
    return state._replace(threshold=kept, below=zero, total=zero, scored=zero)
