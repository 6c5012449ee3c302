"""The controller that holds a measured number at a target with one knob. Floor 6.

Proportional-integral control with clamping: with error e_n = sign (measured - target),

    share_n = start + proportional e_n + integral sum_{i <= n} e_i,

kept in [0, 1] of the knob's range; a term that would push further past an end is not summed
(conditional integration; Astrom and Haegglund 1995, chapter 3.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nl.config import ConfigError, register, require
from nl.config.groups import ControllerConfig
from nl.control.ranges import KnobRanges
from nl.core.output import Knobs


class PIController:
    """One knob follows one observation."""

    def __init__(self, config: PIControllerConfig) -> None:
        self.config = config
        self.total, self.share, self.step = 0.0, config.start, -1

    def act(self, observations: Mapping[str, float], step: int) -> Knobs:
        """Knobs for 0-based ``step``.

        Raises:
            ConfigError: something was observed, but not ``signal``; one of ``signal/`` is waited
                for, as there is none of earlier tasks in the first.
        """
        config, found = self.config, observations.get(self.config.signal)
        turn = bool(observations) and step % config.every == 0 and step != self.step
        if turn and found is None and not config.reads_signals():
            raise ConfigError(
                f"controller.signal: {config.signal!r} is not measured. Measured: "
                f"{', '.join(sorted(observations))}."
            )
        if turn and found is not None:
            self.step = step  # one that is tried again is no new turn
            error = found - config.target
            error = error if config.direction == "up" else -error
            total = self.total + config.integral * error
            wanted = config.start + config.proportional * error + total
            self.share = min(1.0, max(0.0, wanted))
            if self.share == wanted or (wanted > 1) != (error > 0):
                self.total = total
        return config.ranges.knobs(dict.fromkeys(config.ranges.turned(), self.share))

    def state_dict(self) -> dict[str, Any]:
        """The sum, where the knob stands, and the step of the last turn."""
        return {"total": self.total, "share": self.share, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse."""
        self.total, self.share = float(state["total"]), float(state["share"])
        self.step = int(state.get("step", -1))


@register("controller", "pi")
@dataclass(frozen=True, kw_only=True)
class PIControllerConfig(ControllerConfig):
    """Holds ``signal`` at ``target`` by turning the one knob that has a range."""

    ranges: KnobRanges = field(default_factory=KnobRanges)
    """The knob that is turned: exactly one."""
    signal: str = "signal/memory_loss"
    """Name of a number in the rows of metrics.jsonl that every logged step has."""
    target: float = 3.0
    """Where it should be."""
    direction: Literal["up", "down"] = "up"
    """up: the knob rises while the number is above its target (replay against memory loss)."""
    proportional: float = 0.5
    """Share of the range per unit of error."""
    integral: float = 0.05
    """Share of the range per unit of error and turn."""
    start: float = 0.0
    """Share of the range before anything is measured."""
    every: int = 10
    """Steps between turns."""

    def __post_init__(self) -> None:
        for name in ("proportional", "integral"):
            value = getattr(self, name)
            require(value >= 0, f"{name}: {value}; must be >= 0.")
        require(0 <= self.start <= 1, f"start: {self.start}; must be in [0, 1].")
        require(self.every >= 1, f"every: {self.every}; must be >= 1.")

    def turned(self) -> tuple[str, ...]:
        """Names of the knobs that are set."""
        return self.ranges.turned()

    def reads_signals(self) -> bool:
        """Whether ``signals`` have to be measured."""
        return self.signal.startswith("signal/")

    def build(self, *, seed: int) -> PIController:
        """The controller; ``seed`` decides nothing here.

        Raises:
            ConfigError: no knob, or more than one, has a range.
        """
        del seed
        turned = self.ranges.turned()
        require(len(turned) == 1, f"ranges: {list(turned)}; give [low, high] for exactly one knob.")
        return PIController(self)
