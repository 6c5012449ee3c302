"""Logistic regression: one linear map of the flattened input. Floor 3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nl.config import register, require
from nl.config.groups import ModelConfig
from nl.core.output import Knobs, Output


@register("model", "logistic_regression")
@dataclass(frozen=True, kw_only=True)
class LogisticRegressionConfig(ModelConfig):
    """A linear classifier."""

    features: int = 10
    """Numbers per example, all axes but the batch multiplied."""
    classes: int = 1
    """Logits: 1 for two classes (the log-odds), else one per class."""

    def __post_init__(self) -> None:
        for name in ("features", "classes"):
            value = getattr(self, name)
            require(value >= 1, f"{name}: {value}; must be >= 1.")

    def build(self) -> LogisticRegression:
        """The model with weights drawn from torch's global generator."""
        return LogisticRegression(self)


class LogisticRegression(nn.Module):
    """inputs (B, ...) with ``features`` numbers per row -> logits (B, classes)."""

    def __init__(self, config: LogisticRegressionConfig) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.features, config.classes)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, inputs: Tensor, state: Any = None, knobs: Knobs | None = None) -> Output:
        return Output(self.linear(inputs.flatten(1)))

    def init_state(self, batch: int) -> None:
        """None: nothing is carried from one batch to the next."""

    def shard_units(self) -> Sequence[nn.Module]:
        """The one layer."""
        return [self.linear]

    def flops_per_token(self) -> int:
        """Forward FLOPs per example."""
        return 2 * self.config.features * self.config.classes
