"""Elastic weight consolidation: earlier phases hold parameters back. Floor 3.

Kirkpatrick et al. 2017 (arXiv:1612.00796), eq. 3, in the online form of Schwarz et al. 2018
(arXiv:1805.06370): one anchor, and a sum of diagonals that may decay. With nats per token l,

    loss = l + strength / 2 sum_i F_i (w_i - a_i)^2,    F <- decay F + F_phase,    a <- w

when a phase ends. F_phase is the diagonal of the empirical Fisher information per token, measured
at the parameters that the phase ended with, on the last rows that it read: the squares of whole
rows' gradients, over the tokens of these rows (exact where the gradients of a row's tokens are
uncorrelated). Phases of equal length make strength = 1 the Laplace approximation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nl.config import register, require
from nl.core.batch import IGNORE, Batch
from nl.core.output import Knobs, StepOut
from nl.objectives.next_token import NextTokenConfig
from nl.objectives.ranked import Ranked


@register("objective", "ewc")
@dataclass(frozen=True, kw_only=True)
class EwcConfig(NextTokenConfig):
    """Predict the next token and stay near what earlier phases needed (stream=phases, replay)."""

    strength: float = 1.0
    """Weight of the penalty; 1: a token of an earlier phase counts as one of this phase."""
    decay: float = 1.0
    """Share of the earlier phases' Fisher information that is kept when a phase ends."""
    rows: int = 64
    """Rows of a phase, the last ones it read, that its Fisher information is measured on; each
    costs a forward and a backward pass."""

    reads_phases = True
    requires = {  # noqa: RUF012 - not a field
        "late_changes": "launch train.py or train_dist.py, or set objective=next_token"
    }

    def __post_init__(self) -> None:
        require(self.strength >= 0, f"strength: {self.strength}; must be >= 0.")
        require(0 <= self.decay <= 1, f"decay: {self.decay}; must be in [0, 1].")
        require(self.rows >= 1, f"rows: {self.rows}; must be >= 1.")

    def build(self, model: nn.Module) -> Ewc:
        """Wrap ``model``, which offers ``nll``."""
        return Ewc(self, model)


class Ewc(Ranked):
    """Batch -> StepOut; the first batch of a phase consolidates the one before.

    Anchor, Fisher diagonal, the phase and the rows it read last are buffers: they are part of every
    checkpoint, so that a continued run consolidates what the uninterrupted one would have. Each
    rank keeps the rows of all ranks and measures its share of them.
    """

    counts: Tensor
    read: Tensor

    def __init__(self, config: EwcConfig, model: nn.Module) -> None:
        super().__init__(config, model)
        self.options = config
        self.fisher, self.anchor = nn.Module(), nn.Module()
        for name, parameter in model.named_parameters():
            for held in (self.fisher, self.anchor):
                held.register_buffer(_key(name), torch.zeros_like(parameter))
        self.register_buffer("counts", torch.tensor([-1, 0]))  # phase, phases consolidated
        self.register_buffer("read", torch.empty(0, 3, 0, dtype=torch.int32))
        self._counts: list[int] | None = None

    def forward(self, batch: Batch, state: Any = None, knobs: Knobs | None = None) -> StepOut:
        """See the module; outside training it is the loss of ``next_token`` alone."""
        if not self.training:
            return super().forward(batch, state, knobs)
        phase, done = self._at(int(batch.tags["phase"]))
        self._remember(batch)
        out = super().forward(batch, state, knobs)
        metrics = {**out.metrics, "ewc/nats_sum": out.loss.detach()}
        if not done:
            return out._replace(metrics=metrics)
        penalty = self.options.strength / 2 * self.distance()
        metrics["ewc/penalty"] = penalty.detach()
        metrics["ewc/phase"] = torch.full_like(penalty.detach(), phase)
        return StepOut(out.loss + batch.weight * penalty, out.state, metrics, out.rows)

    def distance(self) -> Tensor:
        """sum_i F_i (w_i - a_i)^2."""
        terms = [
            (fisher * (parameter - anchor).square()).sum()
            for parameter, fisher, anchor in self._held().values()
            if parameter.requires_grad
        ]
        return torch.stack(terms).sum()

    def _held(self) -> dict[str, tuple[nn.Parameter, Tensor, Tensor]]:
        return {
            name: (p, self.fisher.get_buffer(_key(name)), self.anchor.get_buffer(_key(name)))
            for name, p in self.model.named_parameters()
        }

    def _at(self, phase: int) -> tuple[int, int]:
        """Consolidate where a phase begins after another; (phase, phases consolidated)."""
        if self._counts is None:
            self._counts = self.counts.tolist()
        if self._counts[0] == phase:
            return phase, self._counts[1]
        if len(self.read):
            self._consolidate()
            self._counts[1] += 1
        self._counts[0] = phase
        self.counts.copy_(torch.tensor(self._counts))
        self.read = self.read[:0]
        return phase, self._counts[1]

    def _remember(self, batch: Batch) -> None:
        """Keep the last rows of this phase: inputs, targets, where documents begin."""
        begins = torch.zeros_like(batch.inputs)
        for row, starts in enumerate(batch.starts or ()):
            begins[row, list(starts)] = 1
        rows = self.everyones(torch.stack([batch.inputs, batch.targets, begins], 1).int())
        held = self.read if len(self.read) else rows[:0]
        self.read = torch.cat([held, rows])[-self.options.rows :]

    def _consolidate(self) -> None:
        """F <- decay F + F_phase, a <- w."""
        held = self._held()
        trained = {name: p for name, (p, _, _) in held.items() if p.requires_grad}
        sums = {name: torch.zeros_like(p) for name, p in trained.items()}
        self.model.eval()  # neither noise nor what routers count
        try:
            for row in self.read[self.rank :: self.world].long():
                for name, gradient in zip(trained, self._gradients(row, trained), strict=True):
                    if gradient is not None:
                        sums[name] += gradient.square()
        finally:
            self.model.train()
        tokens = int((self.read[:, 1] != IGNORE).sum())
        with torch.no_grad():
            for name, total in sums.items():
                found = total if self.reduce is None else self.reduce(total)
                parameter, fisher, anchor = held[name]
                fisher.mul_(self.options.decay).add_(found / max(tokens, 1))
                anchor.copy_(parameter)

    def _gradients(
        self, row: Tensor, trained: Mapping[str, nn.Parameter]
    ) -> tuple[Tensor | None, ...]:
        """Of the summed nats of one row."""
        inputs, targets, begins = row[:, None]
        starts = (tuple(begins[0].nonzero()[:, 0].tolist()),)
        more = {"starts": starts} if starts[0] else {}
        model: Any = self.model
        with torch.enable_grad():
            nll, _ = model.nll(inputs, targets, write=self.config.write, keep=False, **more)
            with torch.autocast(nll.device.type, enabled=False):  # as backward passes are run
                return torch.autograd.grad(nll.sum(), list(trained.values()), allow_unused=True)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        """Rows that were read come in any number and length."""
        if (saved := state_dict.get(f"{prefix}read")) is not None:
            self.read = torch.empty_like(saved, device=self.read.device)
        self._counts = None
        super()._load_from_state_dict(state_dict, prefix, *more)


def _key(name: str) -> str:
    """A parameter's name as the name of a buffer."""
    return name.replace(".", "/")
