"""Model and optimizer of sharded training to and from a checkpoint. Floor 4."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from nl.config import ConfigError
from nl.dist.base import Write
from nl.dist.dcp import entries, read_sharded
from nl.dist.layout import is_sharded
from nl.dist.saved import (
    MODEL,
    OPTIM,
    OptimizerFacts,
    capture_parts,
    check_groups,
    check_names,
    read_facts,
    read_saved,
    split_slot,
)
from nl.dist.serial import model_tensors

Held = Mapping[str, Tensor]
"""By name, the parameters as the optimizer holds them; on the meta device: held by another rank."""


def capture_cut(
    objective: nn.Module, optimizer: torch.optim.Optimizer, names: list[list[str]], rank: int
) -> Write:
    """Copy this rank's shards of model and optimizer to the host (not collective).

    Args:
        objective: its sharded state_dict is stored.
        optimizer: its state is stored by parameter, whichever rank has it.
        names: of its parameters, by group.
        rank: of this process.

    Returns:
        What writes the copies into a folder, from any thread.
    """
    state = optimizer.state_dict()
    facts = OptimizerFacts(names, state["param_groups"], {})
    slots = {facts.names[i]: held for i, held in state["state"].items()}
    return capture_parts(model_tensors(objective.state_dict()), facts, slots, rank=rank)


def load_cut(
    folder: Path,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    names: list[list[str]],
    held: Held,
) -> None:
    """Read this rank's part of model and optimizer, of either format (not collective).

    Raises:
        ConfigError: made for another model; the message lists the names.
    """
    read = _read_sharded if is_sharded(folder) else _read_plain
    own = model_tensors(objective.state_dict())
    state = read(folder, own, names, held)
    optimizer.load_state_dict(state)


def _read_sharded(
    folder: Path, own: dict[str, Tensor], names: list[list[str]], held: Held
) -> dict[str, Any]:
    stored, facts = entries(folder), read_facts(folder)
    check_names(folder, set(own), {n.removeprefix(MODEL) for n in stored if n.startswith(MODEL)})
    check_groups(folder, names, facts.parameters)
    wanted = {MODEL + name: tensor for name, tensor in own.items()}
    slots: dict[str, dict[str, Any]] = {}
    for key, entry in stored.items():
        if not key.startswith(OPTIM):
            continue
        name, slot = split_slot(key.removeprefix(OPTIM))
        if name in held and not held[name].is_meta:
            wanted[key] = _like(held[name], entry.shape, entry.dtype)
            slots.setdefault(name, {})[slot] = wanted[key]
    read_sharded(folder, wanted)
    for name, values in facts.values.items():
        if name in held and not held[name].is_meta:
            slots.setdefault(name, {}).update(values)
    return _state_dict(facts, slots)


def _read_plain(
    folder: Path, own: dict[str, Tensor], names: list[list[str]], held: Held
) -> dict[str, Any]:
    saved = read_saved(folder)
    check_names(folder, set(own), set(saved.model))
    check_groups(folder, names, saved.optimizer.parameters)
    for name, tensor in own.items():
        if tensor.shape != saved.model[name].shape:
            raise ConfigError(
                f"{folder}: {name} is {tuple(saved.model[name].shape)}, wanted "
                f"{tuple(tensor.shape)}; made for another model."
            )
        _fill(tensor, saved.model[name])
    slots: dict[str, dict[str, Any]] = {}
    for name, found in saved.slots.items():
        if name not in held or held[name].is_meta:
            continue
        slots[name] = dict(found)
        for slot, value in found.items():
            if isinstance(value, Tensor):
                slots[name][slot] = _like(held[name], value.shape, value.dtype)
                _fill(slots[name][slot], value)
    return _state_dict(saved.optimizer, slots)


def _like(parameter: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Zeros for a slot: cut like its parameter where it has its shape, else whole."""
    if parameter.shape == shape:
        return torch.zeros_like(parameter.detach(), dtype=dtype)
    device = parameter.to_local().device if isinstance(parameter, DTensor) else parameter.device
    return torch.zeros(shape, dtype=dtype, device=device)


def _fill(tensor: Tensor, whole: Tensor) -> None:
    """Copy this rank's rows of a whole tensor."""
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        tensor.copy_(whole)
        return
    part = tensor.to_local()
    parts = whole.chunk(tensor.device_mesh.size())
    here = tensor.device_mesh.get_local_rank()
    if here < len(parts):
        part.copy_(parts[here])


def _state_dict(facts: OptimizerFacts, slots: dict[str, dict[str, Any]]) -> dict[str, Any]:
    state = {i: slots[name] for i, name in enumerate(facts.names) if name in slots}
    return {"state": state, "param_groups": facts.groups}
