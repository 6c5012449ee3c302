"""Learning-rate schedules: pure functions from step to a factor of the peak. Floor 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nl.config import register, require
from nl.config.groups import ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class WarmupConfig(ScheduleConfig):
    """What all schedules share: a linear warm-up from 1/warmup to 1."""

    warmup: int = 0
    """Steps of linear warm-up."""

    def __post_init__(self) -> None:
        require(self.warmup >= 0, f"warmup: {self.warmup}; must be >= 0.")

    def factor(self, step: int, total_steps: int) -> float:
        """Factor of the peak learning rate for 0-based ``step`` of ``total_steps``."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return self.after(step - self.warmup, max(1, total_steps - self.warmup))

    def after(self, step: int, total_steps: int) -> float:
        """The factor after warm-up, both counts measured from its end."""
        del step, total_steps
        return 1.0


@register("schedule", "constant")
@dataclass(frozen=True, kw_only=True)
class ConstantConfig(WarmupConfig):
    """The peak, held."""


@dataclass(frozen=True, kw_only=True)
class DecayingConfig(WarmupConfig):
    """A warm-up, then a way down to ``final``."""

    final: float = 0.1
    """Factor reached at the last step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.final <= 1, f"final: {self.final}; must be in [0, 1].")


@register("schedule", "cosine")
@dataclass(frozen=True, kw_only=True)
class CosineConfig(DecayingConfig):
    """Half a cosine from 1 to ``final`` (arXiv:1608.03983, one cycle)."""

    def after(self, step: int, total_steps: int) -> float:
        """See the base class."""
        share = min(1.0, step / max(1, total_steps - 1))
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * share))


@register("schedule", "linear")
@dataclass(frozen=True, kw_only=True)
class LinearConfig(DecayingConfig):
    """A straight line from 1 to ``final``."""

    def after(self, step: int, total_steps: int) -> float:
        """See the base class."""
        share = min(1.0, step / max(1, total_steps - 1))
        return 1 - (1 - self.final) * share


@register("schedule", "wsd")
@dataclass(frozen=True, kw_only=True)
class WsdConfig(DecayingConfig):
    """Warm-up, stable, decay: hold the peak, then a straight line down (arXiv:2404.06395)."""

    decay: float = 0.2
    """Share of the steps after warm-up that the way down takes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.decay <= 1, f"decay: {self.decay}; must be in (0, 1].")

    def after(self, step: int, total_steps: int) -> float:
        """See the base class."""
        start = total_steps - max(1, round(self.decay * total_steps))
        if step < start:
            return 1.0
        share = min(1.0, (step - start + 1) / (total_steps - start))
        return 1 - (1 - self.final) * share
