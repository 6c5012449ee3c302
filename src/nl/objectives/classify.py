"""Classification: cross-entropy summed over the scored examples. Floor 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn
from torch.nn import functional as F

from nl.config import register
from nl.config.groups import ObjectiveConfig
from nl.core.batch import IGNORE, Batch
from nl.core.output import Knobs, StepOut
from nl.core.state import detach


@register("objective", "classify")
@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(ObjectiveConfig):
    """One label per example: one logit means two classes, more mean one each."""

    row_kind: ClassVar[str] = "examples"
    """A label per example."""

    def build(self, model: nn.Module) -> Classify:
        """Wrap ``model``, whose prediction is (B, 1) or (B, classes) logits."""
        return Classify(model)


class Classify(nn.Module):
    """Batch with targets (B,) int64 (``IGNORE`` = unscored) -> StepOut."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, state: Any = None, knobs: Knobs | None = None) -> StepOut:
        """Sum of nats over scored examples; metric: accuracy.

        Raises:
            ValueError: a label that the logits have no class for.
        """
        out = self.model(batch.inputs, state, knobs)
        logits, targets = out.pred.float(), batch.targets
        classes = max(2, logits.shape[-1])
        scored = targets != IGNORE
        if bool(((targets < 0) | (targets >= classes))[scored].any()):
            raise ValueError(f"targets: a label outside 0 ... {classes - 1}")
        if logits.shape[-1] == 1:
            log_odds, labels = logits[scored, 0], targets[scored]
            loss = F.binary_cross_entropy_with_logits(log_odds, labels.float(), reduction="sum")
            hits = (log_odds > 0) == (labels == 1)
        else:
            loss = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
            hits = logits[scored].argmax(-1) == targets[scored]
        return StepOut(loss, detach(out.state), {"accuracy_sum": hits.float().sum()})
