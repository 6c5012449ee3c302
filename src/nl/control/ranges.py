"""Which knobs a controller turns, and how far. Floor 6."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from nl.config import require
from nl.core.output import Knobs

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class KnobRanges:
    """[lowest, highest] of every knob that is turned; null: left as configured."""

    experts_k: tuple[int, int] | None = None
    """Experts that read a token, whole numbers."""
    router_noise: Range | None = None
    """Standard deviation of router noise."""
    router_temperature: Range | None = None
    """What router logits are divided by."""
    replay: Range | None = None
    """Share of a batch that is replayed (stream.capacity rows are stored)."""
    write_scale: Range | None = None
    """Multiplies label-driven memory writes."""
    lr_scale: Range | None = None
    """Multiplies the scheduled learning rate."""

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            pair = getattr(self, name)
            if pair is not None:
                fits = least <= pair[0] <= pair[1]
                require(fits, f"{name}: {list(pair)}; must be [low, high], low at least {least}.")
        replay = self.replay is None or self.replay[1] < 1
        require(replay, f"replay: {self.replay and list(self.replay)}; must be below 1.")
        positive = self.router_temperature is None or self.router_temperature[0] > 0
        require(positive, "router_temperature: the lowest must be above 0.")

    def turned(self) -> tuple[str, ...]:
        """Names of the knobs that have a range."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is not None)

    def knobs(self, shares: Mapping[str, float]) -> Knobs:
        """Knobs at a place of every range.

        Args:
            shares: name -> 0 (lowest) to 1 (highest).
        """
        values: dict[str, Any] = {}
        for name in self.turned():
            low, high = getattr(self, name)
            value = low + shares[name] * (high - low)
            values[name] = round(value) if name == "experts_k" else value
        return Knobs(**values)


LEAST = {
    "experts_k": 1,
    "router_noise": 0,
    "router_temperature": 0,
    "replay": 0,
    "write_scale": 0,
    "lr_scale": 0,
}
"""Smallest lowest value of every knob."""


def require_turned(ranges: KnobRanges) -> None:
    """Refuse a controller that turns nothing.

    Raises:
        ConfigError: with the names of the knobs.
    """
    names = ", ".join(LEAST)
    require(bool(ranges.turned()), f"ranges: empty; give [low, high] for one of {names}.")
