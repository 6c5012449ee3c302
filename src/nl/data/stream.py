"""RowStream: plan and source become this rank's batches; one integer resumes it. Floor 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nl.config import ConfigError
from nl.config.groups import StreamConfig
from nl.core.batch import IGNORE, Batch
from nl.data.order import Ints, MixturePlan, Plan, SequentialPlan

Fetch = Callable[[Ints, Ints], tuple[Tensor, Tensor]]
"""(source, index) of B samples -> inputs (B, ...), targets (B, ...)."""
Boundaries = Callable[[Ints, Ints, Ints], tuple[tuple[int, ...], ...]]
"""(global row, source, index) of B samples -> ``Batch.starts``."""
ENDLESS_ROWS = 1 << 40
"""More rows than any run reads, so none comes twice."""
COUNT = -1
"""``scored`` of a stream whose rows do not all have as many: counted in every batch."""
PLANNED_ROWS = 8192
"""Rows whose places are computed at once; a cost of Python per batch becomes one per many."""


@dataclass(frozen=True)
class _Planned:
    """Rows whose places are known: (batches, rows of this rank)."""

    first: int
    rows: Ints
    source: Ints
    index: Ints
    tags: dict[str, Any] | None
    """Tags of every batch of the block, if they are all the same."""


@dataclass(frozen=True)
class _Fetched:
    """Batches that were fetched together, ``first`` is the number of the first."""

    first: int
    inputs: Sequence[Tensor]
    targets: Sequence[Tensor]
    starts: list[tuple[tuple[int, ...], ...]] | None = None
    weights: Sequence[int] = ()


class RowStream:
    """Batches of global rows; a rank takes its rows of every global batch.

    An endless plan gives an endless stream. A finite one ends after its last row; its last
    batch is filled up with rows whose targets are not scored (``IGNORE``, or NaN for floats), so
    that all ranks see the same number of batches of the same shape. ``iter`` on a finite stream
    that has ended starts over. ``scored`` is the number of scored targets of a row where that is
    less than all of them, ``COUNT`` where rows differ. With ``boundaries`` batches say where
    documents begin, and the scored targets are counted. A ``fetch`` with an attribute
    ``rows_at_once`` is asked for the rows of several batches together, up to that many; which, does
    not depend on where the stream began.
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
        self._ahead = max(1, min(self._block, getattr(fetch, "rows_at_once", 0) // share))
        self._planned: _Planned | None = None
        self._fetched: _Fetched | None = None

    def __iter__(self) -> Iterator[Batch]:
        if self.plan.total is not None and self.row >= self.plan.total:
            self.row = 0
        while self.plan.total is None or self.row < self.plan.total:
            row, self.row = self.row, self.row + self.batch_size
            yield self._batch(row)

    def _batch(self, row: int) -> Batch:
        total, number = self.plan.total, row // self.batch_size
        group = self._fetched
        if group is None or not group.first <= number < group.first + len(group.inputs):
            group = self._fetched = self._fetch(number)
        place = number - group.first
        inputs, targets = group.inputs[place], group.targets[place]
        tags = self._tags(row)
        if total is not None and row + self._mine[-1] >= total:
            scored = int((row + self._mine < total).sum())
            targets = targets.clone()
            targets[scored:] = float("nan") if targets.is_floating_point() else IGNORE
        else:
            scored = len(self._mine)
        if group.starts is not None:
            whole = scored == len(self._mine)
            weight = group.weights[place] if whole else int((targets != IGNORE).sum())
            return Batch(inputs, targets, weight, tags, group.starts[place])
        if self.scored == COUNT:
            return Batch(inputs, targets, int((targets != IGNORE).sum()), tags)
        per_row = targets[:1].numel() if self.scored is None else self.scored
        return Batch(inputs, targets, scored * per_row, tags)

    def _tags(self, row: int) -> dict[str, Any]:
        """Tags of the batch at ``row``; over a planned block they are mostly the same."""
        planned = self._plan(row // self.batch_size)
        tags = self.plan.tags(row) if planned.tags is None else planned.tags
        return {**tags, "row": row}

    def _plan(self, number: int) -> _Planned:
        """The block of planned rows with batch ``number`` in it."""
        first = number - number % self._block
        if self._planned is None or self._planned.first != first:
            starts = (first + np.arange(self._block, dtype=np.int64)) * self.batch_size
            rows = starts[:, None] + self._mine
            if self.plan.total is not None:
                rows = np.minimum(rows, self.plan.total - 1)
            source, index = self.plan.locate(rows.reshape(-1))
            ends = self.plan.tags(int(starts[0])), self.plan.tags(int(starts[-1]))
            tags = ends[0] if ends[0] == ends[1] else None
            shape = rows.shape
            self._planned = _Planned(first, rows, source.reshape(shape), index.reshape(shape), tags)
        return self._planned

    def _fetch(self, number: int) -> _Fetched:
        """Batch ``number`` and those that are fetched with it."""
        planned = self._plan(number)
        place = number - planned.first
        low = place - place % self._ahead
        high = min(low + self._ahead, self._block)
        if self.plan.total is not None:
            high = min(high, -(-self.plan.total // self.batch_size) - planned.first)
        rows, source, index = (
            part[low:high].reshape(-1) for part in (planned.rows, planned.source, planned.index)
        )
        inputs, targets = self.fetch(source, index)
        share = len(self._mine)
        first, parts = planned.first + low, (cut(inputs, share), cut(targets, share))
        if self.boundaries is None:
            return _Fetched(first, *parts)
        starts = self.boundaries(rows, source, index)
        batches = [starts[a : a + share] for a in range(0, len(starts), share)]
        scored = (targets != IGNORE).view(high - low, -1).sum(1).tolist()
        return _Fetched(first, *parts, batches, scored)

    def state_dict(self) -> dict[str, Any]:
        """The next global row and what the stream reads."""
        return {"row": self.row, "identity": self.identity, "batch_size": self.batch_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the row of ``state``.

        Raises:
            ConfigError: the state belongs to other data, another order or another batch size.
        """
        refuse_other(state, identity=self.identity, batch_size=self.batch_size)
        self.row = int(state["row"])


def own_rows(
    config: StreamConfig,
    split: str,
    fetch: Fetch,
    *,
    size: int,
    place: tuple[int, int, int],
    scored: int | None,
) -> RowStream:
    """The stream of a configuration that draws its rows itself.

    Args:
        config: with ``kind`` and ``batch_size``.
        split: ``train`` is endless, any other goes once through.
        fetch: makes rows of numbers; their source says nothing.
        size: rows of the split; 0 for ``train``: none comes twice.
        place: (seed, rank, world).
        scored: see ``RowStream``.
    """
    seed, rank, world = place
    plan: Plan = SequentialPlan([size])
    if split == "train":
        plan = MixturePlan([size or ENDLESS_ROWS], [config.kind], [1], seed)
    return RowStream(
        plan,
        fetch,
        batch_size=config.batch_size,  # type: ignore[attr-defined]
        rank=rank,
        world=world,
        identity=f"{config}, {split}, seed {seed}",
        scored=scored,
    )


def stream_of(key: int, index: int) -> np.random.Generator:
    """The random stream of one row."""
    return np.random.Generator(np.random.Philox(key=key, counter=index << 64))


def refuse_other(state: Mapping[str, Any], **mine: Any) -> None:
    """Refuse a stream's state that was made by another one.

    Raises:
        ConfigError: naming what differs.
    """
    for key, value in mine.items():
        if state.get(key) != value:
            raise ConfigError(
                f"stream.{key}: the checkpoint was made with {state.get(key)!r}, this run has "
                f"{value!r}; restore the data and stream settings of the checkpoint."
            )


def check_carry(stream: Any, *, carry: bool) -> None:
    """Refuse a State kept over rows that do not go on, and rows that go on without it.

    Raises:
        ConfigError: naming what to change.
    """
    order = getattr(stream, "order", None)
    if getattr(stream, "needs_carry", False) and not carry:
        raise ConfigError(
            f"train.carry: false, but rows of stream={stream.kind} ask for what was said in the "
            "rows before; set train.carry=true, or stream.segments=1."
        )
    if carry and order != "contiguous":
        ordered = order in ("shuffled", "contiguous")
        change = "set stream.order=contiguous" if ordered else "choose stream=shards, contiguous"
        if hasattr(stream, "needs_carry"):
            change = "set stream.segments=2 or more"
        raise ConfigError(
            f"train.carry: true, but the rows of stream={stream.kind} do not go on where they "
            f"stood; {change}, or set train.carry=false."
        )


def cut(rows: Tensor, share: int) -> Sequence[Tensor]:
    """Rows as batches of ``share`` of them, without a copy."""
    parts: Sequence[Tensor] = torch.split(rows, share)
    return parts


def stack(inputs: Any, targets: Any) -> Fetch:
    """A fetch function over in-memory arrays of one source, samples first."""
    inputs_all, targets_all = torch.as_tensor(inputs), torch.as_tensor(targets)

    def fetch(source: Ints, index: Ints) -> tuple[Tensor, Tensor]:
        del source
        rows = torch.from_numpy(index)
        return inputs_all[rows], targets_all[rows]

    return fetch
