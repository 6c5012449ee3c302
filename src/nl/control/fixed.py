"""The controller that never turns a knob after the start. Floor 6."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nl.config import register, require
from nl.config.groups import ControllerConfig
from nl.core.output import Knobs

TURNED = ("experts_k", "router_noise", "router_temperature", "replay")


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
    """Multiplies the signal of label-driven memory writes."""
    experts_k: int | None = None
    """Experts that read a token; null: as the model says."""
    router_noise: float | None = None
    """Standard deviation of router noise in training; null: as the model says."""
    router_temperature: float | None = None
    """What router logits are divided by; null: as the model says."""
    replay: float | None = None
    """Share of a batch that is replayed; null: as the stream says."""

    def __post_init__(self) -> None:
        for name in ("lr_scale", "write_scale"):
            value = getattr(self, name)
            require(value >= 0, f"{name}: {value}; must be >= 0.")
        for name in TURNED:
            value = getattr(self, name)
            least = 1 if name == "experts_k" else 0
            require(value is None or value >= least, f"{name}: {value}; must be >= {least}.")
        require(self.replay is None or self.replay < 1, f"replay: {self.replay}; must be below 1.")
        require(self.router_temperature != 0, "router_temperature: 0; must be above 0.")

    def turned(self) -> tuple[str, ...]:
        """Names of the knobs that are set, beside the scales."""
        return tuple(name for name in TURNED if getattr(self, name) is not None)

    def build(self, *, seed: int) -> FixedController:
        """The controller; ``seed`` decides nothing here."""
        del seed
        turned: dict[str, Any] = {name: getattr(self, name) for name in self.turned()}
        knobs = Knobs(lr_scale=self.lr_scale, write_scale=self.write_scale, **turned)
        return FixedController(knobs)
