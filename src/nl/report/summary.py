"""Numbers of JSON files as one markdown table. Floor 1."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from nl.config import ConfigError
from nl.report.frames import is_number
from nl.report.numbers import DASH, figure
from nl.report.sides import short_names


def flattened(data: Any, prefix: str = "") -> dict[str, float]:
    """Every number by its dotted key; rows of an evaluation by task, metric and mode.

    ``rows`` of our own result files become ``<task>.<metric>.<mode>``; other lists are numbered.
    """
    if is_number(data):
        return {prefix: data}
    found: dict[str, float] = {}
    if isinstance(data, dict):
        for key, value in data.items():
            if key == "rows" and is_rows(value):
                for row in value:
                    name = ".".join(str(row[k]) for k in ("task", "metric", "memorize"))
                    found |= flattened(row.get("value"), _join(prefix, name))
            else:
                found |= flattened(value, _join(prefix, str(key)))
    elif isinstance(data, list):
        for place, value in enumerate(data):
            found |= flattened(value, _join(prefix, str(place)))
    return found


def is_rows(value: Any) -> bool:
    """Whether a list holds the rows of an evaluation."""
    keys = {"task", "metric", "memorize"}
    return isinstance(value, list) and all(isinstance(r, dict) and keys <= r.keys() for r in value)


def _join(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


def summary(paths: Sequence[Path], keys: Sequence[str]) -> str:
    """A markdown table: a line per key that matches, a column per file.

    Args:
        paths: JSON files.
        keys: dotted keys; ``*`` stands for any text, most often at the end. Empty: every key.

    Raises:
        ConfigError: a file that is not there or not JSON, or a key that no file has.
    """
    columns = [flattened(_read(path)) for path in paths]
    every = list(dict.fromkeys(key for column in columns for key in column))
    chosen: list[str] = []
    for pattern in keys or ["*"]:
        found = [key for key in every if key == pattern or fnmatchcase(key, pattern)]
        if not found:
            near = ", ".join(every[:8])
            raise ConfigError(f"--keys: no number matches {pattern!r}; there are {near}, ...")
        chosen += found
    names = short_names(paths)
    lines = ["| key | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for key in dict.fromkeys(chosen):
        shown = (figure(column[key]) if key in column else DASH for column in columns)
        lines.append(f"| {key} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"--inputs: {path}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--inputs: {path}: not JSON ({error}).") from error
