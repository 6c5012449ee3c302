"""Next-token cross-entropy, summed over the scored targets. Floor 3."""

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


@register("objective", "next_token")
@dataclass(frozen=True, kw_only=True)
class NextTokenConfig(ObjectiveConfig):
    """Predict the next token."""

    write: bool = True
    """False trains with all memories frozen (the ablation)."""

    def build(self, model: nn.Module) -> NextToken:
        """Wrap ``model``, which offers ``nll``."""
        return NextToken(self, model)


class NextToken(nn.Module):
    """Batch -> StepOut. ``carry`` is set by the assembly: whether the State is used afterwards."""

    def __init__(self, config: NextTokenConfig, model: nn.Module) -> None:
        super().__init__()
        self.config, self.model, self.carry = config, model, False

    def forward(self, batch: Batch, state: Any = None, knobs: Knobs | None = None) -> StepOut:
        """Sum of nats over scored targets; metrics: accuracy and what the memories did."""
        model: Any = self.model
        more = {} if batch.starts is None else {"starts": batch.starts}
        read = {"write": self.config.write, "keep": self.carry, **more}
        nll, out = model.nll(batch.inputs, batch.targets, state, knobs, **read)
        hits = out.pred.sum().to(torch.float32)
        metrics = {"accuracy_sum": hits, **{k: v.detach() for k, v in out.aux.items()}}
        return StepOut(nll.sum(), detach(out.state) if self.carry else None, metrics)
