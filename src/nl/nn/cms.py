"""Continuum memory system: a chain of MLP levels, each written once per period. Floor 2.

Nested Learning, Eq. 70-71: y = MLP_k(... MLP_1(x)); level l keeps its weights for ``period``
tokens and then takes one step along the summed per-token signal. The fast weights are per row of
the batch, decay with every write, and their size is bounded by ``clip / (1 - retention)``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nl.config import require
from nl.config.groups import InnerConfig
from nl.nn.inner import SGD
from nl.nn.level import Level, LevelState, LevelTokens, LevelTrace, WriteRule
from nl.nn.surprise import SurpriseConfig
from nl.ops.level import level_pull_back, level_read

SMALLEST_PERIOD = 16


@dataclass(frozen=True, kw_only=True)
class CMSConfig:
    """Levels in the order of the chain: the first is closest to the sequence mixer."""

    periods: tuple[int, ...] = (64, 256, 1024, 4096)
    """Tokens between writes of each level; every one a multiple of the smallest."""
    hidden: int | None = None
    """Hidden width of every level; None: model.dim, so that four levels weigh as much as an MLP."""
    rate: float = 1.0
    """Initial inner learning rate of every level, relative to the size of its input (learned)."""
    retention: float = 0.9
    """Share of the fast weights that a write keeps; 1 never forgets."""
    clip: float = 0.1
    """Largest norm of one write relative to the norm of the meta weights; 0 switches it off."""
    inner: InnerConfig = field(default_factory=SGD)
    """Inner optimizer of every level: sgd, momentum, delta, adam or muon."""
    surprise: SurpriseConfig = field(default_factory=SurpriseConfig)
    """Which tokens may write."""
    allow_short_periods: bool = False
    """Allow periods below 16, which run an order of magnitude slower."""

    def __post_init__(self) -> None:
        require(len(self.periods) > 0, "periods: []; name at least one period.")
        smallest = min(self.periods)
        require(smallest >= 1, f"periods: {list(self.periods)}; every period must be >= 1.")
        require(
            all(p % smallest == 0 for p in self.periods),
            f"periods: {list(self.periods)}; every period must be a multiple of the smallest, "
            f"{smallest}.",
        )
        require(
            smallest >= SMALLEST_PERIOD or self.allow_short_periods,
            f"periods: {smallest} is below {SMALLEST_PERIOD}; set "
            "model.cms.allow_short_periods=true if you mean it.",
        )
        require(self.hidden is None or self.hidden >= 1, f"hidden: {self.hidden}; must be >= 1.")
        require(self.rate > 0, f"rate: {self.rate}; must be > 0.")
        require(0 < self.retention <= 1, f"retention: {self.retention}; must be in (0, 1].")
        require(self.clip >= 0, f"clip: {self.clip}; must be >= 0.")


class ContinuumMemory(nn.Module):
    """The chain. ``forward`` reads; ``absorb`` takes the signal of read tokens and writes."""

    memory_parameters = True

    def __init__(self, config: CMSConfig, dim: int, residual_scale: float) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden or dim
        scale = residual_scale * len(config.periods) ** -0.5
        write = WriteRule(config.inner, config.retention, config.clip)
        self.levels = nn.ModuleList(
            Level(dim, hidden, config.rate, scale, write) for _ in config.periods
        )

    def init_state(self) -> tuple[LevelState, ...]:
        """Nothing written yet (the same for any batch size)."""
        return tuple(LevelState() for _ in self.config.periods)

    def forward(
        self, x_BTD: Tensor, state: tuple[LevelState, ...]
    ) -> tuple[Tensor, tuple[LevelTrace, ...]]:
        """Read the chain (residual inside) with the weights in force.

        Returns:
            (B, T, D) and one trace per level for ``absorb``.
        """
        traces = []
        for level, memory in zip(self.levels, state, strict=True):
            y, z = level_read(x_BTD, level.weights(memory))  # type: ignore[operator]
            traces.append(LevelTrace(x_BTD.detach(), z.detach()))
            x_BTD = y
        return x_BTD, tuple(traces)

    @torch.no_grad()
    def absorb(
        self,
        state: tuple[LevelState, ...],
        trace: tuple[LevelTrace, ...],
        signal_BTD: Tensor,
        *,
        start: int,
        needed: int | None = None,
    ) -> tuple[LevelState, ...]:
        """Account for read tokens ``start .. start + T - 1`` whose signal is now known.

        Args:
            signal_BTD: (B, T, D) dL/d(output of the chain) per token, zero where unscored.
            start: position of the first of them; the T tokens must not cross a multiple of the
                smallest period except at their end.
            needed: leave out levels whose next write falls after this position (their State is
                dropped by the caller); None: all are needed.

        Returns:
            The new state: levels whose period ends here are written.
        """
        with torch.autocast(signal_BTD.device.type, enabled=False):
            return self._absorb(state, trace, signal_BTD, start, needed)

    def _absorb(
        self,
        state: tuple[LevelState, ...],
        trace: tuple[LevelTrace, ...],
        signal_BTD: Tensor,
        start: int,
        needed: int | None,
    ) -> tuple[LevelState, ...]:
        end = start + signal_BTD.shape[1]
        first: Any = self.levels[0]
        signal = signal_BTD.to(torch.promote_types(first.up.weight.dtype, torch.float32))
        wanted = [
            needed is None or -(-end // period) * period <= needed for period in self.config.periods
        ]
        new = list(state)
        for i in reversed(range(len(new))):
            if not any(wanted[: i + 1]):
                break
            level: Any = self.levels[i]
            weights = level.weights(state[i]).to(signal.dtype)
            tokens = LevelTokens.of(trace[i], signal, weights)
            if wanted[i]:
                closes = end % self.config.periods[i] == 0
                new[i] = level.absorb(state[i], tokens, weights, closes)
            signal = level_pull_back(tokens.x, signal, tokens.hidden_signal, weights)
        return tuple(new)
