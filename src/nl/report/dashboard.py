"""The dashboard of a sweep over tasks and models: one page, its data inside it. Floor 1."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nl.report.cells import FLAGS, TASK, Cell, family_of, lower_is_better, make_cells, read_json
from nl.report.frames import Row, is_number
from nl.report.page import Placed, load_template, script_data

FIRST = ("accuracy", "loss")
"""Measures that come first, where the sweep has them."""
OWN = "of these runs"
"""The data that the runs were trained and tested on, among others that are compared."""
OVERLAP = "overlap.json"
"""What an evaluator says about examples that two splits share, below its details."""


@dataclass(frozen=True)
class Board:
    """What a dashboard shows.

    Attributes:
        title, where: of the page.
        facts: (name, value) under the title.
        root: directory of the sweep.
        sweep: its file, parsed; empty where it cannot be read.
        rows: of results.jsonl, those of one job once.
        goal: the number that counts.
        overlaps: per task what train and test share: of these runs where no run says so, and of
            other data (``data``).
        sections: (heading, tables) below.
        page_of: where the page of a row's run is; empty where it has none.
    """

    title: str
    where: str
    facts: list[tuple[str, str]]
    root: Path
    sweep: Row
    rows: Sequence[Row]
    goal: str
    overlaps: Mapping[str, Sequence[Row]]
    sections: list[tuple[str, list[Placed]]]
    page_of: Callable[[Row], str]


def dashboard(board: Board) -> str:
    """The page as HTML."""
    data = board_data(board)
    counts: dict[str, int] = {}
    for cell in data["cells"]:
        counts[cell["state"]] = counts.get(cell["state"], 0) + 1
    return str(
        load_template("dashboard.html.j2").render(
            title=board.title,
            where=board.where,
            facts=[
                ("cells", ", ".join(f"{n} {s}" for s, n in counts.items()) or "none"),
                *board.facts,
                ("written", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())),
            ],
            data=script_data(data),
            overlaps=data["overlap"],
            splits=data["splits"],
            sections=board.sections,
        )
    )


def board_data(board: Board) -> dict[str, Any]:
    """Everything the page computes with, as JSON data."""
    cells, tasks, models = make_cells(board.root, board.sweep, board.rows, board.page_of)
    overlap = overlap_rows(board, tasks)
    seen = {row["task"] for row in overlap if row["seen"] and row["data"] == OWN}
    for cell in cells:
        if cell.task in seen and cell.values:
            cell.flags.append("overlap")
    names = list(dict.fromkeys(name for cell in cells for name in cell.values))
    splits = list(dict.fromkeys(name.split("|")[0] for name in names))
    measures = list(dict.fromkeys(name.split("|")[1] for name in names))
    measures.sort(key=lambda m: FIRST.index(m) if m in FIRST else len(FIRST))
    goal_measure = board.goal.rsplit("/", 1)[-1]
    return {
        "title": board.title,
        "goal": goal_measure,
        "tasks": [{"name": task, "family": task_family(board.rows, task)} for task in tasks],
        "models": models,
        "facets": list(dict.fromkeys(cell.facet for cell in cells)),
        "splits": sorted(splits, key=split_order),
        "measures": [{"name": m, "low": lower_is_better(m)} for m in measures],
        "flags": FLAGS,
        "cells": [cell_data(cell) for cell in cells],
        "overlap": overlap,
    }


def split_order(split: str) -> tuple[int, str]:
    """train, val, test, then the others by name."""
    known = ("train", "val", "test")
    return (known.index(split), "") if split in known else (len(known), split)


def task_family(rows: Sequence[Row], task: str) -> str:
    """As the sweep's column ``family`` says, else by the name."""
    for row in rows:
        if row.get(TASK) == task and "column/family" in row:
            return str(row["column/family"])
    return family_of(task)


def cell_data(cell: Cell) -> dict[str, Any]:
    """A cell as the page reads it: statistics as [mean, half interval, n, low, high]."""
    found: dict[str, Any] = {"task": cell.task, "model": cell.model, "state": cell.state}
    if cell.facet:
        found["facet"] = cell.facet
    if cell.values:
        found["values"] = {
            name: [rounded(v[k]) for k in ("mean", "ci95", "n", "min", "max")]
            for name, v in cell.values.items()
        }
        found["chance"] = {name: rounded(value) for name, value in cell.chance.items()}
        found["sizes"] = {name: n for name, n in cell.sizes.items() if n}
        found["levels"] = {
            name: {rule: rounded(value) for rule, value in rules.items()}
            for name, rules in cell.levels.items()
        }
    if cell.flags:
        found["flags"] = cell.flags
    found["runs"] = cell.runs
    return found


def rounded(value: Any) -> Any:
    """Six significant digits, which is more than a page shows."""
    return float(f"{value:.6g}") if is_number(value) else None


def overlap_rows(board: Board, tasks: Sequence[str]) -> list[Row]:
    """Lines per task: what test shares with train, as its runs say, else as the caller does."""
    found = []
    for task in tasks:
        told = list(board.overlaps.get(task) or [])
        written = written_overlap(board, task)
        if written:
            told = [*(one for one in told if one["data"] != OWN), {"data": OWN, **written}]
        found += [{"task": task, "rate": one["seen"] / max(1, one["total"]), **one} for one in told]
    return found


def written_overlap(board: Board, task: str) -> Row:
    """What the evaluator of a run of this task wrote; empty where none did."""
    for row in board.rows:
        if row.get(TASK) == task:
            evals = board.root / str(row.get("run_dir", "")) / "artifacts" / "evals"
            for path in sorted(evals.glob(f"*/{OVERLAP}")):
                found = read_json(path).get("test")
                if isinstance(found, dict):
                    return found
    return {}
