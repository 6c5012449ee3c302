"""The seams, as protocols: what each part must offer, nothing about how. Floor 0."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from nl.core.batch import Batch
from nl.core.output import Knobs, Output, StepInfo, StepOut


@runtime_checkable
class Stream(Protocol):
    """Resumable iterator of this rank's batches; order is a pure function of (seed, epoch, index).

    ``state_dict`` is small plain data (JSON); after ``load_state_dict`` the next batch is the one
    that would have come next. An endless training stream reshuffles per epoch; a validation
    stream ends.
    """

    def __iter__(self) -> Iterator[Batch]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Model(Protocol):
    """A network. An ``nn.Module`` with these methods; owner of no optimizer, loss or data."""

    def __call__(self, inputs: Tensor, state: Any = None, knobs: Knobs | None = None) -> Output: ...
    def init_state(self, batch: int, *, position: int = 0) -> Any: ...
    def shard_units(self) -> Sequence[nn.Module]: ...
    def flops_per_token(self) -> int: ...


class Objective(Protocol):
    """``nn.Module`` that holds the model; the one wrapped call per micro-batch."""

    model: nn.Module

    def __call__(self, batch: Batch, state: Any = None, knobs: Knobs | None = None) -> StepOut: ...


@dataclass(frozen=True)
class Capabilities:
    """What a strategy can do; compared with the needs of objective and model before building."""

    inner_autograd: bool
    """Gradients of the loss with respect to block outputs inside the forward pass."""
    grad_through_write: bool
    """Outer gradients through memory writes that need labels."""
    asynchronous_save: bool = True
    """Copies for a checkpoint that a thread can write while training goes on."""
    whole_matrices: bool = True
    """Optimizers whose update of a matrix needs all of its gradient."""
    whole_neurons: bool = True
    """Optimizers whose update of a tensor needs other tensors, too."""
    segments: bool = True
    """Reading parts of a row again in the backward pass."""
    late_changes: bool = True
    """What is trained, and what the loss is made of, may change while training."""


class Strategy(Protocol):
    """Where an objective lives: single, ddp, fsdp2, deepspeed. All collectives are here."""

    name: str
    rank: int
    world: int
    device: torch.device
    capabilities: Capabilities

    def configure(self, run: Any) -> None: ...
    def setup(
        self, objective: nn.Module, make_optimizer: Any, *, max_norm: float, precision: str
    ) -> None: ...
    def microbatch(self, last: bool) -> AbstractContextManager[None]: ...
    def forward(self, batch: Batch, state: Any, knobs: Knobs | None) -> StepOut: ...
    def backward(self, loss: Tensor) -> None: ...
    def grad_norm(self) -> Tensor: ...
    def step(self, lr_factor: float) -> None: ...
    def skip(self) -> None: ...
    def settle(self, taken: bool) -> None: ...
    def sum(self, value: float) -> float: ...
    def max(self, value: float) -> float: ...
    def broadcast(self, value: Any) -> Any: ...
    def full_model(self) -> dict[str, Tensor]: ...
    def evaluating(self) -> AbstractContextManager[nn.Module]: ...
    def save(self, folder: Path) -> None: ...
    def load(self, folder: Path) -> None: ...
    def barrier(self) -> None: ...
    def close(self) -> None: ...


class Controller(Protocol):
    """Turns knobs from observations; resumable.

    One that tries things out also has ``frozen() -> Knobs``, what it would do without trying:
    validation reads with these.
    """

    def act(self, observations: Mapping[str, float], step: int) -> Knobs: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Hook(Protocol):
    """A side effect every ``every`` steps; may not change training."""

    every: int

    def __call__(self, info: StepInfo, model: nn.Module, run_dir: Path) -> None: ...


@dataclass(frozen=True)
class EvalRow:
    """One measured number. ``value`` is finite or None (with the reason in ``note``)."""

    suite: str
    task: str
    metric: str
    value: float | None
    n: int
    stderr: float | None = None
    seconds: float | None = None
    memorize: str = "off"
    """off | context | oracle: whether and how memories were written while evaluating."""
    chance: float | None = None
    """What guessing scores, where that is defined."""
    note: str = ""


class Evaluator(Protocol):
    """Measures a model; returns rows, prints nothing."""

    def __call__(self, model: nn.Module, context: Any) -> list[EvalRow]: ...
