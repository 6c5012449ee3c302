"""Continuum memory system: a chain of MLP levels, each written once per period. Floor 2.

Nested Learning, Eq. 70-71: y = MLP_k(... MLP_1(x)); level l keeps its weights for ``period``
tokens and then takes one step along the summed per-token signal. The fast weights are per row of
the batch, decay with every write, and their size is bounded by ``clip / (1 - retention)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nl.config import require
from nl.core.state import state_type
from nl.nn.init import init_linear
from nl.ops.level import (
    LevelWeights,
    level_gradients,
    level_hidden_signal,
    level_pull_back,
    level_read,
)

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


@state_type
class LevelState(NamedTuple):
    """Memory of one level. A field is None while it would be zero.

    Attributes:
        fast_up (B, F, D), fast_down (B, D, F): decayed sums of past writes.
        sum_up, sum_down: gradients of the unfinished period, same shapes.
    """

    fast_up: Tensor | None = None
    fast_down: Tensor | None = None
    sum_up: Tensor | None = None
    sum_down: Tensor | None = None


@state_type
class LevelTrace(NamedTuple):
    """What a write needs of a read: input (B, T, D) and pre-activation (B, T, F), detached."""

    x: Tensor
    z: Tensor


class Level(nn.Module):
    """One MLP of the chain with its inner learning rates."""

    def __init__(self, dim: int, hidden: int, rate: float, residual_scale: float) -> None:
        super().__init__()
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)
        init_linear(self.up)
        init_linear(self.down, scale=residual_scale)
        self.log_rate = nn.Parameter(torch.full((2,), rate).log())
        # A write moves what the same input reads by rate * signal: divide by the input's norm^2.
        self.scale_up, self.scale_down = 1.0 / dim, 1.0 / hidden

    def weights(self, state: LevelState) -> LevelWeights:
        """The weights in force for each row."""
        rate_up, rate_down = self.log_rate.exp().unbind()
        return LevelWeights(
            self.up.weight,
            self.down.weight,
            state.fast_up,
            state.fast_down,
            rate_up * self.scale_up,
            rate_down * self.scale_down,
        )


class ContinuumMemory(nn.Module):
    """The chain. ``forward`` reads; ``absorb`` takes the signal of read tokens and writes."""

    def __init__(self, config: CMSConfig, dim: int, residual_scale: float) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden or dim
        scale = residual_scale * len(config.periods) ** -0.5
        self.levels = nn.ModuleList(Level(dim, hidden, config.rate, scale) for _ in config.periods)

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
            x, z = (t.to(signal.dtype) for t in trace[i])
            hidden_signal = level_hidden_signal(z, signal, weights)
            if wanted[i]:
                grads = level_gradients(x, z, signal, hidden_signal)
                closes = end % self.config.periods[i] == 0
                new[i] = self._accumulate(level, state[i], grads, closes)
            signal = level_pull_back(x, signal, hidden_signal, weights)
        return tuple(new)

    def _accumulate(
        self, level: Level, memory: LevelState, grads: tuple[Tensor, Tensor], closes: bool
    ) -> LevelState:
        sums = [
            g if s is None else s + g
            for s, g in zip((memory.sum_up, memory.sum_down), grads, strict=True)
        ]
        if not closes:
            return LevelState(memory.fast_up, memory.fast_down, *sums)
        rates = level.weights(memory)
        active = (sums[0].abs().amax((1, 2)) + sums[1].abs().amax((1, 2)) > 0)[:, None, None]
        fast_up = self._write(memory.fast_up, sums[0], level.up.weight, rates.rate_up, active)
        fast_down = self._write(
            memory.fast_down, sums[1], level.down.weight, rates.rate_down, active
        )
        return LevelState(fast_up, fast_down)

    def _write(
        self, fast: Tensor | None, grad: Tensor, meta: Tensor, rate: Tensor, active: Tensor
    ) -> Tensor:
        """fast <- retention * fast + clip(grad); rows without any signal stay as they are."""
        if self.config.clip:
            norm = grad.flatten(1).norm(dim=1) * rate
            limit = self.config.clip * meta.norm()
            grad = (
                grad
                * (limit / norm.clamp(min=torch.finfo(norm.dtype).tiny)).clamp(max=1.0)[
                    :, None, None
                ]
            )
        if fast is None:
            return grad
        return torch.where(active, self.config.retention * fast + grad, fast)


def write_count(period: int, start: int, end: int) -> int:
    """Writes of a level with ``period`` while tokens ``start .. end - 1`` are absorbed."""
    return end // period - start // period
