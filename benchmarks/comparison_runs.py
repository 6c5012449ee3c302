"""What a run of the learning comparison leaves: a line of its file (study_lines.py)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import comparison_dynamic as dynamic
import comparison_positions as positions
import study
from comparison_rows import Row


class Key(NamedTuple):
    """Which run: a row of the study and a seed."""

    label: str
    seed: int

    @property
    def name(self) -> str:
        """Its directory."""
        return f"{self.label}-s{self.seed}"


KEYS = {"val/loss": "loss", "val/prose/loss": "prose", "val/code/loss": "code"}
"""Columns of the tables and where a line has them."""


@dataclass(frozen=True)
class Line:
    """What a finished run left."""

    parameters: int
    commit: str
    tokens: int
    seconds: float
    cpu_seconds: float
    """nan where nobody measured them."""
    loss: float
    """Validation loss after the last step, nats per token; of text and of code below."""
    prose: float
    code: float
    at: tuple[float, ...]
    """Tokens trained on where the training loss was logged."""
    train: tuple[float, ...]
    """Training loss there."""
    by_position: tuple[float, ...]
    """Validation loss per bucket of positions in the window; empty where it was not measured."""
    dynamic: tuple[float, ...]
    """Validation loss with steps while reading, per rate; empty where it was not measured."""
    dynamic_scaled: tuple[float, ...]
    dynamic_head: tuple[float, ...]
    dynamic_body: tuple[float, ...]
    """The same with other ways of learning (comparison_dynamic.py)."""


def gathered(root: Path, keys: Iterable[Key]) -> dict[Key, Line]:
    """The finished runs among ``keys`` under ``root``."""
    found = {}
    for key in keys:
        if (one := study.result(root, key.name)) is None:
            continue
        at, train = study.curve(root, key.name, "loss", x="tokens")
        found[key] = Line(
            one.parameters,
            one.commit,
            one.tokens,
            one.seconds,
            math.nan if one.cpu_seconds is None else one.cpu_seconds,
            one.final["val/loss"],
            one.final["val/prose/loss"],
            one.final["val/code/loss"],
            tuple(at),
            tuple(train),
            tuple(positions.losses(root, key.name) or ()),
            **{way: tuple(dynamic.losses(root, key.name, way)) for way in dynamic.WAYS},
        )
    return found


@dataclass
class Found:
    """What is known of the rows that were asked for."""

    root: Path
    seeds: int
    rows: dict[str, Row]
    lines: dict[Key, Line]

    def results(self, label: str) -> dict[int, Line]:
        """Finished runs by seed."""
        keys = (Key(label, seed) for seed in range(self.seeds))
        return {key.seed: self.lines[key] for key in keys if key in self.lines}

    def values(self, label: str, key: str) -> dict[int, float]:
        """One final number by seed."""
        return {seed: getattr(one, KEYS[key]) for seed, one in self.results(label).items()}

    def paired(self, label: str, other: str, key: str = "val/loss") -> list[float]:
        """Differences on the seeds that both have; below zero ``label`` is better."""
        mine, theirs = self.values(label, key), self.values(other, key)
        return [mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())]

    def by_position(self, label: str, other: str) -> list[list[float]]:
        """The same per bucket of positions, where both were measured."""
        mine, theirs = self.results(label), self.results(other)
        found = []
        for seed in sorted(mine.keys() & theirs.keys()):
            pair = mine[seed].by_position, theirs[seed].by_position
            if all(pair):
                found.append([a - b for a, b in zip(*pair, strict=True)])
        return found

    def dynamic(self, label: str, way: str) -> dict[int, tuple[float, ...]]:
        """Losses per step size, by seed, of those that learned while they were read."""
        found = {seed: getattr(one, way) for seed, one in self.results(label).items()}
        return {seed: losses for seed, losses in found.items() if losses}

    def best(self, label: str, way: str) -> tuple[float, dict[int, float]] | None:
        """The step size with the lowest mean, and the losses with it by seed."""
        if not (found := self.dynamic(label, way)):
            return None
        means = [statistics.fmean(column) for column in zip(*found.values(), strict=True)]
        number = means.index(min(means))
        return dynamic.WAYS[way].rates[number], {s: one[number] for s, one in found.items()}

    def there(self, labels: Iterable[str]) -> list[str]:
        """Those with at least one finished run."""
        return [label for label in labels if label in self.rows and self.results(label)]
