"""Matrices whose optimizer needs all of them: each lives whole on one rank, beside its shards.

Muon and its kin orthogonalise a matrix; a shard of it is another matrix. So every such matrix has
an owner, chosen so that all ranks own about as much. Before a step the owner gathers its gradient,
steps with its own whole copy and its own whole optimizer state, and scatters the result. What
travels is what one gathering and one reduction of the matrix cost. Floor 4.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class WholeMatrices:
    """Whole copies of some sharded parameters, each on the rank that owns it.

    Attributes:
        held: by name, the parameter that the optimizer steps: the whole matrix on its owner, a
            place without memory, which never has a gradient, on the others.
    """

    def __init__(self, sharded: Mapping[str, DTensor], rank: int, world: int) -> None:
        self.sharded, self.rank, self.world = dict(sharded), rank, world
        self.owner = owners({n: p.numel() for n, p in sharded.items()}, world)
        self.held: dict[str, nn.Parameter] = {}
        for name, parameter in self.sharded.items():
            device = parameter.to_local().device if self.owner[name] == rank else "meta"
            held = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            self.held[name] = nn.Parameter(held)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Read the whole copies from the shards (collective)."""
        for name, parameter in self.sharded.items():
            full = self._gather(parameter, self.owner[name])
            if full is not None:
                self.held[name].copy_(full)

    @torch.no_grad()
    def gather(self) -> None:
        """Bring the gradients of the shards to the owners (collective)."""
        for name, parameter in self.sharded.items():
            if parameter.grad is not None:
                self.held[name].grad = self._gather(parameter.grad, self.owner[name])

    @torch.no_grad()
    def scatter(self) -> None:
        """Bring the owners' matrices to the shards, and forget their gradients (collective)."""
        for name, parameter in self.sharded.items():
            self._scatter(self.held[name], parameter, self.owner[name])
        self.forget()

    def forget(self) -> None:
        """Drop the gradients."""
        for name, parameter in self.sharded.items():
            parameter.grad = self.held[name].grad = None

    def _rows(self, tensor: Tensor) -> int:
        """Rows of the first shard: the last ones may have fewer or none."""
        return -(-tensor.shape[0] // self.world)

    def _gather(self, sharded: Tensor, owner: int) -> Tensor | None:
        assert isinstance(sharded, DTensor)
        part = sharded.to_local()
        padded = part.new_zeros(self._rows(sharded), *sharded.shape[1:])
        padded[: len(part)] = part
        here = self.rank == owner
        parts = [torch.empty_like(padded) for _ in range(self.world)] if here else None
        dist.gather(padded, parts, dst=owner)
        return None if parts is None else torch.cat(parts)[: sharded.shape[0]]

    def _scatter(self, whole: Tensor, sharded: DTensor, owner: int) -> None:
        part, rows = sharded.to_local(), self._rows(sharded)
        received = part.new_empty(rows, *sharded.shape[1:])
        parts = None
        if self.rank == owner:
            padded = whole.new_zeros(rows * self.world, *whole.shape[1:])
            padded[: len(whole)] = whole
            parts = list(torch.split(padded, rows))
        dist.scatter(received, parts, src=owner)
        part.copy_(received[: len(part)])


def owners(sizes: Mapping[str, int], world: int) -> dict[str, int]:
    """An owner for every name: the largest first, each to the rank that owns least so far."""
    owned, found = [0] * world, {}
    for name in sorted(sizes, key=lambda n: (-sizes[n], n)):
        found[name] = owned.index(min(owned))
        owned[found[name]] += sizes[name]
    return found
