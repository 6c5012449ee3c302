"""Validation: the objective over held-out splits, weighted by scored targets. Floor 5."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from nl.core.output import Knobs
from nl.core.protocols import Stream
from nl.dist.base import Strategy
from nl.train.hooks.metrics import Totals, perplexity


class Validator:
    """Runs every validation split from its beginning, the same batches."""

    def __init__(self, streams: Mapping[str, Stream], *, batches: int, carry: bool) -> None:
        """Take the splits.

        Args:
            streams: split name (``val`` or ``val/<domain>``) -> a fresh stream that ends.
            batches: per split; 0: all.
            carry: thread the State through a split, as training does.
        """
        self.streams, self.batches, self.carry = dict(streams), batches, carry
        self._start = {name: stream.state_dict() for name, stream in self.streams.items()}

    def run(self, strategy: Strategy, knobs: Knobs | None = None) -> list[dict[str, Any]]:
        """One row per split, and one named ``val`` over all of them (their targets pooled).

        Args:
            strategy: has the objective.
            knobs: of a controller that says what it would do without trying anything.
        """
        rows, loss, weight = [], 0.0, 0.0
        with strategy.evaluating() as objective:
            for name in self.streams:
                numbers, scored = self._split(strategy, objective, name, knobs)
                loss, weight = loss + numbers["loss"] * scored, weight + scored
                rows.append(_row(name, numbers))
        if rows and "val" not in self.streams:
            rows.append(_row("val", {"loss": loss / weight}))
        return rows

    def _split(
        self, strategy: Strategy, objective: Any, name: str, knobs: Knobs | None
    ) -> tuple[dict[str, float], float]:
        stream = self.streams[name]
        stream.load_state_dict(self._start[name])
        totals, scored, state = Totals(), 0, None
        for batch in islice(stream, self.batches or None):
            out = objective(batch.to(strategy.device), state, knobs)
            totals.add(out)
            scored += batch.weight
            state = out.state if self.carry else None
        weight = strategy.sum(scored)
        if weight == 0:
            raise RuntimeError(f"stream: split {name!r} has no scored targets to validate on.")
        return totals.read(strategy, weight), weight


def _row(split: str, numbers: dict[str, float]) -> dict[str, Any]:
    return {"split": split, "loss": numbers["loss"], "ppl": perplexity(numbers["loss"])} | {
        k: v for k, v in numbers.items() if k != "loss"
    }
