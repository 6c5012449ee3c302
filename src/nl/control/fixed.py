"""The controller that never turns a knob after the start. Floor 6."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nl.config import register, require
from nl.config.groups import ControllerConfig
from nl.core.output import Knobs


class FixedController:
    """Answers with the same knobs at every step."""

    def __init__(self, knobs: Knobs) -> None:
        self.knobs = knobs

    def act(self, observations: Mapping[str, float], step: int) -> Knobs:
        """The configured knobs, whatever was observed."""
        del observations, step
        return self.knobs

    def state_dict(self) -> dict[str, Any]:
        """Nothing to resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to resume."""


@register("controller", "fixed")
@dataclass(frozen=True, kw_only=True)
class FixedControllerConfig(ControllerConfig):
    """Constant knobs."""

    lr_scale: float = 1.0
    """Multiplies the scheduled learning rate."""
    write_scale: float = 1.0
    """Multiplies the rate of label-driven memory writes."""

    def __post_init__(self) -> None:
        for name in ("lr_scale", "write_scale"):
            value = getattr(self, name)
            require(value >= 0, f"{name}: {value}; must be >= 0.")

    def build(self, *, seed: int) -> FixedController:
        """The controller; ``seed`` decides nothing here."""
        del seed
        return FixedController(Knobs(lr_scale=self.lr_scale, write_scale=self.write_scale))
