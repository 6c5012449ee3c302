"""stream=replay: one domain after another, with rows of earlier phases in every batch. Floor 1.

What is stored is where a row stands in the data (its number in the phases), not its tokens. The
store is a sample without replacement: of all rows that were offered it keeps those whose keyed
hash is smallest, which is what a reservoir keeps (Vitter 1985), without a random stream of its own.
Every rank keeps the whole store, so batches do not depend on the number of ranks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from nl.config import ConfigError, register, require
from nl.core.batch import IGNORE, Batch
from nl.core.protocols import Stream
from nl.core.seeds import SeedBook
from nl.data.order import Ints, KeyedPermutation, Plan
from nl.data.phases import PhasePlan, PhaseStreamConfig
from nl.data.shard_stream import boundaries, held_out_stream
from nl.data.stream import Boundaries, Fetch, refuse_other
from nl.data.windows import TokenWindows

LARGEST = 1 << 62
Memory = Literal["balanced", "reservoir", "loss"]


@register("stream", "replay")
@dataclass(frozen=True, kw_only=True)
class ReplayStreamConfig(PhaseStreamConfig):
    """Phases as in stream=phases; from the second on a share of every batch is replayed."""

    capacity: int = 256
    """Rows that are stored."""
    share: float = 0.25
    """Share of the rows of a batch that are drawn from the store (at least one row), from the
    second phase on; a phase reads that much less that is new."""
    memory: Memory = "balanced"
    """balanced: equal room for every phase read so far, and a phase is drawn before a row.
    reservoir: a uniform sample of all rows read so far, whatever their phase. loss: a reservoir
    from which rows are drawn in proportion to their last loss (nats per row)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.capacity >= 1, f"capacity: {self.capacity}; must be >= 1.")
        require(0 < self.share < 1, f"share: {self.share}; must be above 0 and below 1.")
        require(self.batch_size >= 2, f"batch_size: {self.batch_size}; replay needs 2 or more.")
        require(
            self.memory != "balanced" or self.capacity >= len(self.phases),
            f"capacity: {self.capacity}; balanced needs a row for each of the "
            f"{len(self.phases)} phases.",
        )

    @property
    def replayed(self) -> int:
        """Rows of a batch that are replayed."""
        return min(self.batch_size - 1, max(1, round(self.share * self.batch_size)))

    def build(self, split: str, *, seed: int, rank: int, world: int) -> Stream:
        """The stream of ``train`` (endless), or of ``val[/domain]``, ``test[/domain]`` (once)."""
        if split != "train":
            return held_out_stream(self, split, rank=rank, world=world)
        windows = TokenWindows(self.path, "train", self.domains, self.seq_len, self.verify)
        sizes = dict(zip(windows.names, windows.sizes, strict=True))
        plan = PhasePlan(self.phases, sizes, self.batch_size, seed)
        order = ", ".join(f"{p.domain} {p.steps}" for p in self.phases)
        store = f"{self.memory} {self.capacity}, {self.replayed} of {self.batch_size} rows"
        return ReplayStream(
            plan,
            windows,
            store=Store(self.capacity, self.memory, SeedBook(seed).seed("replay")),
            counts=(self.batch_size, self.replayed, self.replayed),
            place=(rank, world),
            identity=f"train {windows.digest}, seq_len {self.seq_len}, seed {seed}, {order}; "
            f"replay {store}",
            found=boundaries(windows, plan, self.documents),
        )


class Store:
    """Numbers of rows, a few of each phase.

    Attributes:
        rows: (n,) numbers of stored rows, in the order of their hashes.
        phases: (n,) the phase each was read in.
        losses: (n,) nats of each when it was last learned from; NaN before.
    """

    def __init__(self, capacity: int, memory: str, key: int) -> None:
        self.capacity, self.memory = capacity, memory
        self._hash = KeyedPermutation(LARGEST, key)
        self._draw = KeyedPermutation(LARGEST, key ^ 1)
        self.clear()

    def clear(self) -> None:
        """Store nothing."""
        self.rows = self.phases = self._ranks = np.empty(0, np.int64)
        self.losses = np.empty(0)

    def add(self, rows: Ints, phase: int) -> None:
        """Offer rows of a phase, each once."""
        self.rows = np.concatenate([self.rows, rows])
        self.phases = np.concatenate([self.phases, np.full_like(rows, phase)])
        self._ranks = np.concatenate([self._ranks, self._hash(rows, np.zeros_like(rows))])
        self.losses = np.concatenate([self.losses, np.full(len(rows), np.nan)])
        order = np.argsort(self._ranks, kind="stable")
        if self.memory == "balanced":
            order = self._balanced(order)
        self._keep(order[: self.capacity])

    def _balanced(self, order: Ints) -> Ints:
        """Equal room for every phase; what one cannot fill is left empty."""
        known = np.unique(self.phases)
        room = self.capacity // len(known)
        kept = np.concatenate([order[self.phases[order] == phase][:room] for phase in known])
        return np.asarray(kept[np.argsort(self._ranks[kept], kind="stable")])

    def _keep(self, order: Ints) -> None:
        self.rows, self.phases = self.rows[order], self.phases[order]
        self._ranks, self.losses = self._ranks[order], self.losses[order]

    def note(self, rows: Ints, losses: npt.NDArray[np.float64]) -> None:
        """Remember the losses of rows; what is not stored is left out."""
        order = np.argsort(rows, kind="stable")
        place = np.minimum(np.searchsorted(rows, self.rows, sorter=order), len(rows) - 1)
        known = rows[order[place]] == self.rows
        self.losses[known] = losses[order[place]][known]

    def draw(self, count: int, first: int, before: int) -> Ints:
        """``count`` stored rows of phases before ``before``, with replacement.

        Args:
            count: how many.
            first: number of the first draw; equal numbers give equal draws from equal stores.
            before: only phases below this one; there has to be a row of one.
        """
        number = np.arange(first, first + count, dtype=np.int64)
        one, two = (self._draw(number, np.full_like(number, k)) for k in (0, 1))
        old = self.phases < before
        rows, phases = self.rows[old], self.phases[old]
        if self.memory == "reservoir":
            return np.asarray(rows[one % len(rows)])
        if self.memory == "loss":
            found = self.losses[old]
            unknown = np.isnan(found)
            usual = 1.0 if unknown.all() else float(np.nanmax(found))
            ends = np.cumsum(np.where(unknown, usual, found))
            return np.asarray(rows[np.searchsorted(ends, one / LARGEST * ends[-1], side="right")])
        known = np.unique(phases)
        groups = [rows[phases == phase] for phase in known]
        picks = zip((one % len(known)).tolist(), two.tolist(), strict=True)
        return np.array([groups[g][n % len(groups[g])] for g, n in picks], dtype=np.int64)

    def load(
        self, rows: list[int], phases: list[int], losses: list[float | None] | None = None
    ) -> None:
        """Store these again."""
        self.rows, self.phases = (np.array(v, dtype=np.int64) for v in (rows, phases))
        self._ranks = self._hash(self.rows, np.zeros_like(self.rows))
        self.losses = np.array(losses or [None] * len(rows), dtype=np.float64)

    def holds(self, before: int) -> bool:
        """Whether there is a row of a phase below this one."""
        return bool((self.phases < before).any())


class ReplayStream:
    """Batches whose first rows are new and whose last rows are replayed, dealt out over ranks."""

    def __init__(
        self,
        plan: Plan,
        fetch: Fetch,
        *,
        store: Store,
        counts: tuple[int, int, int],
        place: tuple[int, int],
        identity: str,
        found: Boundaries | None = None,
    ) -> None:
        """Deal out batches.

        Args:
            plan: where new rows are; its tags name the phase, or nothing (task-free).
            fetch: tokens of rows.
            store: what is replayed.
            counts: rows of a global batch; how many of them are replayed as soon as something is
                stored; how many ``adjust`` may set at most.
            place: (rank, world).
            identity: what is read.
            found: where documents begin.
        """
        rank, world = place
        size, self.replayed, self._most = counts
        if size % world:
            raise ConfigError(
                f"stream.batch_size: {size} rows cannot be shared by {world} ranks; "
                f"use a multiple of {world}."
            )
        self.plan, self.fetch, self.found = plan, fetch, found
        self.store, self.identity = store, identity
        self.batch_size = size
        share = size // world
        self._mine = slice(rank * share, (rank + 1) * share)
        self._read: list[Ints] = []
        self.row = 0

    def adjust(self, share: float) -> None:
        """Replay this share of every batch from the next one on, at most ``most`` rows."""
        self.replayed = min(self._most, round(share * self.batch_size))

    @property
    def wants_losses(self) -> bool:
        """Whether ``learned`` changes what is drawn."""
        return self.store.memory == "loss"

    def learned(self, losses: npt.NDArray[np.float64]) -> None:
        """Nats of every row of the last global batches, in their order, when they were trained.

        Args:
            losses: (n * batch_size,) for the last n batches.
        """
        rows = np.concatenate(self._read[-(len(losses) // self.batch_size) :])
        self.store.note(rows, losses)
        self._read.clear()

    def __iter__(self) -> Iterator[Batch]:
        for _ in itertools.count():
            yield self._next()

    def _next(self) -> Batch:
        """New rows of this place in the phases, then replayed ones; the new ones are stored."""
        row, size = self.row, self.batch_size
        tags = self.plan.tags(row)
        phase = int(tags.get("phase", row // size))  # task-free: every batch is older than the next
        fresh = np.arange(row, row + size, dtype=np.int64)
        rows, count = fresh, 0
        if self.replayed and self.store.holds(phase):
            count = self.replayed
            drawn = self.store.draw(count, row // size * self._most, phase)
            fresh = fresh[: size - count]
            rows = np.concatenate([fresh, drawn])
        mine = rows[self._mine]
        source, index = self.plan.locate(mine)
        inputs, targets = self.fetch(source, index)
        starts = None if self.found is None else self.found(mine, source, index)
        self.store.add(fresh, phase)
        if self.wants_losses:
            self._read.append(rows)
        self.row = row + size
        weight = int((targets != IGNORE).sum()) if starts is not None else targets.numel()
        return Batch(inputs, targets, weight, {**tags, "row": row, "replayed": count}, starts)

    def state_dict(self) -> dict[str, Any]:
        """The next global row, what is read, and the store: two or three numbers per row."""
        state = {
            "row": self.row,
            "identity": self.identity,
            "batch_size": self.batch_size,
            "replayed": self.replayed,
            "stored": self.store.rows.tolist(),
            "phases": self.store.phases.tolist(),
        }
        if self.wants_losses:
            found = self.store.losses.tolist()
            state["losses"] = [None if math.isnan(loss) else loss for loss in found]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the row of ``state`` with what was stored then.

        Raises:
            ConfigError: the state belongs to other data, another order or another batch size.
        """
        refuse_other(state, identity=self.identity, batch_size=self.batch_size)
        self.row = int(state["row"])
        self.replayed = int(state.get("replayed", self.replayed))
        self.store.load(state["stored"], state["phases"], state.get("losses"))
        self._read.clear()
