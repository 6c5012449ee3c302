"""Tables of a run page: evaluation rows side by side, heat maps as coloured tables. Floor 1."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from typing import Any

from nl.report.frames import Row, is_number
from nl.report.numbers import DASH, count, figure, with_error

MODES = ("off", "context", "oracle")


@dataclass(frozen=True)
class Cell:
    """One cell: what is shown, what it sorts by, and what a pointer or focus reveals."""

    text: str
    sort: float | str = ""
    title: str = ""
    numeric: bool = False
    shade: float | None = None
    """0..1, how strongly a heat-map cell is coloured."""
    href: str = ""
    """Where the first cell of a row leads."""


@dataclass(frozen=True)
class Table:
    """A sortable table and the numbers behind it.

    Attributes:
        name: file stem of its CSV.
        title: the caption.
        head: column names.
        rows: cells, row by row.
        numbers: the CSV's rows, header first.
        note: a sentence below the table.
        heat: drawn as a heat map.
        corner: what rows and columns of a heat map are.
        folded: opened by the reader.
    """

    name: str
    title: str
    head: list[str]
    rows: list[list[Cell]]
    numbers: list[list[Any]]
    note: str = ""
    heat: bool = False
    corner: str = ""
    legend: list[Cell] = field(default_factory=list)
    folded: bool = False


def table_csv(table: Table) -> str:
    """The numbers of a table as CSV."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(table.numbers)
    return out.getvalue()


def newest(rows: list[Row]) -> list[Row]:
    """Of every (suite, task, metric, mode) the row of the latest step, in order of appearance."""
    kept: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = tuple(str(row.get(k, "")) for k in ("suite", "task", "metric", "memorize"))
        if key not in kept or step_of(row) >= step_of(kept[key]):
            kept[key] = row
    return list(kept.values())


def step_of(row: Row) -> float:
    """The step of a row, -1 where it has none."""
    return float(row["step"]) if is_number(row.get("step")) else -1.0


def eval_tables(rows: list[Row]) -> list[Table]:
    """One table per suite: a line per task and metric, a column per memorisation mode.

    What its memories wrote is in a folded table of its own behind the scores.
    """
    suites: dict[tuple[str, bool], list[Row]] = {}
    for row in newest(rows):
        suite, written = str(row.get("suite", "")), str(row.get("metric", "")).startswith("memory/")
        suites.setdefault((suite, False), [])
        suites.setdefault((suite, True), [])
        suites[suite, written].append(row)
    return [suite_table(suite, part, folded) for (suite, folded), part in suites.items() if part]


def suite_table(suite: str, rows: list[Row], folded: bool = False) -> Table:
    """The table of one suite, or of what memories wrote in it."""
    modes = [m for m in MODES if any(row.get("memorize", "off") == m for row in rows)]
    lines: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        key = (str(row.get("task", "")), str(row.get("metric", "")))
        lines.setdefault(key, {})[str(row.get("memorize", "off"))] = row
    head = ["task", "metric", *(f"memory {mode}" for mode in modes), "chance", "n"]
    cells = [line_cells(key, by_mode, modes) for key, by_mode in lines.items()]
    notes = list(
        dict.fromkeys(str(r["note"]) for r in rows if r.get("value") is None and r.get("note"))
    )
    steps = sorted({int(step_of(row)) for row in rows if step_of(row) >= 0})
    note = f"Step {', '.join(map(str, steps))}. " if steps else ""
    note += (
        "A dash is a value that could not be measured: " + "; ".join(notes) + "." if notes else ""
    )
    columns = ("task", "metric", "memorize", "step", "value", "stderr", "chance", "n", "note")
    numbers = [list(columns), *([row.get(c, "") for c in columns] for row in rows)]
    name = f"eval_{''.join(c if c.isalnum() else '_' for c in suite)}"
    if folded:
        name, suite = f"{name}_memory", f"{suite}: what memories wrote"
    return Table(name, suite, head, cells, numbers, note.strip(), folded=folded)


def line_cells(key: tuple[str, str], by_mode: dict[str, Row], modes: list[str]) -> list[Cell]:
    """One task and metric across the modes."""
    cells = [Cell(text, text) for text in key]
    some = next(iter(by_mode.values()))
    for mode in modes:
        row = by_mode.get(mode, {})
        value = row.get("value")
        shown = with_error(value, row.get("stderr"))
        note = str(row.get("note", ""))
        cells.append(Cell(shown, sort_key(value), note, numeric=True))
    chance = some.get("chance")
    cells.append(Cell(figure(chance), sort_key(chance), numeric=True))
    sizes = [int(row["n"]) for row in by_mode.values() if is_number(row.get("n"))]
    return [*cells, Cell(str(max(sizes)) if sizes else DASH, max(sizes, default=""), numeric=True)]


def sort_key(value: Any) -> float | str:
    """What a cell sorts by: its number, or nothing."""
    return float(value) if is_number(value) else ""


@dataclass(frozen=True)
class Grid:
    """A matrix of measured values, for a heat map.

    Attributes:
        name: file stem of its CSV.
        title: the caption.
        row_label, column_label: what rows and columns are.
        rows, columns: their names.
        values: one list per row; None where nothing was measured.
        low, high: the ends of the colour scale.
        details: like ``values``: a sentence per cell.
        note: a sentence below.
    """

    name: str
    title: str
    row_label: str
    column_label: str
    rows: list[str]
    columns: list[str]
    values: list[list[float | None]]
    low: float
    high: float
    details: list[list[str]] = field(default_factory=list)
    note: str = ""


def grid_table(grid: Grid) -> Table:
    """A grid as a coloured table; every cell also shows its number."""
    span = (grid.high - grid.low) or 1.0
    rows = []
    for r, name in enumerate(grid.rows):
        cells = [Cell(name, name)]
        for c, value in enumerate(grid.values[r]):
            detail = grid.details[r][c] if grid.details else ""
            shade = None if value is None else min(1.0, max(0.0, (value - grid.low) / span))
            sort = "" if value is None else value
            cells.append(Cell(figure(value, 3), sort, detail, numeric=True, shade=shade))
        rows.append(cells)
    numbers: list[list[Any]] = [[grid.row_label, grid.column_label, "value", "detail"]]
    for r, name in enumerate(grid.rows):
        for c, column in enumerate(grid.columns):
            detail = grid.details[r][c] if grid.details else ""
            numbers.append([name, column, grid.values[r][c], detail])
    legend = [Cell(figure(grid.low + span * k / 4, 3), shade=k / 4, numeric=True) for k in range(5)]
    corner = f"{grid.row_label} / {grid.column_label}"
    head = [corner, *grid.columns]
    return Table(grid.name, grid.title, head, rows, numbers, grid.note, True, corner, legend)


def fact_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Named facts as text, empty ones left out, mappings joined."""
    out = []
    for name, value in facts.items():
        if value in (None, "", [], {}):
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        elif isinstance(value, (list, tuple)):
            value = ", ".join(map(str, value))
        elif is_number(value):
            value = count(value) if isinstance(value, int) and value > 99999 else figure(value)
        out.append((name, str(value)))
    return out
