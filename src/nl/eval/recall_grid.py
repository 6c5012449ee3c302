"""Recall over a grid of context lengths and depths, for models of stream=noisy_recall. Floor 6.

Every sample has a random stream of its own, which does not depend on the other cells; a model is
right where its likeliest token of the whole vocabulary is the value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from nl.config import require
from nl.eval.context import Memorize, evaluating
from nl.eval.memorize import rows_at_once
from nl.eval.progress import ProgressMeter
from nl.eval.rows import wilson

Draw = Callable[[int, int, float], tuple[Sequence[int], int]]
"""(sample, length, depth) -> ``length`` token ids, and the id of the answer."""


@dataclass(frozen=True, kw_only=True)
class RecallGrid:
    """What is measured."""

    lengths: tuple[int, ...] = (128, 256, 512, 1024)
    """Tokens read before the answer."""
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Share of the noise in front of the fact, 0 to 1."""
    samples: int = 100
    """Per length and depth."""
    memorize: tuple[Memorize, ...] = ("off", "context")
    """Memorisation modes: memories frozen, or written by what is read."""

    def __post_init__(self) -> None:
        require(bool(self.lengths), "lengths: empty; name at least one.")
        require(bool(self.depths), "depths: empty; name at least one.")
        for depth in self.depths:
            require(0 <= depth <= 1, f"depths: {depth}; must be from 0 to 1.")
        for length in self.lengths:
            require(length >= 1, f"lengths: {length}; must be >= 1.")
        require(self.samples >= 1, f"samples: {self.samples}; must be >= 1.")
        require(bool(self.memorize), "memorize: empty; choose from off, context.")
        require(
            "oracle" not in self.memorize,
            "memorize: oracle; a key has no meaning outside its row, so that it cannot be shown "
            "before: use off or context.",
        )


class Sample(NamedTuple):
    """One answer, a line of the per-sample file."""

    memorize: str
    length: int
    depth: float
    sample: int
    answer: int
    predicted: int
    logprob: float


def measure_recall(
    model: nn.Module,
    draw: Draw,
    grid: RecallGrid,
    *,
    batch_size: int,
    segment: int,
    device: torch.device | str = "cpu",
) -> list[Sample]:
    """Ask everything; State is fresh for every sample and carried over its segments."""
    found = []
    anything: Any = model
    cells = [(m, n, d) for m in grid.memorize for n in grid.lengths for d in grid.depths]
    with evaluating(model), ProgressMeter("recall", len(cells) * grid.samples, "rows") as meter:
        for mode, length, depth in cells:
            rows = rows_at_once(model, batch_size, write=mode != "off")
            for start in range(0, grid.samples, rows):
                numbers = range(start, min(start + rows, grid.samples))
                drawn = [draw(number, length, depth) for number in numbers]
                tokens = torch.tensor([list(row) for row, _ in drawn], device=device)
                state, logits = None, None
                for part in torch.split(tokens, segment, 1):
                    out = anything(part, state, write=mode != "off")
                    state, logits = out.state, out.pred[:, -1].float()
                assert logits is not None
                scores = logits.log_softmax(-1).cpu()
                for number, (_, answer), row in zip(numbers, drawn, scores, strict=True):
                    said = int(row.argmax())
                    told = Sample(mode, length, depth, number, answer, said, float(row[answer]))
                    found.append(told)
                meter.advance(len(numbers))
    return found


def cells_of(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Share of right answers and its 95 % interval by mode, length and depth."""
    groups: dict[tuple[str, int, float], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.memorize, sample.length, sample.depth), []).append(sample)
    cells = []
    for (mode, length, depth), group in groups.items():
        hits = sum(sample.predicted == sample.answer for sample in group)
        low, high = wilson(hits, len(group))
        cells.append(
            {
                "memorize": mode,
                "length": length,
                "depth": depth,
                "n": len(group),
                "accuracy": hits / len(group),
                "low": low,
                "high": high,
                "nats": -sum(sample.logprob for sample in group) / len(group),
            }
        )
    return cells
