"""The controller that opens and closes label-driven writing by step count. Floor 6."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nl.config import register, require
from nl.config.groups import ControllerConfig
from nl.core.output import Knobs


class ScheduleController:
    """Write scale as a trapezoid over steps; a pure function of the step, so nothing resumes."""

    def __init__(self, config: ScheduleControllerConfig) -> None:
        self.config = config

    def act(self, observations: Mapping[str, float], step: int) -> Knobs:
        """Knobs for 0-based ``step``."""
        del observations
        return Knobs(write_scale=self.config.write_scale_at(step))

    def state_dict(self) -> dict[str, Any]:
        """Nothing to resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to resume."""


@register("controller", "schedule")
@dataclass(frozen=True, kw_only=True)
class ScheduleControllerConfig(ControllerConfig):
    """Label-driven writes: linear warm-up, a plateau, optionally a linear way down to 0."""

    write_scale: float = 1.0
    """The plateau."""
    warmup: int = 0
    """Steps from 0 to the plateau."""
    decay_start: int = 0
    """Step at which the way down begins; 0 with decay_steps 0: never."""
    decay_steps: int = 0
    """Steps from the plateau down to 0; 0: no way down."""

    def __post_init__(self) -> None:
        for name in ("write_scale", "warmup", "decay_start", "decay_steps"):
            value = getattr(self, name)
            require(value >= 0, f"{name}: {value}; must be >= 0.")
        late = self.decay_steps == 0 or self.decay_start >= self.warmup
        require(late, f"decay_start: {self.decay_start}; must be >= warmup ({self.warmup}).")

    def write_scale_at(self, step: int) -> float:
        """The write scale for 0-based ``step``."""
        if step < self.warmup:
            return self.write_scale * (step + 1) / self.warmup
        if self.decay_steps and step >= self.decay_start:
            gone = min(1.0, (step - self.decay_start) / self.decay_steps)
            return self.write_scale * (1 - gone)
        return self.write_scale

    def build(self, *, seed: int) -> ScheduleController:
        """The controller; ``seed`` decides nothing here."""
        del seed
        return ScheduleController(self)
