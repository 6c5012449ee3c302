"""The runs of the recall study as one CSV file, a line each, that outlives their directories.

The study is longer than one machine's turn: what is in the file is not trained again.
"""

from __future__ import annotations

import csv
from dataclasses import astuple, dataclass, fields
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


HEAD = [*Key._fields, *(field.name for field in fields(Line))]


def read(path: Path) -> dict[Key, Line]:
    """The lines of the file; none where there is no file."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        Key(row["label"], int(row["pairs"]), int(row["steps"]), int(row["seed"])): Line(
            int(row["parameters"]),
            row["commit"],
            float(row["cpu_seconds"]),
            tuple(int(word) for word in row["at"].split()),
            tuple(float(word) for word in row["accuracy"].split()),
        )
        for row in rows
    }


def write(path: Path, lines: dict[Key, Line]) -> None:
    """All lines, in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEAD)
        for key in sorted(lines):
            parameters, commit, cpu_seconds, at, accuracy = astuple(lines[key])
            words = " ".join(map(str, at)), " ".join(f"{value:.6f}" for value in accuracy)
            writer.writerow([*key, parameters, commit, f"{cpu_seconds:.1f}", *words])


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
