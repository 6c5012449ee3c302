"""Fully sharded data parallel (FSDP2): every tensor cut over the ranks by its rows. Floor 4.

Each shard unit (block) is gathered for its own forward and backward pass. The root holds what is
read outside them (embedding, head, norm, the levels, which are written after the head has spoken)
and stays gathered from the first forward call to the end of the backward pass. Gathering the levels
costs little: a memory that is written keeps a copy of its weights per row anyway.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.fsdp._fully_shard import _fsdp_param_group as internals
from torch.distributed.tensor import DTensor

from nl.config import require
from nl.config.run import FSDPConfig, RunConfig
from nl.core.protocols import Capabilities
from nl.dist.base import Write
from nl.dist.cut import capture_cut, load_cut
from nl.dist.group import Distributed
from nl.dist.serial import OBJECTIVE, model_tensors, plain_name
from nl.dist.whole import WholeMatrices


class _PostBackward:
    """Stands in for torch's hook at the inputs of a unit; only inputs with a gradient count.

    Torch's is one autograd node over all of them, and hands zeros or nothing to the inputs that
    the loss does not reach: the backward pass of a write that nobody reads would run, and the
    optimizer would move parameters that have no gradient on one device.
    """

    @staticmethod
    def apply(group: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors, with ``group.post_backward`` called after the last of their gradients."""
        marked = tuple(tensor.view_as(tensor) for tensor in tensors)
        register_multi_grad_hook(marked, lambda _: group.post_backward())
        return marked


class FSDP2(Distributed):
    """Parameters, gradients and optimizer state are cut over the ranks."""

    name = "fsdp2"
    capabilities = Capabilities(
        inner_autograd=False,
        grad_through_write=True,
        whole_neurons=False,
        segments=False,
        late_changes=False,
    )
    options = FSDPConfig()

    def configure(self, run: RunConfig) -> None:
        """See the base class."""
        require(
            not run.fsdp.cpu_offload or self.device.type != "cpu",
            "fsdp.cpu_offload: true, but training runs on the CPU already; set it to false.",
        )
        self.options = run.fsdp

    def place(self, objective: nn.Module) -> nn.Module:
        """Where it is: sharding moves a part of it to the device, unit by unit."""
        return objective

    def wrap(self, objective: nn.Module) -> nn.Module:
        """Shard in place, then hand the sharded parameters to the optimizer."""
        _register_post_backward()
        # A State leaves its unit as views; nothing writes into them.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        model: Any = getattr(objective, "model", objective)
        self.units: list[Any] = list(getattr(model, "shard_units", list)())
        # A unit that runs many times in one call is reduced once, after the backward pass.
        self.once = bool(getattr(model, "taught", False))
        self._shard(objective)
        root: Any = objective
        self.root: FSDPModule = root
        self.root.set_manual_backward_finalization(self.once)
        # Each of its runs would gather it again on the way back.
        self.kept = self.once and not self.options.reshard_after_forward
        for unit in self.units:
            unit.set_reshard_after_backward(not self.kept)
        self._hand_over()
        return objective

    def _shard(self, objective: nn.Module) -> None:
        """The root first: what it holds is left out of the units."""
        mesh = init_device_mesh(self.device.type, (self.world,))
        offload = CPUOffloadPolicy() if self.options.cpu_offload else OffloadPolicy()
        common: dict[str, Any] = {"mesh": mesh, "offload_policy": offload}
        between = {p for unit in self.units for p in read_between_units(unit)}
        inside = {p for unit in self.units for p in unit.parameters()} - between
        keep = MixedPrecisionPolicy(cast_forward_inputs=False)
        fully_shard(
            objective,
            ignored_params=inside,
            reshard_after_forward=False,
            mp_policy=keep,
            **common,
        )
        held = set(objective.parameters()) - inside
        for unit in self.units:
            low = self._low(unit)
            policy = keep if not low else _low_precision(low)
            fully_shard(
                unit,
                ignored_params=held,
                reshard_after_forward=self.options.reshard_after_forward,
                mp_policy=policy,
                **common,
            )

    def _low(self, unit: nn.Module) -> set[nn.Parameter]:
        """Weights that autocast would round anyway: they are gathered in bf16.

        Memories and all they are read and written with stay fp32. So does a unit that runs many
        times: its gradients would be added up in bf16.
        """
        if self.precision != "bf16" or self.once:
            return set()
        linear = [m for m in outside_memories(unit) if isinstance(m, nn.Linear)]
        return {p for m in linear for n, p in m.named_parameters() if n == "weight"}

    def _hand_over(self) -> None:
        """Sharded parameters take the places of the whole ones in the optimizer's groups."""
        named: dict[str, Any] = {plain_name(n): p for n, p in self.objective.named_parameters()}
        groups = list(zip(self.optimizer.param_groups, self.optimizer_names, strict=True))
        whole = {n: named[n] for group, names in groups if group.get("whole") for n in names}
        self.whole = WholeMatrices(whole, self.rank, self.world)
        for group, names in groups:
            group["params"] = [self.whole.held.get(n, named[n]) for n in names]

    @contextlib.contextmanager
    def microbatch(self, last: bool) -> Iterator[None]:
        """Gradients of earlier micro-batches are kept whole, in fp32, until the last one."""
        self.last = last
        self.root.set_requires_gradient_sync(last and not self.once)
        yield

    def backward(self, loss: Tensor) -> None:
        """Add this micro-batch's gradients; the last one reduces them."""
        loss.backward()  # type: ignore[no-untyped-call]
        if self.once and self.last:
            self.root.set_requires_gradient_sync(True)
            self.root.finalize_backward()
            for unit in self.units if self.kept else ():
                unit.reshard()

    @torch.no_grad()
    def grad_norm(self) -> Tensor:
        """See the base class; the norm is that of the whole gradient."""
        grads = [local(p.grad) for p in self.objective.parameters() if p.grad is not None]
        square = torch.zeros((), device=self.device)
        if grads:
            square = torch.stack(torch._foreach_norm(grads)).square().sum()
        norm = self.reduce(square.to(self.device)).sqrt()
        if self.max_norm:
            shrink = torch.clamp(self.max_norm / (norm + 1e-6), max=1.0)
            for grad in grads:
                grad.mul_(shrink.to(grad.device))
        return norm

    def step(self, lr_factor: float) -> None:
        """See the base class; matrices that are updated whole are gathered on one rank each."""
        self.whole.gather()
        super().step(lr_factor)
        self.whole.scatter()

    def skip(self) -> None:
        """See the base class."""
        super().skip()
        self.whole.forget()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """See the base class; the whole model is gathered on every rank meanwhile (collective)."""
        modules: list[FSDPModule] = [*self.units, self.root]
        with super().evaluating() as objective:
            for module in modules:
                module.unshard()
                module.set_reshard_after_forward(False, recurse=False)
            try:
                yield objective
            finally:
                for module in modules:
                    module.reshard()
                    again = self.options.reshard_after_forward and module is not self.root
                    module.set_reshard_after_forward(again, recurse=False)

    def capture(self) -> Write:
        """See the base class; every rank holds and writes its shards."""
        return capture_cut(self.objective, self.optimizer, self.optimizer_names, self.rank)

    def load(self, folder: Path) -> None:
        """See the base class; each rank reads its part, whatever wrote the checkpoint."""
        named: dict[str, Any] = {plain_name(n): p for n, p in self.objective.named_parameters()}
        held = named | self.whole.held
        load_cut(folder, self.objective, self.optimizer, self.optimizer_names, held)
        self.whole.refresh()

    def full_model(self) -> dict[str, Tensor]:
        """See the base class."""
        named = {}
        for name, tensor in model_tensors(self.objective.state_dict()).items():
            full = whole_tensor(tensor)
            if self.rank == 0 and not name.startswith(OBJECTIVE):
                named[name] = full.to("cpu")
        return named


def _register_post_backward() -> None:
    internals.RegisterPostBackwardFunction = _PostBackward  # type: ignore[assignment, misc]


def read_between_units(unit: nn.Module) -> set[nn.Parameter]:
    """Parameters of modules that say that they are read outside their unit's forward pass."""
    return {
        p
        for module in unit.modules()
        if getattr(module, "read_between_units", False)
        for p in module.parameters()
    }


def outside_memories(unit: nn.Module) -> Iterator[nn.Module]:
    """Modules of a unit that neither are nor lie in a memory."""
    memory = bool(getattr(unit, "memory_parameters", getattr(unit, "shortest_period", 0) > 0))
    if hasattr(unit, "shortest_period") or memory:
        return
    yield unit
    for child in unit.children():
        yield from outside_memories(child)


def _low_precision(low: set[nn.Parameter]) -> MixedPrecisionPolicy:
    return MixedPrecisionPolicy(
        param_dtype=torch.bfloat16,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
        param_dtype_override_fn=lambda p: None if p in low else p.dtype,
    )


def local(tensor: Tensor | None) -> Tensor:
    """This rank's part of a tensor, its own memory."""
    assert tensor is not None
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor, on every rank (collective where it is sharded)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
