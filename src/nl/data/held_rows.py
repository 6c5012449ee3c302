"""Held-out rows of the task that is learned and of those before it. Floor 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from nl.config import ConfigError
from nl.core.batch import IGNORE, Batch


class HeldRows:
    """The first held-out rows of every task, read once.

    Args:
        config: a stream with a ``val`` split, or one per task and a method ``held_out(phase)``.
        rows: of the current task.
        memory_rows: of all tasks before it.
        seed: of the data.
    """

    def __init__(self, config: Any, rows: int, memory_rows: int, seed: int) -> None:
        self.config = config
        self.rows, self.memory_rows, self.seed = rows, memory_rows, seed
        self._read: dict[str, Batch] = {}
        splits = [name for name in self.config.splits() if name.startswith("val")]
        if not splits:
            raise ConfigError(
                f"signals: stream={config.kind} has no held-out split to measure on; leave "
                "signals out."
            )
        self._first = splits[0]

    def __call__(self, phase: int) -> tuple[Batch, Batch | None]:
        """Rows of the task of ``phase``, and of the other tasks that came before it."""
        if not hasattr(self.config, "held_out"):
            return self._rows(self._first, self.rows), None
        now = self.config.held_out(phase)
        before = dict.fromkeys(self.config.held_out(earlier) for earlier in range(phase))
        older = [name for name in before if name != now][-self.memory_rows :]
        current = self._rows(now, self.rows)
        if not older:
            return current, None
        counts = [self.memory_rows // len(older)] * len(older)
        for number in range(self.memory_rows % len(older)):
            counts[number] += 1
        pairs = zip(older, counts, strict=True)
        return current, joined([self._rows(name, count) for name, count in pairs])

    def _rows(self, split: str, count: int) -> Batch:
        most = max(self.rows, self.memory_rows)
        if split not in self._read:
            batches, found = [], 0
            for batch in self.config.build(split, seed=self.seed, rank=0, world=1):
                batches.append(batch)
                found += len(batch.inputs)
                if found >= most:
                    break
            self._read[split] = first(joined(batches), most)
        return first(self._read[split], count)


def first(batch: Batch, count: int) -> Batch:
    """The first ``count`` rows."""
    inputs, targets = batch.inputs[:count], batch.targets[:count]
    starts = None if batch.starts is None else batch.starts[:count]
    return Batch(inputs, targets, int((targets != IGNORE).sum()), {}, starts)


def joined(batches: Sequence[Batch]) -> Batch:
    """All rows of batches of equal length as one."""
    inputs = torch.cat([batch.inputs for batch in batches])
    targets = torch.cat([batch.targets for batch in batches])
    starts = None
    if any(batch.starts is not None for batch in batches):
        starts = tuple(row for batch in batches for row in batch.starts or ())
    return Batch(inputs, targets, int((targets != IGNORE).sum()), {}, starts)
