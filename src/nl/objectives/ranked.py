"""What objectives with buffers of their own share: working as one of several ranks. Floor 3."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from nl.objectives.next_token import NextToken, NextTokenConfig

Reduce = Callable[[Tensor], Tensor]


class Ranked(NextToken):
    """An objective whose buffers are equal on all ranks, though each sees its rows alone."""

    def __init__(self, config: NextTokenConfig, model: nn.Module) -> None:
        super().__init__(config, model)
        self.reduce: Reduce | None = None
        self.rank, self.world = 0, 1

    def spread(self, reduce: Reduce, rank: int, world: int) -> None:
        """Work as one of several ranks; ``reduce`` sums a tensor over them."""
        self.reduce, self.rank, self.world = (reduce if world > 1 else None), rank, world

    def summed(self, value: int, like: Tensor) -> Tensor | int:
        """The sum of a number of every rank (collective), where ``like`` is."""
        return value if self.reduce is None else self.reduce(like.new_full((), value))

    def everyones(self, rows: Tensor) -> Tensor:
        """This rank's rows (B, ...) -> those of all ranks in order, (B world, ...)."""
        if self.reduce is None:
            return rows
        share = len(rows)
        every = rows.new_zeros(share * self.world, *rows.shape[1:])
        every[self.rank * share : (self.rank + 1) * share] = rows
        return self.reduce(every)
