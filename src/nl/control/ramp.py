"""The controller that moves knobs from one end of their range to the other. Floor 6."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nl.config import register, require
from nl.config.groups import ControllerConfig
from nl.control.ranges import KnobRanges, require_turned
from nl.core.output import Knobs


class RampController:
    """Knobs as a linear function of the step; nothing resumes."""

    def __init__(self, config: RampControllerConfig) -> None:
        self.config = config

    def act(self, observations: Mapping[str, float], step: int) -> Knobs:
        """Knobs for 0-based ``step``, whatever was observed."""
        del observations
        share = min(1.0, max(0.0, (step - self.config.begin) / self.config.steps))
        share = 1 - share if self.config.falling else share
        return self.config.ranges.knobs(dict.fromkeys(self.config.ranges.turned(), share))

    def state_dict(self) -> dict[str, Any]:
        """Nothing to resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to resume."""


@register("controller", "ramp")
@dataclass(frozen=True, kw_only=True)
class RampControllerConfig(ControllerConfig):
    """From the lowest to the highest value of every range, or back; constant before and after."""

    ranges: KnobRanges = field(default_factory=KnobRanges)
    """What is turned."""
    begin: int = 0
    """Step at which the ramp begins."""
    steps: int = 1000
    """Its length."""
    falling: bool = False
    """From the highest to the lowest value instead."""

    def __post_init__(self) -> None:
        require(self.begin >= 0, f"begin: {self.begin}; must be >= 0.")
        require(self.steps >= 1, f"steps: {self.steps}; must be >= 1.")

    def turned(self) -> tuple[str, ...]:
        """Names of the knobs that are set."""
        return self.ranges.turned()

    def build(self, *, seed: int) -> RampController:
        """The controller; ``seed`` decides nothing here.

        Raises:
            ConfigError: no knob has a range.
        """
        del seed
        require_turned(self.ranges)
        return RampController(self)
