"""ZeRO: optimizer state (1), gradients (2) and parameters (3) cut over the ranks. Floor 4.

DeepSpeed's engine does what it is good at, gathering, reducing and updating flat partitions. The
loop, the optimizer, the schedule, the precision (autocast over fp32 weights) and checkpoints stay
those of every other strategy: a checkpoint is written whole, in the files that single-device
training writes, so any number of ranks and any strategy can go on from it. arXiv:1910.02054.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nl.config import ConfigError, require
from nl.config.run import RunConfig
from nl.core.batch import Batch
from nl.core.output import Knobs, StepOut
from nl.core.protocols import Capabilities
from nl.dist.base import Write
from nl.dist.deepspeed_config import ZERO, merged
from nl.dist.env import local_rank, select_device
from nl.dist.group import Distributed
from nl.dist.saved import OptimizerFacts, Saved, check_groups, check_names, read_saved, write_plain
from nl.dist.serial import OBJECTIVE, model_tensors, objective_name, plain_name


class DeepSpeed(Distributed):
    """Stages 1, 2 and 3 of ZeRO, by the JSON of ``deepspeed.config``."""

    name = "deepspeed"
    capabilities = Capabilities(
        inner_autograd=False,
        grad_through_write=True,
        whole_matrices=False,
        whole_neurons=False,
        segments=False,
        late_changes=False,
    )

    @classmethod
    def ready(cls, run: RunConfig) -> dict[str, Any]:
        """See the base class."""
        require(
            importlib.util.find_spec("deepspeed") is not None,
            "deepspeed: not installed; uv sync --extra deepspeed, or launch train_fsdp.py.",
        )
        engine = merged(run, 1)
        package = import_deepspeed(select_device(run.train.device, local_rank()))
        return super().ready(run) | {"deepspeed": package.__version__, "engine": engine}

    def configure(self, run: RunConfig) -> None:
        """See the base class."""
        super().configure(run)
        self.config = merged(run, self.world)
        self.stage: int = self.config[ZERO]["stage"]
        if self.stage < 3:
            self.capabilities = replace(self.capabilities, inner_autograd=True)
        require(
            not run.train.compile,
            "train.compile: true; not known to work under deepspeed: set train.compile=false or "
            "launch train_dist.py.",
        )

    def place(self, objective: nn.Module) -> nn.Module:
        """See the base class; stage 3 keeps an empty twin, whose parameters are never cut."""
        objective = objective.to(self.device)
        self.twin = objective
        if self.stage == 3:
            self.twin = copy.deepcopy(objective, {id(self): self}).to("meta")
        return objective

    def wrap(self, objective: nn.Module) -> nn.Module:
        """The engine: it takes parameters and optimizer apart into flat partitions."""
        groups = self.optimizer.param_groups
        self.group_facts = [{k: v for k, v in g.items() if k != "params"} for g in groups]
        self.named = [(n, p) for n, p in objective.named_parameters(remove_duplicate=False)]
        for _, parameter in objective.named_parameters():
            if parameter.requires_grad:  # before the engine's own hooks
                hooked: Any = parameter
                hooked.register_post_accumulate_grad_hook(_no_gradient_is_zero)
        deepspeed = import_deepspeed(self.device)
        os.environ.setdefault("LOCAL_RANK", "0")  # the engine wants it of a process alone, too
        self.engine, self.zero, _, _ = deepspeed.initialize(
            model=Computing(objective, self), optimizer=self.optimizer, config=self.config
        )
        wrapped: nn.Module = self.engine
        return wrapped

    @contextlib.contextmanager
    def microbatch(self, last: bool) -> Iterator[None]:
        """Stage 1 reduces after the last micro-batch, the others after each."""
        self.engine.set_gradient_accumulation_boundary(last)
        yield

    def forward(self, batch: Batch, state: Any, knobs: Knobs | None) -> StepOut:
        """See the base class; the precision is set inside the engine, which has its own."""
        out: StepOut = self.wrapped(batch, state, knobs)
        return out

    def backward(self, loss: Tensor) -> None:
        """Add this micro-batch's gradients; the engine averages over ranks, not over batches."""
        self.engine.backward(loss, scale_wrt_gas=False)

    def grad_norm(self) -> Tensor:
        """Global norm of the gradients before clipping; ``step`` clips."""
        if self.stage == 3:
            from_groups = self.zero._get_norm_groups()
            norm = torch.stack([n.to(self.device) for n in from_groups])
            norm = torch.where((norm < 0).any(), torch.nan, torch.linalg.vector_norm(norm))
        else:
            norm = torch.as_tensor(self.zero.scaled_global_norm(), device=self.device)
        return torch.where(norm < 0, torch.nan, norm)  # the engine says -1 for what is not finite

    def step(self, lr_factor: float) -> None:
        """See the base class."""
        for group, base in zip(self.optimizer.param_groups, self.base_lr, strict=True):
            group["lr"] = base * lr_factor
        self._end_step()

    def _end_step(self) -> None:
        """Let the engine step or refuse.

        Stage 3 adds to what an earlier step left where a parameter had no part in the first
        micro-batch, and steps by that alone where it had none in any: nothing is left there.
        """
        self.engine.set_gradient_accumulation_boundary(True)
        self.engine.step()
        if self.stage == 3:
            self.zero.grad_partitions_flat_buffer.zero_()

    def skip(self) -> None:
        """Have the engine refuse the step as it refuses one that overflows."""
        for parts in self.zero.averaged_gradients.values():
            for part in parts or ():
                part.fill_(torch.nan)
        self._end_step()
        assert not self.engine.was_step_applied()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """See the base class; stage 3 gathers the whole model on every rank meanwhile."""
        whole = self.twin
        if self.stage == 3:
            whole = self.twin.to_empty(device=self.device)
            held = dict(whole.named_buffers()) | whole.state_dict()
            held = {plain_name(name): tensor for name, tensor in held.items()}
            for name, tensor in self._whole():
                held[name].copy_(tensor.detach())
        training = self.objective.training
        whole.eval()
        try:
            with torch.no_grad(), self.autocast():
                yield whole
        finally:
            whole.train(training)
            if self.stage == 3:
                self.twin = self.twin.to("meta")

    def full_model(self) -> dict[str, Tensor]:
        """See the base class."""
        named = model_tensors(self._state_dict())
        return {n: t for n, t in named.items() if not n.startswith(OBJECTIVE)}

    def capture(self) -> Write:
        """See the base class; rank 0 holds the whole of it."""
        model = model_tensors(self._state_dict())
        slots = self._slots()
        numbers = iter(range(len(self.named)))
        groups = [
            {**facts, "lr": group["lr"], "params": [next(numbers) for _ in names]}
            for facts, group, names in zip(
                self.group_facts, self.optimizer.param_groups, self.optimizer_names, strict=True
            )
        ]
        saved = Saved(model, OptimizerFacts(self.optimizer_names, groups, {}), slots)
        return lambda folder: write_plain(folder, saved) if self.rank == 0 else None

    def load(self, folder: Path) -> None:
        """See the base class; whatever strategy and number of ranks wrote it."""
        saved = read_saved(folder)
        found = {objective_name(n): t for n, t in saved.model.items()}
        where = folder / "model.safetensors"
        own = {plain_name(n): t for n, t in self.twin.state_dict().items()}
        check_names(where, set(own), set(found))
        for name, tensor in own.items():
            require(
                tensor.shape == found[name].shape,
                f"{where}: {name} is {tuple(found[name].shape)}, wanted {tuple(tensor.shape)}; "
                "made for another model.",
            )
        check_groups(folder, self.optimizer_names, saved.optimizer.parameters)
        self._fill_model(found)
        self._fill_slots(folder, saved)

    def _whole(self) -> Iterator[tuple[str, Tensor]]:
        """The objective's tensors, one whole tensor at a time on every rank (collective)."""
        cut = {id(p) for _, p in self.named} if self.stage == 3 else set()
        kept = self.objective.state_dict(keep_vars=True)
        for name, tensor in (dict(self.objective.named_buffers()) | kept).items():
            with self._gathered(tensor) if id(tensor) in cut else contextlib.nullcontext():
                yield plain_name(name), tensor

    def _state_dict(self) -> dict[str, Tensor]:
        """The objective's whole state_dict on the host of rank 0, empty elsewhere (collective)."""
        names = {plain_name(name) for name in self.objective.state_dict()}
        found, copies = {}, dict[int, Tensor]()
        for name, tensor in self._whole():
            if self.rank == 0 and name in names:
                if id(tensor) not in copies:
                    copies[id(tensor)] = tensor.detach().to("cpu", copy=True)
                found[name] = copies[id(tensor)]
        return found

    def _gathered(self, parameter: Tensor, writer: int | None = None) -> Any:
        """Stage 3: the parameter is whole inside; what rank ``writer`` sets is everyone's."""
        if self.stage != 3:
            return contextlib.nullcontext()
        zero = import_deepspeed(self.device).zero
        return zero.GatheredParameters([parameter], modifier_rank=writer)

    def _slots(self) -> dict[str, dict[str, Any]]:
        """By parameter, its whole slots in the optimizer, on the host of rank 0 (collective)."""
        held = self.optimizer.state.get(self._flats()[0], {})
        if not held:
            return {}
        self._link_slots()
        tools = import_deepspeed(self.device).utils
        parameters = {plain_name(n): p for n, p in self.named}
        found: dict[str, dict[str, Any]] = {}
        for name in (n for group in self.optimizer_names for n in group):
            slots = found.setdefault(name, {})
            for slot, value in held.items():
                if isinstance(value, Tensor) and value.ndim:
                    whole = tools.safe_get_full_optimizer_state(parameters[name], slot)
                    value = whole.to("cpu", copy=True) if self.rank == 0 else None
                elif isinstance(value, Tensor):
                    value = value.to("cpu", copy=True)
                slots[slot] = value
        return found

    def _link_slots(self) -> None:
        """Stages 1 and 2: the engine links slots to parameters before all groups have theirs."""
        if self.stage != 3:
            self.zero._hp_optimizer_states_linked = False
            self.zero._lazy_init_hp_params_optimizer_state()

    def _flats(self) -> list[Tensor]:
        """The flat partitions of this rank that the optimizer updates."""
        stage3 = self.stage == 3
        found: list[Tensor] = (
            self.zero.fp32_partitioned_groups_flat
            if stage3
            else self.zero.single_partition_of_fp32_groups
        )
        return found

    @torch.no_grad()
    def _fill_model(self, found: dict[str, Tensor]) -> None:
        tools = import_deepspeed(self.device).utils
        parameters = {id(p) for _, p in self.named}
        for name, tensor in self.objective.state_dict(keep_vars=True).items():
            if id(tensor) not in parameters:
                tensor.copy_(found[plain_name(name)])
        for name, parameter in self.named:
            value = found[plain_name(name)].to(self.device)
            with self._gathered(parameter, writer=0):
                if self.stage != 3 or self.rank == 0:
                    parameter.data.copy_(value)
            if parameter.requires_grad:
                tools.safe_set_full_fp32_param(parameter, value)

    @torch.no_grad()
    def _fill_slots(self, folder: Path, saved: Saved) -> None:
        """Slots of every parameter into the flat partitions; scalars have to be equal."""
        self.optimizer.state.clear()
        if not saved.slots:
            return
        first = next(iter(saved.slots.values()))
        for flat in self._flats():
            self.optimizer.state[flat] = {
                slot: torch.zeros_like(flat) if value.ndim else value.to(flat.device, copy=True)
                for slot, value in first.items()
            }
        self._link_slots()
        tools = import_deepspeed(self.device).utils
        parameters = {plain_name(n): p for n, p in self.named}
        for name, slots in saved.slots.items():
            for slot, value in slots.items():
                if value.ndim:
                    parameter = parameters[name]
                    tools.safe_set_full_optimizer_state(parameter, value.to(self.device), slot)
                elif not torch.equal(value, first[slot]):
                    raise ConfigError(
                        f"{folder}: {slot} of {name} is {value.item()}, of others "
                        f"{first[slot].item()}; ZeRO steps all tensors alike: resume with the "
                        "strategy that wrote it."
                    )


def _no_gradient_is_zero(parameter: Tensor) -> None:
    """A memory that was not written leaves its rates without a gradient; the engine wants one."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)


class Computing(nn.Module):
    """The objective in the compute precision, which the engine would switch off around itself."""

    def __init__(self, objective: nn.Module, strategy: DeepSpeed) -> None:
        super().__init__()
        self.module = objective
        self._strategy = [strategy]

    def forward(self, batch: Batch, state: Any, knobs: Knobs | None) -> StepOut:
        with self._strategy[0].autocast():
            out: StepOut = self.module(batch, state, knobs)
        return out


def import_deepspeed(device: torch.device) -> Any:
    """The package, quiet, for this device.

    On a CPU it would try which of its operations can be compiled, and compile one for shared
    memory at the first start; gloo does the same work.
    """
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops

    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__ = {}
    deepspeed.utils.logger.setLevel("WARNING")
    return deepspeed
