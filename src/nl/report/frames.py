"""A run directory as plain data, whatever is missing from it. Floor 1."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nl.config import ConfigError

Row = dict[str, Any]
MARKS = ("config.yaml", "meta.json", "status.json", "metrics.jsonl", "summary.json")
"""Any of these makes a directory a run directory."""


@dataclass(frozen=True)
class RunFrame:
    """What a report is made of.

    Attributes:
        directory: the run directory.
        config, meta, status, summary: the files of those names; empty where missing.
        train: training rows in order of step.
        validation: rows of every other split, by split name.
        evals: rows of evals.jsonl.
        artifacts: parsed ``artifacts/**/*.json`` and ``*.jsonl`` by path below ``artifacts``.
        overrides: the overrides as typed.
        missing: one sentence per thing that is not there or cannot be read.
    """

    directory: Path
    config: Row
    meta: Row
    status: Row
    summary: Row
    train: list[Row]
    validation: dict[str, list[Row]]
    evals: list[Row]
    artifacts: dict[str, Any]
    overrides: str
    missing: tuple[str, ...]

    @property
    def last(self) -> Row:
        """The newest training row; empty where there is none."""
        return self.train[-1] if self.train else {}


def read_run(directory: Path) -> RunFrame:
    """Read a run directory, finished or not.

    Raises:
        ConfigError: the directory does not exist or holds nothing that a run writes.
    """
    if not directory.is_dir():
        raise ConfigError(f"{directory}: no such directory; give the directory of a run.")
    if not any((directory / name).is_file() for name in MARKS):
        raise ConfigError(
            f"{directory}: not a run directory (none of {', '.join(MARKS)}); give the directory"
            " that train.py printed."
        )
    missing: list[str] = []
    rows = read_rows(directory / "metrics.jsonl", missing)
    if not rows:
        missing.append("No training metrics yet: metrics.jsonl is missing or empty.")
    validation: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("split") != "train":
            validation.setdefault(str(row.get("split")), []).append(row)
    evals = read_rows(directory / "evals.jsonl", missing)
    if not evals:
        missing.append("No evaluations yet: run nl eval on this directory to add them.")
    overrides = directory / "overrides.txt"
    return RunFrame(
        directory=directory,
        config=read_mapping(directory / "config.yaml", missing),
        meta=read_mapping(directory / "meta.json", missing),
        status=read_mapping(directory / "status.json", missing),
        summary=read_mapping(directory / "summary.json", missing),
        train=one_per_step([row for row in rows if row.get("split") == "train"]),
        validation={name: one_per_step(part) for name, part in sorted(validation.items())},
        evals=evals,
        artifacts=read_artifacts(directory / "artifacts", missing),
        overrides=overrides.read_text().strip() if overrides.is_file() else "",
        missing=tuple(missing),
    )


def one_per_step(rows: list[Row]) -> list[Row]:
    """Rows by step; of a step that was done twice (after a resume) the later row counts."""
    by_step = {row["step"]: row for row in rows if isinstance(row.get("step"), int)}
    return [by_step[step] for step in sorted(by_step)]


def read_mapping(path: Path, missing: list[str]) -> Row:
    """A JSON or YAML mapping; empty, with a sentence in ``missing``, where that fails."""
    if not path.is_file():
        missing.append(f"{path.name} is missing.")
        return {}
    try:
        data = yaml.safe_load(path.read_text()) if path.suffix == ".yaml" else load_json(path)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        missing.append(f"{path.name} cannot be read: {str(error).splitlines()[0]}.")
        return {}
    if not isinstance(data, dict):
        missing.append(f"{path.name} is not a mapping.")
        return {}
    return data


def load_json(path: Path) -> Any:
    """One JSON document."""
    return json.loads(path.read_text())


def read_rows(path: Path, missing: list[str]) -> list[Row]:
    """The mappings of a JSONL file; lines that are not one are counted in ``missing``."""
    if not path.is_file():
        return []
    rows, broken = [], 0
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            broken += 1
            continue
        if isinstance(row, dict):
            rows.append(row)
        else:
            broken += 1
    if broken:
        missing.append(f"{path.name}: {broken} unreadable line{'s' * (broken > 1)} left out.")
    return rows


def read_artifacts(folder: Path, missing: list[str]) -> dict[str, Any]:
    """Every JSON and JSONL file below ``artifacts`` by its path there."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.json")) + sorted(folder.rglob("*.jsonl")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".jsonl":
            found[name] = read_rows(path, missing)
            continue
        try:
            found[name] = load_json(path)
        except ValueError as error:
            missing.append(f"artifacts/{name} cannot be read: {error}.")
    return found


def series(rows: list[Row], key: str, x: str = "step") -> tuple[list[float], list[float]]:
    """(x, y) of the rows where both are numbers (a non-finite value is stored as null)."""
    pairs = [
        (row[x], row[key]) for row in rows if is_number(row.get(x)) and is_number(row.get(key))
    ]
    return [float(a) for a, _ in pairs], [float(b) for _, b in pairs]


def is_number(value: Any) -> bool:
    """An int or float, not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def numeric_keys(rows: list[Row]) -> list[str]:
    """Metric keys that are a number somewhere, in order of appearance, counters left out."""
    skip = {"step", "time", "tokens", "phase", "split", "nonfinite"}
    keys: dict[str, None] = {}
    for row in rows:
        keys.update({k: None for k, v in row.items() if is_number(v) and k not in skip})
    return list(keys)
