"""Results as the earlier system's two files had them: a view of a sweep, on demand. Floor 1."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from nl.config import ConfigError, writing
from nl.report.cells import MODEL, TASK, split_of
from nl.report.frames import Row, is_number

SUFFIX = {"train": "", "test": " (test)"}
"""What follows the task's name, by split."""
MEASURES = ("accuracy", "loss")


def write_legacy(
    rows: Sequence[Row],
    overlaps: Mapping[str, Sequence[Row]],
    folder: Path,
    names: Mapping[str, str],
) -> list[Path]:
    """Write ``benchmarking.csv`` and ``overlap.csv``.

    Args:
        rows: of results.jsonl.
        overlaps: per task what train and test share; the first of each is taken.
        folder: where.
        names: what a task was called there; others keep their name.

    Returns:
        The two files.

    Raises:
        ConfigError: the sweep has no tasks and models, or the folder cannot be written.
    """
    results = [line for split in SUFFIX for line in lines_of(rows, split, names)]
    if not results:
        raise ConfigError(
            "--legacy-csv: this sweep has no accuracies of tasks and models; leave it out."
        )
    shared = []
    for task, found in overlaps.items():
        first = found[0]
        rate = first["seen"] / max(1, first["total"])
        shared.append([names.get(task, task), first["seen"], first["total"], f"{rate:.6f}"])
    tables = {
        "benchmarking.csv": [["model", "task", "accuracy", "loss"], *results],
        "overlap.csv": [["task", "overlap_count", "test_total", "overlap_rate"], *shared],
    }
    paths = []
    for name, table in tables.items():
        path = folder / name
        with writing(path):
            folder.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(table)
        paths.append(path)
    return paths


def lines_of(rows: Sequence[Row], split: str, names: Mapping[str, str]) -> list[list[str]]:
    """``model, task, accuracy, loss`` of every finished pair, means over seeds."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        if row.get("status") != "done" or TASK not in row or MODEL not in row:
            continue
        mine = found.setdefault((str(row[MODEL]), str(row[TASK])), {})
        for key, value in (row.get("metrics") or {}).items():
            parts = split_of(key)
            if parts and parts[0] and parts[1] == split and is_number(value):
                mine.setdefault(parts[2], []).append(float(value))
    return [
        [model, names.get(task, task) + SUFFIX[split], *(f"{fmean(v[m]):.6f}" for m in MEASURES)]
        for (model, task), v in found.items()
        if all(m in v for m in MEASURES)
    ]
