"""What a run of the recall study leaves: a line of its file (study_lines.py)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import study


class Key(NamedTuple):
    """Which run: a block or a variant, P pairs, optimizer steps, seed."""

    label: str
    pairs: int
    steps: int
    seed: int

    @property
    def name(self) -> str:
        """Its directory."""
        return f"{self.label}-p{self.pairs}-n{self.steps}-s{self.seed}"


@dataclass(frozen=True)
class Line:
    """What a finished run left."""

    parameters: int
    commit: str
    cpu_seconds: float
    """nan where nobody measured them."""
    at: tuple[int, ...]
    """Steps of the validations."""
    accuracy: tuple[float, ...]
    """At each of them, on fresh rows."""

    def half(self) -> str:
        """The first validated step at which half of the answers are right."""
        pairs = zip(self.at, self.accuracy, strict=True)
        return next((str(step) for step, value in pairs if value >= 0.5), "-")


def gathered(root: Path, keys: list[Key]) -> dict[Key, Line]:
    """The finished runs among ``keys`` under ``root``."""
    found = {}
    for key in keys:
        if (one := study.result(root, key.name)) is None:
            continue
        at, accuracy = study.curve(root, key.name, "accuracy", split="val")
        seconds = float("nan") if one.cpu_seconds is None else one.cpu_seconds
        steps = tuple(int(step) for step in at)
        found[key] = Line(one.parameters, one.commit, seconds, steps, tuple(accuracy))
    return found
