"""What every strategy shares: one wrapped objective, one optimizer, one way to step. Floor 4."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nl.config import ConfigError, require
from nl.config.run import FSDPConfig, RunConfig
from nl.core.batch import Batch
from nl.core.output import Knobs, StepOut
from nl.core.protocols import Capabilities
from nl.dist.env import local_rank, select_device
from nl.dist.meeting import LaunchError
from nl.dist.saved import check_groups, check_names, read_saved
from nl.dist.serial import (
    OBJECTIVE,
    host_tensors,
    model_tensors,
    objective_name,
    pack,
    plain_name,
    write_tensors,
)
from nl.run.files import write_json

Write = Callable[[Path], None]
MakeOptimizer = Callable[[list[tuple[str, nn.Parameter]]], torch.optim.Optimizer]


class Strategy:
    """The whole model on one device, one process; subclasses spread it. See core.protocols."""

    name = "single"
    capabilities = Capabilities(inner_autograd=True, grad_through_write=True)

    def __init__(self, device: torch.device, rank: int = 0, world: int = 1) -> None:
        self.device, self.rank, self.world = device, rank, world
        self.max_norm = 0.0
        self.precision = "fp32"
        self.left_alone: frozenset[int] = frozenset()

    @classmethod
    def ready(cls, run: RunConfig) -> dict[str, Any]:
        """Complain of what this process lacks for ``run``, before it joins the others.

        Returns:
            What has to be the same on every rank beside the configuration (plain data).

        Raises:
            ConfigError: no such device, a missing extra.
        """
        select_device(run.train.device, local_rank())
        return {"torch": torch.__version__}

    def configure(self, run: RunConfig) -> None:
        """Take the options meant for this strategy, before anything is built.

        Raises:
            ConfigError: options of another strategy are set.
        """
        require(
            run.fsdp == FSDPConfig(),
            f"fsdp: {run.fsdp}; {self.name} training does not read it; launch train_fsdp.py or "
            "leave fsdp out.",
        )

    def setup(
        self,
        objective: nn.Module,
        make_optimizer: MakeOptimizer,
        *,
        max_norm: float,
        precision: str,
    ) -> None:
        """Move the objective to the device, wrap it, build its optimizer.

        Args:
            objective: holds the model.
            make_optimizer: from (name, parameter) pairs, plain names.
            max_norm: clip the global gradient norm to this; 0: never.
            precision: ``fp32`` or ``bf16`` (autocast; State, reductions and optimizer stay fp32).
        """
        self.max_norm, self.precision = max_norm, precision
        self.objective = self.place(objective)
        named = [(plain_name(n), p) for n, p in self.objective.named_parameters()]
        self.optimizer = make_optimizer([(n, p) for n, p in named if p.requires_grad])
        self.base_lr = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.sizes = {n: p.numel() for n, p in named}  # of whole tensors: nothing is cut yet
        ids = {id(p): n for n, p in named}
        groups = self.optimizer.param_groups
        self.optimizer_names = [[ids[id(p)] for p in group["params"]] for group in groups]
        self.wrapped = self.wrap(self.objective)

    def place(self, objective: nn.Module) -> nn.Module:
        """Move the objective to where it is trained."""
        return objective.to(self.device)

    def wrap(self, objective: nn.Module) -> nn.Module:
        """The callable that forward passes go through."""
        return objective

    def microbatch(self, last: bool) -> AbstractContextManager[None]:
        """Surrounds forward AND backward of a micro-batch; only the last one reduces gradients."""
        del last
        return contextlib.nullcontext()

    def autocast(self) -> AbstractContextManager[Any]:
        """The compute precision."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def forward(self, batch: Batch, state: Any, knobs: Knobs | None) -> StepOut:
        """The objective on one micro-batch, through the wrapper."""
        with self.autocast():
            out: StepOut = self.wrapped(batch, state, knobs)
        return out

    def backward(self, loss: Tensor) -> None:
        """Add this micro-batch's gradients."""
        loss.backward()  # type: ignore[no-untyped-call]

    def grad_norm(self) -> Tensor:
        """Global norm of the gradients before clipping, on the device; clips them to max_norm."""
        parameters = [p for p in self.objective.parameters() if p.grad is not None]
        limit = self.max_norm or float("inf")
        return torch.nn.utils.clip_grad_norm_(parameters, limit)

    def step(self, lr_factor: float) -> None:
        """One optimizer step at ``lr_factor`` times the configured rates.

        No gradient counts as zero: the rates of a memory that was not written are stepped like all
        else, which is what optimizers over flat partitions do.
        """
        for group, base in zip(self.optimizer.param_groups, self.base_lr, strict=True):
            group["lr"] = base * lr_factor
            for parameter in group["params"]:
                if parameter.grad is None and not parameter.is_meta:
                    parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        parameters = self.objective.parameters()
        self.left_alone = frozenset(id(p) for p in parameters if p.grad is None)
        self.optimizer.zero_grad(set_to_none=True)

    def skip(self) -> None:
        """Forget the gradients; parameters, moments and rates stay bitwise as they are."""
        self.optimizer.zero_grad(set_to_none=True)

    def settle(self, taken: bool) -> None:
        """After a step: routers get what they counted over all ranks (collective).

        One whose parameters are frozen stays as it is, the bias of its choices too.

        Args:
            taken: whether the step was; else what was counted is forgotten.
        """
        modules: list[Any] = list(self.objective.modules())
        counting = [m for m in modules if getattr(m, "load", None) is not None]
        if not counting:
            return
        loads = [m.load for m in counting]
        totals: Any = [None] * len(loads)
        if taken:
            totals = torch.split(self.reduce(torch.cat(loads)), [len(load) for load in loads])
        for module, total in zip(counting, totals, strict=True):
            module.rebalance(total if self._learns(module) else None)

    def _learns(self, module: nn.Module) -> bool:
        """Whether the last step trained a module: by policy, and by what the optimizer took."""
        free = [p for p in module.parameters() if p.requires_grad]
        return any(id(p) not in self.left_alone for p in free)

    def reduce(self, values: Tensor) -> Tensor:
        """Elementwise sum over ranks of a device tensor; stays on the device."""
        return values

    def sum(self, value: float) -> float:
        """Sum over ranks of a host number."""
        return value

    def max(self, value: float) -> float:
        """Maximum over ranks of a host number."""
        return value

    def broadcast(self, value: Any) -> Any:
        """Rank 0's plain value on every rank."""
        return value

    def first(self, action: Callable[[], Any]) -> Any:
        """Do ``action`` on rank 0 only; every rank gets its plain result or its complaint.

        Raises:
            ConfigError: on every rank, with rank 0's message.
        """
        result, complaint = None, None
        if self.rank == 0:
            try:
                result = action()
            except (ValueError, OSError) as error:
                complaint = str(error)
        result, complaint = self.broadcast((result, complaint))
        if complaint is not None:
            raise LaunchError(complaint, self.rank == 0)
        return result

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """The objective in eval mode without gradients, for use between steps."""
        training = self.objective.training
        self.objective.eval()
        try:
            with torch.no_grad(), self.autocast():
                yield self.objective
        finally:
            self.objective.train(training)

    def full_model(self) -> dict[str, Tensor]:
        """The model's whole tensors by plain name (collective); empty on ranks other than 0."""
        state: Mapping[str, Tensor] = self.objective.state_dict() if self.rank == 0 else {}
        named = model_tensors(state)
        return {n: t for n, t in named.items() if not n.startswith(OBJECTIVE)}

    def capture(self) -> Write:
        """Copy model and optimizer to the host (collective; rank 0 holds the copies).

        Returns:
            What writes the copies into a folder: no collective, from any thread.
        """
        if self.rank != 0:
            return _write_nothing
        model = host_tensors(model_tensors(self.objective.state_dict()))
        named: dict[str, Tensor] = {}
        skeleton = pack(self.optimizer.state_dict(), named, "optim")
        moments = host_tensors(named)
        facts = {"parameters": self.optimizer_names, "state": skeleton}

        def write(folder: Path) -> None:
            write_tensors(folder / "model.safetensors", *model)
            write_tensors(folder / "optim.safetensors", *moments)
            write_json(folder / "optim.json", facts)

        return write

    def save(self, folder: Path) -> None:
        """Write model and optimizer (collective; rank 0 writes)."""
        self.capture()(folder)

    def load(self, folder: Path) -> None:
        """Read model and optimizer back, strictly (collective).

        Raises:
            ConfigError: names or shapes differ from this objective's; the message lists them.
        """
        saved = read_saved(folder)
        own = {plain_name(k): k for k in self.objective.state_dict()}
        found = {objective_name(n): t for n, t in saved.model.items()}
        check_names(folder / "model.safetensors", set(own), set(found))
        try:
            self.objective.load_state_dict({own[n]: t for n, t in found.items()})
        except RuntimeError as error:
            raise ConfigError(f"{folder / 'model.safetensors'}: {error}") from error
        check_groups(folder, self.optimizer_names, saved.optimizer.parameters)
        self.optimizer.load_state_dict(saved.state_dict())

    def barrier(self) -> None:
        """Wait for every rank."""

    def close(self) -> None:
        """Leave the process group."""


def _write_nothing(folder: Path) -> None:
    """What a rank without copies writes."""
