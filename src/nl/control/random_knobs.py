"""The controller that turns knobs at random: what a learned one has to beat. Floor 6."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nl.config import register, require
from nl.config.groups import ControllerConfig
from nl.control.ranges import KnobRanges, require_turned
from nl.core.output import Knobs


class RandomController:
    """New knobs every ``every`` steps; a pure function of (seed, step), so nothing resumes."""

    def __init__(self, config: RandomControllerConfig, seed: int) -> None:
        self.config, self.seed = config, seed

    def act(self, observations: Mapping[str, float], step: int) -> Knobs:
        """Knobs for 0-based ``step``, whatever was observed."""
        del observations
        turn = step // self.config.every
        rng = np.random.Generator(np.random.Philox(key=self.seed, counter=turn << 64))
        names = self.config.ranges.turned()
        shares = dict(zip(names, rng.random(len(names)).tolist(), strict=True))
        if "experts_k" in shares:  # every whole number as often as any other
            assert self.config.ranges.experts_k is not None
            low, high = self.config.ranges.experts_k
            count = high - low + 1
            place = min(int(shares["experts_k"] * count), count - 1)
            shares["experts_k"] = place / max(count - 1, 1)
        return self.config.ranges.knobs(shares)

    def state_dict(self) -> dict[str, Any]:
        """Nothing to resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to resume."""


@register("controller", "random")
@dataclass(frozen=True, kw_only=True)
class RandomControllerConfig(ControllerConfig):
    """Uniform draws from the range of every knob that has one."""

    ranges: KnobRanges = field(default_factory=KnobRanges)
    """What is turned."""
    every: int = 50
    """Steps between draws."""

    def __post_init__(self) -> None:
        require(self.every >= 1, f"every: {self.every}; must be >= 1.")

    def turned(self) -> tuple[str, ...]:
        """Names of the knobs that are set."""
        return self.ranges.turned()

    def build(self, *, seed: int) -> RandomController:
        """The controller.

        Raises:
            ConfigError: no knob has a range.
        """
        require_turned(self.ranges)
        return RandomController(self, seed)
