"""Self-distillation: the model as it was when the last phase ended holds its answers. Floor 3.

Learning without forgetting (Li and Hoiem 2016, arXiv:1606.09282), for tokens: with the teacher's
next-token distribution p_old and the model's p, both softened by a temperature H,

    loss = sum over scored tokens of  -log p(target) + strength H^2 KL(p_old^(1/H) || p^(1/H)).

``on`` says which rows are held: all of a batch, or those that the stream replays. Teacher and model
both answer from a fresh State, also where ``train.carry`` keeps one for the loss: it holds what the
model's memories made of the rows before, which the teacher's would have read in another way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nl.config import register, require
from nl.core.batch import IGNORE, Batch
from nl.core.output import Knobs, StepOut
from nl.objectives.next_token import NextTokenConfig
from nl.objectives.ranked import Ranked


@register("objective", "distill")
@dataclass(frozen=True, kw_only=True)
class DistillConfig(NextTokenConfig):
    """Predict the next token and answer as before the phase (a stream with phases)."""

    strength: float = 1.0
    """Weight of the divergence from the teacher."""
    temperature: float = 2.0
    """H, divides the logits of both."""
    on: Literal["all", "replayed"] = "all"
    """Rows on which the teacher is asked; replayed: those that stream=replay or tasks replays."""

    reads_phases = True
    requires = {  # noqa: RUF012 - not a field
        "late_changes": "launch train.py or train_dist.py, or set objective=next_token"
    }

    def __post_init__(self) -> None:
        require(self.strength >= 0, f"strength: {self.strength}; must be >= 0.")
        require(self.temperature > 0, f"temperature: {self.temperature}; must be > 0.")

    def build(self, model: nn.Module) -> Distill:
        """Wrap ``model``, a language model."""
        return Distill(self, model)


class Distill(Ranked):
    """Batch -> StepOut; the first batch of a phase makes the model its own teacher.

    The teacher's weights and the phase are buffers: a continued run has the same teacher.
    """

    counts: Tensor

    def __init__(self, config: DistillConfig, model: nn.Module) -> None:
        super().__init__(config, model)
        self.options = config
        self.teacher = nn.Module()
        for name, tensor in self._learned().items():
            self.teacher.register_buffer(_key(name), torch.zeros_like(tensor))
        self.register_buffer("counts", torch.tensor([-1, 0]))  # phase, phases before it
        self._counts: list[int] | None = None

    def forward(self, batch: Batch, state: Any = None, knobs: Knobs | None = None) -> StepOut:
        """See the module; outside training it is the loss of ``next_token`` alone."""
        out = super().forward(batch, state, knobs)
        if not self.training or not self._taught(int(batch.tags["phase"])):
            return out
        rows = self._held(batch)
        metrics = {**out.metrics, "distill/nats_sum": out.loss.detach()}
        if self.options.on == "replayed" and not batch.tags.get("replayed"):
            return out._replace(metrics=metrics)
        # Every rank tells of it, whoever has the rows: what is logged is summed over ranks.
        held = self.divergence(batch, rows, knobs) if rows.any() else torch.zeros_like(out.loss)
        metrics["distill/kl_sum"] = held.detach()
        return StepOut(out.loss + self.options.strength * held, out.state, metrics, out.rows)

    def divergence(self, batch: Batch, rows: Tensor, knobs: Knobs | None) -> Tensor:
        """H^2 KL(teacher || model), summed over the scored tokens of the rows (B,) bool."""
        inputs, targets = batch.inputs[rows], batch.targets[rows]
        read: dict[str, Any] = {"targets": targets, "write": self.config.write}
        if batch.starts is not None:
            kept = zip(batch.starts, rows.tolist(), strict=True)
            read["starts"] = tuple(starts for starts, one in kept if one)
        weights = {key.replace("/", "."): held for key, held in self.teacher.named_buffers()}
        with torch.no_grad():
            old = functional_call(self.model, weights, (inputs, None, knobs), read).pred
        new = self.model(inputs, None, knobs, **read).pred
        heat, scored = self.options.temperature, targets != IGNORE
        p, q = ((logits[scored].float() / heat).log_softmax(-1) for logits in (old, new))
        return heat**2 * (p.exp() * (p - q)).sum()

    def _held(self, batch: Batch) -> Tensor:
        """Rows (B,) of this rank on which the teacher is asked."""
        share = len(batch.inputs)
        if self.options.on == "all":
            return torch.ones(share, dtype=torch.bool, device=batch.inputs.device)
        first = share * self.world - int(batch.tags.get("replayed", 0))
        place = torch.arange(share, device=batch.inputs.device) + self.rank * share
        return place >= first

    def _taught(self, phase: int) -> bool:
        """Whether there is a teacher; a phase that begins after another makes one."""
        if self._counts is None:
            self._counts = self.counts.tolist()
        if self._counts[0] != phase:
            if self._counts[0] >= 0:
                with torch.no_grad():
                    for name, tensor in self._learned().items():
                        self.teacher.get_buffer(_key(name)).copy_(tensor)
                self._counts[1] += 1
            self._counts[0] = phase
            self.counts.copy_(torch.tensor(self._counts))
        return self._counts[1] > 0

    def _learned(self) -> dict[str, Tensor]:
        """Parameters, and the buffers that checkpoints keep: routers' biases learn, too."""
        kept = self.model.state_dict(keep_vars=True).keys()
        buffers = {name: one for name, one in self.model.named_buffers() if name in kept}
        return {**dict(self.model.named_parameters()), **buffers}

    def _load_from_state_dict(self, *given: Any) -> None:
        self._counts = None
        super()._load_from_state_dict(*given)


def _key(name: str) -> str:
    """A parameter's name as the name of a buffer."""
    return name.replace(".", "/")
