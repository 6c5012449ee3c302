"""What strategies over several processes share: the group and its small collectives. Floor 4."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from nl.dist.base import Strategy
from nl.dist.env import init_group, local_rank, select_device
from nl.dist.meeting import met


class Peers:
    """The ranks of a launch that share an evaluation: each gets what all of them found."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    @classmethod
    def join(cls, device: str) -> tuple[torch.device, Self]:
        """This rank's device and its peers; the ranks have met."""
        here = select_device(device, local_rank())
        meeting = met()
        return here, cls(*init_group(here, meeting.store if meeting is not None else None))

    def gather(self, value: Any) -> list[Any]:
        """What every rank gave, in their order (gloo)."""
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()


class Distributed(Strategy):
    """torchrun with any number of processes, or plain python as one."""

    @classmethod
    def start(cls, device: str) -> Self:
        """Join the process group on this rank's device."""
        here = select_device(device, local_rank())
        meeting = met()
        rank, world = init_group(here, meeting.store if meeting is not None else None)
        return cls(here, rank, world)

    def reduce(self, values: Tensor) -> Tensor:
        """Elementwise sum over ranks."""
        dist.all_reduce(values)
        return values

    def sum(self, value: float) -> float:
        """Sum over ranks of a host number (gloo: no device sync)."""
        return self._host(value, dist.ReduceOp.SUM)

    def max(self, value: float) -> float:
        """Maximum over ranks of a host number (gloo: no device sync)."""
        return self._host(value, dist.ReduceOp.MAX)

    def _host(self, value: float, op: Any) -> float:
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(tensor, op)
        return tensor.item()

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value on every rank."""
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def barrier(self) -> None:
        """Wait for every rank (gloo)."""
        self._host(0.0, dist.ReduceOp.MAX)

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()
