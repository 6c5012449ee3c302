"""Next-token cross-entropy, summed over the scored targets. Floor 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from nl.config import ConfigError, register
from nl.config.groups import ModelConfig, ObjectiveConfig
from nl.core.batch import Batch
from nl.core.output import Knobs, StepOut
from nl.core.state import detach


@register("objective", "next_token")
@dataclass(frozen=True, kw_only=True)
class NextTokenConfig(ObjectiveConfig):
    """Predict the next token."""

    row_kind: ClassVar[str] = "tokens"
    """Ids, the next of which is predicted."""

    write: bool = True
    """False trains with all memories frozen (the ablation)."""

    adds_losses = True
    tells_rows = True

    def build(self, model: nn.Module) -> NextToken:
        """Wrap ``model``, which offers ``nll``."""
        return NextToken(self, model)


def check_losses(model: ModelConfig, objective: ObjectiveConfig) -> None:
    """Refuse losses of a model's own that the objective does not add.

    Raises:
        ConfigError: naming both.
    """
    experts = getattr(model, "experts", None)
    wanted = experts is not None and (experts.switch_loss or experts.z_loss)
    if wanted and not getattr(objective, "adds_losses", False):
        raise ConfigError(
            "model.experts.switch_loss, model.experts.z_loss: losses of the model, which "
            f"objective={objective.kind} does not add; choose objective=next_token or set both to "
            "0."
        )


class NextToken(nn.Module):
    """Batch -> StepOut. ``carry`` is set by the assembly: whether the State is used afterwards."""

    def __init__(self, config: NextTokenConfig, model: nn.Module) -> None:
        super().__init__()
        self.config, self.model, self.carry = config, model, False

    def forward(self, batch: Batch, state: Any = None, knobs: Knobs | None = None) -> StepOut:
        """Sum of nats over scored targets; metrics: accuracy and what the memories did.

        In training the model's own losses, under ``loss/``, are added once per token that was read:
        ranks then add up to one process, whatever they have to score.
        """
        model: Any = self.model
        more = {} if batch.starts is None else {"starts": batch.starts}
        read = {"write": self.config.write, "keep": self.carry, **more}
        nll, out = model.nll(batch.inputs, batch.targets, state, knobs, **read)
        hits = out.pred.sum().to(torch.float32)
        metrics = {"accuracy_sum": hits, **{k: v.detach() for k, v in out.aux.items()}}
        loss, own = nll.sum(), [v for k, v in out.aux.items() if k.startswith("loss/")]
        if own:
            metrics["nats_sum"] = loss.detach()
            loss = loss + batch.inputs.numel() * torch.stack(own).sum()
        state = detach(out.state) if self.carry else None
        return StepOut(loss, state, metrics, nll.detach().sum(1))
