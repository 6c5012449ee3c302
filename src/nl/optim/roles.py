"""What each parameter is: hidden matrix, part of a memory, weight of a neuron. Floor 1.

Decided by module, never by a word in a name. A module class may declare, for the parameters below
it (the innermost declaration wins):

- ``memory_parameters: bool``: they are a memory's meta parameters; a module that writes every
  ``shortest_period`` > 0 tokens is a memory unless it says otherwise;
- ``hidden_matrices: dict[str, bool]``: relative dotted name -> whether it is a hidden matrix;
- ``neuron_axes: dict[str, int]``: relative dotted name -> the axis that counts neurons;
- ``neuron_degree: int``: degree in which the weights of one neuron enter the output.

Without a word about it, a hidden matrix is the 2-D weight of an ``nn.Linear`` inside one of the
model's ``shard_units()``: embedding, head, norms, biases, convolutions and stacks are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

NamedParameters = list[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class Role:
    """What the optimizers and policies need to know of one parameter."""

    matrix: bool = False
    """A 2-D matrix between hidden layers."""
    memory: bool = False
    """A meta parameter of a memory: initial weights, projections, gates."""
    neurons: tuple[str, int] | None = None
    """The population of neurons it belongs to and the axis that counts them."""
    degree: int | None = None
    """Degree of the model's output in the weights of one such neuron, where there is one."""


Roles = Mapping[str, Role]


def parameter_roles(objective: nn.Module) -> dict[str, Role]:
    """The role of every parameter by its name in ``objective.named_parameters()``."""
    model = getattr(objective, "model", objective)
    shard_units: Any = getattr(model, "shard_units", list)
    units = {id(unit) for unit in shard_units()}
    return {name: _role(objective, name, p, units) for name, p in objective.named_parameters()}


def _role(objective: nn.Module, name: str, parameter: nn.Parameter, units: set[int]) -> Role:
    memory, matrix, neurons, degree = False, None, None, None
    inside, owner = False, objective
    for path, rest, module in _owners(objective, name):
        inside = inside or id(owner) in units
        owner = module
        declared: Any = getattr(module, "memory_parameters", None)
        period: Any = getattr(module, "shortest_period", 0)
        memory = bool(declared) if declared is not None else memory or period > 0
        matrix = getattr(module, "hidden_matrices", {}).get(rest, matrix)
        axis = getattr(module, "neuron_axes", {}).get(rest)
        if axis is not None:
            neurons, degree = (path, int(axis)), getattr(module, "neuron_degree", None)
    if matrix is None:
        matrix = inside and isinstance(owner, nn.Linear)
    return Role(
        matrix=matrix and parameter.ndim == 2, memory=memory, neurons=neurons, degree=degree
    )


def _owners(objective: nn.Module, name: str) -> Iterator[tuple[str, str, nn.Module]]:
    """(path, rest of the name, module) of every module around a parameter, outermost first."""
    words = name.split(".")
    for depth in range(len(words)):
        path = ".".join(words[:depth])
        yield path, ".".join(words[depth:]), objective.get_submodule(path)


def split_matrices(named: NamedParameters, roles: Roles) -> tuple[NamedParameters, NamedParameters]:
    """Hidden matrices, and everything else."""
    matrices = [(n, p) for n, p in named if roles[n].matrix]
    return matrices, [(n, p) for n, p in named if not roles[n].matrix]
