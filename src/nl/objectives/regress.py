"""Regression: squared error summed over the scored coordinates. Floor 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nl.config import ConfigError, register
from nl.config.groups import ObjectiveConfig
from nl.core.batch import Batch
from nl.core.groups import decompose, parse_group
from nl.core.groups.finite import GroupError
from nl.core.output import Knobs, StepOut
from nl.core.state import detach


@register("objective", "regress")
@dataclass(frozen=True, kw_only=True)
class RegressConfig(ObjectiveConfig):
    """Predict vectors; the mean that is reported is over examples and coordinates."""

    row_kind: ClassVar[str] = "words"
    """Vectors that stand for elements of a group."""

    spectrum: str | None = None
    """Name of a finite group: report the mean power of predictions, functions on it, per irrep and
    coordinate (power/1b, power/2a, ...), in the unit of the loss. null: do not."""

    def __post_init__(self) -> None:
        if self.spectrum is not None:
            try:
                parse_group(self.spectrum)
            except GroupError as error:
                raise ConfigError(f"spectrum: {error}.") from error

    def build(self, model: nn.Module) -> Regress:
        """Wrap ``model``, whose prediction has the shape of the targets."""
        return Regress(model, self.spectrum)


class Regress(nn.Module):
    """Batch with float targets (NaN = unscored) -> StepOut."""

    names: tuple[str, ...] = ()
    basis: Tensor
    owner: Tensor

    def __init__(self, model: nn.Module, spectrum: str | None = None) -> None:
        super().__init__()
        self.model = model
        if spectrum is not None:
            parts = decompose(parse_group(spectrum))
            self.names = tuple(one.name for one in parts.irreps)
            basis = torch.from_numpy(parts.basis).float()
            self.register_buffer("basis", basis, persistent=False)
            self.register_buffer("owner", torch.from_numpy(parts.owner), persistent=False)

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
        metrics = {"zero_loss_sum": known.square().sum(), **self._powers(out.pred.detach())}
        return StepOut(error, detach(out.state), metrics)

    def _powers(self, pred: Tensor) -> dict[str, Tensor]:
        """Sum over predictions (..., N) of their power in every irrep."""
        if not self.names:
            return {}
        if pred.shape[-1] != len(self.basis):
            raise ValueError(
                f"prediction of {pred.shape[-1]} numbers against a group of {len(self.basis)}: "
                "make objective.spectrum and stream.group_name equal"
            )
        squares = (pred.float() @ self.basis).square().flatten(0, -2).sum(0)
        found = squares.new_zeros(len(self.names)).index_add(0, self.owner, squares)
        return {f"power/{name}_sum": found[n] for n, name in enumerate(self.names)}
