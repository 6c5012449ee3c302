"""What a run of the learning comparison leaves: a line of its file (study_lines.py)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import comparison_positions as positions
import study


class Key(NamedTuple):
    """Which run: a row of the study and a seed."""

    label: str
    seed: int

    @property
    def name(self) -> str:
        """Its directory."""
        return f"{self.label}-s{self.seed}"


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
            *(one.final[f"val/{part}loss"] for part in ("", "prose/", "code/")),
            tuple(at),
            tuple(train),
            tuple(positions.losses(root, key.name) or ()),
        )
    return found
