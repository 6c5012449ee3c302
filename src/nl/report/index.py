"""Many runs on one page: what they are, how far they came, what they score. Floor 1."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nl.config import ConfigError
from nl.report.frames import MARKS, Row, RunFrame, is_number, read_run
from nl.report.numbers import DASH, count, duration, figure, with_error
from nl.report.page import (
    Placed,
    data_uri,
    load_template,
    model_name,
    replace,
    scored_tokens,
    wall_time,
)
from nl.report.tables import Cell, Table, newest, sort_key, table_csv

INDEX = "index.html"


def is_run(path: Path) -> bool:
    """Whether a directory holds a run."""
    return any((path / name).is_file() for name in MARKS)


def runs_below(paths: Sequence[Path]) -> list[Path]:
    """The runs among directories and below them, sorted by path.

    Raises:
        ConfigError: a path that holds none.
    """
    found: list[Path] = []
    for path in paths:
        if is_run(path):
            found.append(path)
            continue
        inside = sorted(p.parent for p in path.rglob("config.yaml") if is_run(p.parent))
        inside = [p for p in inside if "checkpoints" not in p.relative_to(path).parts]
        if not inside:
            raise ConfigError(f"{path}: no run directory here or below; give runs or their folder.")
        found += inside
    return list(dict.fromkeys(found))


def write_index(paths: Sequence[Path], page: Path) -> int:
    """Write one self-contained page over all runs at ``paths``; how many there are.

    Raises:
        ConfigError: no runs, the page cannot be written, or the viz extra is missing.
    """
    frames = [read_run(path) for path in runs_below(paths)]
    names = short_names([frame.directory for frame in frames])
    tables = [run_table(frames, names, page.parent), *eval_index(frames, names)]
    placed = []
    for table in tables:
        text = table_csv(table)
        placed.append(Placed(table, f"{table.name}.csv", data_uri(text)))
    sections = [("Runs", placed[:1]), *([("Evaluations", placed[1:])] if placed[1:] else [])]
    html = load_template("tables.html.j2").render(
        title=f"{len(frames)} runs",
        where=", ".join(str(path) for path in paths),
        facts=[("written", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))],
        warnings=[],
        notes=[
            "Sorted by a click on a column. Values are given with one standard error over samples "
            "of one model; runs that differ in their seed alone show how much training varies. "
            "scripts/eval/compare.py gives paired differences."
        ],
        sections=sections,
    )
    replace(page, html)
    return len(frames)


def short_names(folders: Sequence[Path]) -> list[str]:
    """Paths below what all have in common."""
    whole = [path.resolve() for path in folders]
    if len(whole) == 1:
        return [whole[0].name]
    common = Path(os.path.commonpath(whole))
    return [path.relative_to(common).as_posix() for path in whole]


def run_table(frames: Sequence[RunFrame], names: Sequence[str], place: Path) -> Table:
    """A line per run."""
    splits = sorted({split for frame in frames for split in frame.validation})
    head = ["run", "state", "model", "seed", "parameters", "steps", "tokens", "train loss"]
    head += [f"{split} loss" for split in splits] + ["tokens/s", "wall time"]
    cells, numbers = [], [list(head)]
    for frame, name in zip(frames, names, strict=True):
        values = run_values(frame, splits)
        page = frame.directory / "report.html"
        link = os.path.relpath(page, place) if page.is_file() else ""
        line = [Cell(name, name, href=link)]
        for column, value in zip(head[1:], values, strict=True):
            line.append(run_cell(column, value))
        cells.append(line)
        numbers.append([name, *values])
    note = "Losses in nats per token, of the last step."
    return Table("runs", "runs", head, cells, numbers, note)


def run_values(frame: RunFrame, splits: Sequence[str]) -> list[Any]:
    """What stands in the columns after the name."""
    speeds = sorted(
        row["perf/tokens_per_s"] for row in frame.train if is_number(row.get("perf/tokens_per_s"))
    )
    losses = [
        next((row["loss"] for row in reversed(rows) if is_number(row.get("loss"))), None)
        for rows in (frame.validation.get(split, []) for split in splits)
    ]
    return [
        str(frame.status.get("state", "unknown")),
        model_name(frame),
        frame.config.get("seed"),
        frame.summary.get("parameters", frame.meta.get("parameters")),
        frame.status.get("step", frame.last.get("step")),
        scored_tokens(frame),
        frame.last.get("loss"),
        *losses,
        speeds[len(speeds) // 2] if speeds else None,
        wall_time(frame),
    ]


def run_cell(column: str, value: Any) -> Cell:
    """A value as its column shows it."""
    if column in ("state", "model"):
        return Cell(str(value or DASH), str(value))
    shown = {
        "parameters": count,
        "tokens": count,
        "tokens/s": count,
        "wall time": duration,
    }.get(column, figure)(value)
    return Cell(shown, sort_key(value), numeric=True)


def eval_index(frames: Sequence[RunFrame], names: Sequence[str]) -> list[Table]:
    """A table per suite: a line per run, a column per task, metric and memorisation mode."""
    by_suite: dict[str, dict[tuple[str, str, str], Row]] = {}
    rows: list[dict[tuple[str, ...], Row]] = []
    for frame in frames:
        mine: dict[tuple[str, ...], Row] = {}
        for row in newest(frame.evals):
            suite, task, metric = (str(row.get(key, "")) for key in ("suite", "task", "metric"))
            if metric.startswith("memory/") or row.get("value") is None:
                continue
            key = (task, metric, str(row.get("memorize", "off")))
            by_suite.setdefault(suite, {})[key] = row
            mine[(suite, *key)] = row
        rows.append(mine)
    return [suite_index(suite, list(keys), rows, names) for suite, keys in by_suite.items()]


def suite_index(
    suite: str,
    keys: list[tuple[str, str, str]],
    rows: Sequence[dict[tuple[str, ...], Row]],
    names: Sequence[str],
) -> Table:
    """One suite of all runs that have it."""
    head = ["run", *(" ".join(key) for key in keys)]
    cells: list[list[Cell]] = []
    numbers: list[list[Any]] = [["run", "task", "metric", "memorize", "value", "stderr", "n"]]
    chances = [
        next((r[suite, *k].get("chance") for r in rows if (suite, *k) in r), None) for k in keys
    ]
    if any(is_number(chance) for chance in chances):
        first = Cell("chance", "chance")
        line = [Cell(figure(c), sort_key(c), numeric=True) for c in chances]
        cells.append([first, *line])
    for name, mine in zip(names, rows, strict=True):
        found = [mine.get((suite, *key), {}) for key in keys]
        if not any(found):
            continue
        line = [Cell(name, name)]
        for key, row in zip(keys, found, strict=True):
            shown = with_error(row.get("value"), row.get("stderr"))
            note = str(row.get("note", ""))
            line.append(Cell(shown, sort_key(row.get("value")), note, numeric=True))
            if row:
                numbers.append([name, *key, row.get("value"), row.get("stderr"), row.get("n")])
        cells.append(line)
    stem = "index_" + "".join(c if c.isalnum() else "_" for c in suite)
    return Table(stem, suite, head, cells, numbers)
