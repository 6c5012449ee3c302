"""Output, StepOut, Knobs, StepInfo: the small records that parts hand to each other. Floor 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor


class Output(NamedTuple):
    """What a model returns.

    Attributes:
        pred: (B, T, vocab) logits | (B, classes) logits | (B, T, F) values.
        state: the new State; None for models without one.
        aux: named scalar tensors for the objective (losses) and the log (write statistics).
    """

    pred: Tensor
    state: Any = None
    aux: Mapping[str, Tensor] = {}


class StepOut(NamedTuple):
    """What an objective returns for one micro-batch.

    Attributes:
        loss: scalar fp32, the SUM over scored targets (auxiliary losses are scaled to a sum too).
        state: the new State, detached.
        metrics: sums or means as scalar tensors, detached; keys are ``group/name``. A key ending
            in ``_sum`` is divided by the global weight when it is logged.
        rows: (B,) nats of every row, detached; None where the objective does not tell.
    """

    loss: Tensor
    state: Any
    metrics: Mapping[str, Tensor]
    rows: Tensor | None = None


class Knobs(NamedTuple):
    """What a controller may set between steps; a model called without knobs takes the defaults."""

    lr_scale: float = 1.0
    """Multiplies the scheduled learning rate."""
    write_scale: float = 1.0
    """Multiplies the signal of every write into a continuum memory, behind the surprise gate, and
    into the memory of the head; inner optimizers whose steps have a size of their own heed 0
    alone."""
    paths: tuple[str, ...] | None = None
    """Memories that may write, by name (``nl.models.memories``); the others are frozen. None: all.
    """
    layers: tuple[int, ...] | None = None
    """Blocks whose memories may write; None: all."""
    experts_k: int | tuple[int, ...] | None = None
    """Experts that read a token, one number or one per layer; None: as configured."""
    router_temperature: float | None = None
    """Divides the logits of routers; None: as configured."""
    router_noise: float | None = None
    """Standard deviation of the noise of routers in training; None: as configured."""
    draw: int = 0
    """What random choices of this step are keyed by; the trainer sets it from seed and step."""
    replay: float | None = None
    """Share of the rows of the next batches that are replayed; None: as configured."""

    def permits(self, path: str, layer: int) -> bool:
        """Whether this memory of this block may write."""
        return (self.paths is None or path in self.paths) and (
            self.layers is None or layer in self.layers
        )


@dataclass(frozen=True)
class StepInfo:
    """What a hook sees after an optimizer step. Immutable; hooks act on nothing but the outside.

    Attributes:
        step: optimizer steps done, 1-based.
        total_steps: planned steps.
        tokens: scored targets seen by all ranks so far.
        metrics: this step's numbers, ``group/name`` -> float.
        tags: of the last micro-batch.
    """

    step: int
    total_steps: int
    tokens: int
    metrics: Mapping[str, float]
    tags: Mapping[str, Any] = field(default_factory=dict)
