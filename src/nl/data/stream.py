"""RowStream: plan and source become this rank's batches; one integer resumes it. Floor 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nl.config import ConfigError
from nl.core.batch import IGNORE, Batch
from nl.data.order import Ints, Plan

Fetch = Callable[[Ints, Ints], tuple[Tensor, Tensor]]
"""(source, index) of B samples -> inputs (B, ...), targets (B, ...)."""
Boundaries = Callable[[int, Ints, Ints], tuple[tuple[int, ...], ...]]
"""(first global row, source, index) of B samples -> ``Batch.starts``."""
PLANNED_ROWS = 8192
"""Rows whose places are computed at once; a cost of Python per batch becomes one per many."""


class RowStream:
    """Batches of global rows; a rank takes its rows of every global batch.

    An endless plan gives an endless stream. A finite one ends after its last row; its last
    batch is filled up with rows whose targets are not scored (``IGNORE``, or NaN for floats), so
    that all ranks see the same number of batches of the same shape. ``iter`` on a finite stream
    that has ended starts over. ``scored`` is the number of scored targets of a row where that is
    less than all of them. With ``boundaries`` batches say where documents begin, and the scored
    targets are counted.
    """

    def __init__(
        self,
        plan: Plan,
        fetch: Fetch,
        *,
        batch_size: int,
        rank: int,
        world: int,
        identity: str,
        scored: int | None = None,
        boundaries: Boundaries | None = None,
    ) -> None:
        if batch_size % world:
            raise ConfigError(
                f"stream.batch_size: {batch_size} rows cannot be shared by {world} ranks; "
                f"use a multiple of {world}."
            )
        self.plan = plan
        self.fetch = fetch
        self.batch_size = batch_size
        self.identity = identity
        self.scored, self.boundaries = scored, boundaries
        self.row = 0
        share = batch_size // world
        self._mine = np.arange(rank * share, (rank + 1) * share, dtype=np.int64)
        self._block = max(1, PLANNED_ROWS // share)
        self._planned: tuple[int, Ints, Ints] | None = None

    def __iter__(self) -> Iterator[Batch]:
        if self.plan.total is not None and self.row >= self.plan.total:
            self.row = 0
        while self.plan.total is None or self.row < self.plan.total:
            row, self.row = self.row, self.row + self.batch_size
            yield self._batch(row)

    def _batch(self, row: int) -> Batch:
        total = self.plan.total
        source, index = self._locate(row)
        inputs, targets = self.fetch(source, index)
        scored = len(index)
        if total is not None and row + self._mine[-1] >= total:
            scored = int((row + self._mine < total).sum())
            targets = targets.clone()
            targets[scored:] = float("nan") if targets.is_floating_point() else IGNORE
        tags = self.plan.tags(row) | {"row": row}
        if self.boundaries is not None:
            weight = int((targets != IGNORE).sum())
            return Batch(inputs, targets, weight, tags, self.boundaries(row, source, index))
        per_row = targets[:1].numel() if self.scored is None else self.scored
        return Batch(inputs, targets, weight=scored * per_row, tags=tags)

    def _locate(self, row: int) -> tuple[Ints, Ints]:
        batch = row // self.batch_size
        first = batch - batch % self._block
        if self._planned is None or self._planned[0] != first:
            starts = (first + np.arange(self._block, dtype=np.int64)) * self.batch_size
            rows = (starts[:, None] + self._mine).reshape(-1)
            if self.plan.total is not None:
                rows = np.minimum(rows, self.plan.total - 1)
            source, index = self.plan.locate(rows)
            shape = (self._block, len(self._mine))
            self._planned = (first, source.reshape(shape), index.reshape(shape))
        _, sources, indices = self._planned
        return sources[batch - first], indices[batch - first]

    def state_dict(self) -> dict[str, Any]:
        """The next global row and what the stream reads."""
        return {"row": self.row, "identity": self.identity, "batch_size": self.batch_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the row of ``state``.

        Raises:
            ConfigError: the state belongs to other data, another order or another batch size.
        """
        for key, mine in (("identity", self.identity), ("batch_size", self.batch_size)):
            if state.get(key) != mine:
                raise ConfigError(
                    f"stream.{key}: the checkpoint was made with {state.get(key)!r}, this run has "
                    f"{mine!r}; restore the data and stream settings of the checkpoint."
                )
        self.row = int(state["row"])


def stack(inputs: Any, targets: Any) -> Fetch:
    """A fetch function over in-memory arrays of one source, samples first."""
    inputs_all, targets_all = torch.as_tensor(inputs), torch.as_tensor(targets)

    def fetch(source: Ints, index: Ints) -> tuple[Tensor, Tensor]:
        del source
        rows = torch.from_numpy(index)
        return inputs_all[rows], targets_all[rows]

    return fetch
