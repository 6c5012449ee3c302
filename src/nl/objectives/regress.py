"""Regression: squared error summed over the scored coordinates. Floor 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nl.config import register
from nl.config.groups import ObjectiveConfig
from nl.core.batch import Batch
from nl.core.output import Knobs, StepOut
from nl.core.state import detach


@register("objective", "regress")
@dataclass(frozen=True, kw_only=True)
class RegressConfig(ObjectiveConfig):
    """Predict vectors; the mean that is reported is over examples and coordinates."""

    def build(self, model: nn.Module) -> Regress:
        """Wrap ``model``, whose prediction has the shape of the targets."""
        return Regress(model)


class Regress(nn.Module):
    """Batch with float targets (NaN = unscored) -> StepOut."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, state: Any = None, knobs: Knobs | None = None) -> StepOut:
        """Sum of squared errors; metric: the same sum for the zero prediction.

        Raises:
            ValueError: prediction and targets differ in shape.
        """
        out = self.model(batch.inputs, state, knobs)
        targets = batch.targets.float()
        if out.pred.shape != targets.shape:
            shapes = f"{tuple(out.pred.shape)} against targets {tuple(targets.shape)}"
            raise ValueError(f"prediction {shapes}; check model.readout and stream.targets")
        scored = ~torch.isnan(targets)
        known = torch.where(scored, targets, 0.0)
        error = torch.where(scored, out.pred.float() - known, 0.0).square().sum()
        return StepOut(error, detach(out.state), {"zero_loss_sum": known.square().sum()})
