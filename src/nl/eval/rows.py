"""Rows of an evaluation: finite values, means with standard errors, JSON, a table. Floor 6."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nl.config import writing
from nl.core.protocols import EvalRow
from nl.run.files import finite, write_atomic, write_json


def make_row(
    suite: str, task: str, metric: str, value: float | None, n: int, **more: Any
) -> EvalRow:
    """An ``EvalRow`` whose value and stderr are finite or None (the note names a lost value)."""
    note = str(more.pop("note", ""))
    if value is not None and not math.isfinite(value):
        note = f"{note}; not finite ({value})" if note else f"not finite ({value})"
        value = None
    stderr = more.pop("stderr", None)
    if stderr is not None and not math.isfinite(stderr):
        stderr = None
    return EvalRow(suite, task, metric, value, n, stderr=stderr, note=note, **more)


def mean_and_stderr(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error (None for fewer than two values)."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return mean, None
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, math.sqrt(variance / count)


def wilson(hits: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share of ``count`` tries (Wilson 1927); it stays inside [0, 1]."""
    share, spread = hits / count, z * z / count
    middle = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    low, high = ((middle + sign * half) / (1 + spread) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def ratio_and_stderr(
    numerators: Sequence[float], denominators: Sequence[float]
) -> tuple[float, float | None]:
    """Sum over sum, and its standard error with the pairs (documents) as the sampling unit."""
    count, below = len(numerators), sum(denominators)
    ratio = sum(numerators) / below
    if count < 2:
        return ratio, None
    spread = sum((a - ratio * b) ** 2 for a, b in zip(numerators, denominators, strict=True))
    return ratio, math.sqrt(spread * count / (count - 1)) / below


def save_json(path: Path, data: Any) -> Path:
    """Write JSON atomically; NaN and infinity become null.

    Raises:
        ConfigError: the folder cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, finite(data))
    return path


def save_lines(path: Path, lines: Iterable[Any]) -> Path:
    """Write JSON lines atomically; NaN and infinity become null.

    Raises:
        ConfigError: the folder cannot be written.
    """
    return save_text(path, "".join(json.dumps(finite(line), default=str) + "\n" for line in lines))


def save_text(path: Path, text: str | bytes) -> Path:
    """Write a file atomically.

    Raises:
        ConfigError: the folder cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
    return path


def table(rows: Sequence[EvalRow]) -> str:
    """Rows as a plain text table, chance beside the value."""
    head = ("suite", "task", "metric", "memorize", "value", "stderr", "chance", "n", "note")
    lines = [head]
    for row in rows:
        lines.append(
            (
                row.suite,
                row.task,
                row.metric,
                row.memorize,
                _number(row.value),
                _number(row.stderr),
                _number(row.chance),
                str(row.n),
                row.note,
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
