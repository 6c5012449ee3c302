"""JSON lines that survive a crash: append with flush, read up to the last whole line. Floor 0."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def clean(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with non-finite numbers as None and their keys listed under ``nonfinite``.

    >>> clean({"step": 1, "loss": float("nan")})
    {'step': 1, 'loss': None, 'nonfinite': ['loss']}
    """
    bad = [k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)]
    out = {k: (None if k in bad else v) for k, v in row.items()}
    return out | {"nonfinite": bad} if bad else out


def line(row: Mapping[str, Any]) -> str:
    """One row as one line of strict JSON."""
    return json.dumps(clean(row), allow_nan=False) + "\n"


class RecordWriter:
    """Appends rows to one JSONL file; every row is flushed, ``sync`` makes them durable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row; visible to readers at once.

        Raises:
            OSError: the disk is full; no part of the row stays, so that later rows can be read.
        """
        data, before = line(row).encode(), self._file.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[self._file.write(data) or 0 :]
        except OSError:
            self._file.truncate(before)
            raise

    def sync(self) -> None:
        """Survive a power cut."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()


def _whole_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(byte offset of its end, row) of each line up to the first torn or broken one."""
    end = 0
    with path.open("rb") as file:
        for raw in file:
            try:
                row = json.loads(raw)
            except (ValueError, RecursionError):
                return
            if not raw.endswith(b"\n") or not isinstance(row, dict):
                return
            end += len(raw)
            yield end, row


def read_records(path: Path) -> list[dict[str, Any]]:
    """All rows; a torn last line is ignored, a missing file has no rows."""
    return [row for _, row in _whole_lines(path)] if path.is_file() else []


def cut_records(path: Path, step: int) -> int:
    """Drop every row after ``step`` and a torn last line, so that a resumed run repeats none.

    Returns:
        The number of rows kept.
    """
    if not path.is_file():
        return 0
    keep, kept = 0, 0
    for end, row in _whole_lines(path):
        if int(row.get("step", 0)) > step:
            break
        keep, kept = end, kept + 1
    os.truncate(path, keep)
    return kept
