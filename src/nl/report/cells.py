"""A sweep over tasks and models as cells: statistics, states, marks, pages of runs. Floor 1.

A cell is a pair of task and model (and of whatever else the sweep varies, its facet). Nothing that
was planned is left out: what failed, runs, stopped or never began is a state of its cell.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nl.report.frames import Row, is_number
from nl.run.student import spread

TASK, MODEL = "column/task", "column/model"
COLUMN = "column/"
STATES = ("failed", "broken", "running", "stopped", "missing")
"""What an unfinished cell is called by, the worst first."""
LOWER = ("loss", "nats", "nll", "ppl", "perplexity", "lag", "forgetting", "error", "seconds")
"""A measure whose name ends so is better when it is lower."""
SEEDS = 3
"""Fewer finished seeds than this are marked."""
MOST_KEYS = 48
"""Above this many numbers per cell only those stay that a third of the tasks have."""
FAMILIES = (
    ("single numbers", ("sign_of_", "has_pos", "any_abs")),
    ("sums", ("single_digit", "aa_bb", "multi_digit")),
    ("tokens", ("has_all",)),
    ("recall", ("mqar", "ar_", "mad_", "noisy_recall", "recall")),
    ("copying", ("selective_copy", "copy", "reverse", "induction")),
    ("state tracking", ("state_tracking", "parity", "s3", "s5", "a5", "c5", "flipflop", "group")),
    ("formal languages", ("formal", "dyck")),
    ("continual", ("cl_", "nonstat", "continual")),
)
"""Family of a task by the beginning of its name, where the sweep has no column ``family``."""


@dataclass(frozen=True)
class Cell:
    """One task, one model.

    Attributes:
        task, model, facet: what it is.
        state: ``done``, ``partial`` (some seeds), a state of ``STATES``, or ``excluded``.
        values: ``split|measure`` -> statistics over seeds.
        chance, sizes: ``split|measure`` -> what guessing scores; number of examples.
        levels: ``split|measure`` -> what the oracle and the best shortcut score.
        flags: marks, see ``FLAGS``.
        runs: per seed its state, page, error and progress.
    """

    task: str
    model: str
    facet: str
    state: str
    values: dict[str, Row] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    levels: dict[str, dict[str, float]] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    runs: list[Row] = field(default_factory=list)


FLAGS = {
    "seeds": f"fewer than {SEEDS} finished seeds: no interval to speak of",
    "part": "some seeds have not finished",
    "dead": "a memory level that was never written",
    "overlap": "test examples that were seen in training",
}
"""What a mark says."""


def is_grid(rows: Sequence[Row]) -> bool:
    """Whether the rows are those of tasks and models."""
    return any(TASK in row and MODEL in row for row in rows)


def family_of(task: str) -> str:
    """The family of a task by its name; other names are families of their own."""
    for family, starts in FAMILIES:
        if task.startswith(starts):
            return family
    return "other"


def lower_is_better(measure: str) -> bool:
    """By the last word of its name."""
    last = measure.rsplit("/", 1)[-1].lower()
    return last.endswith(LOWER) or last.startswith(("nats", "bits"))


def split_of(key: str) -> tuple[str, str, str] | None:
    """``(suite, split, measure)`` of a number of results.jsonl; None for one of the machine."""
    parts = key.split("/")
    if parts[0] == "eval" and len(parts) >= 4:
        return parts[1], "/".join(parts[2:-1]), parts[-1]
    if len(parts) >= 2 and not {"memory", "perf", "ppl"} & set(parts):
        return "", "/".join(parts[:-1]), parts[-1]
    return None


def evals_of(root: Path, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Run directory -> its evaluations as the summary tells them."""
    found = {}
    for row in rows:
        if row.get("status") == "done":
            run = str(row.get("run_dir"))
            evals = read_json(root / run / "summary.json").get("evals")
            found[run] = [one for one in evals or [] if isinstance(one, dict)]
    return found


def eval_key(told: Row) -> str:
    """What results.jsonl calls an evaluation."""
    return f"eval/{told.get('suite')}/{told.get('task')}/{told.get('metric')}"


def shown_keys(rows: Sequence[Row], evals: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    """Metric -> ``split|measure``; an evaluation goes before a training row of the same split.

    Two suites that measure the same are told apart by their name. Left out: parts of a measure
    (``accuracy/gap=4``), what rules score (``test/oracle``), and, of very many numbers, those that
    few tasks have.
    """
    exact = {
        eval_key(told): (str(told.get("suite")), str(told.get("task")), str(told.get("metric")))
        for found in evals.values()
        for told in found
    }
    found = {}
    holders: dict[str, set[str]] = {}
    for row in rows:
        for key, value in (row.get("metrics") or {}).items():
            parts = exact.get(key) or split_of(key)
            if not is_number(value) or parts is None or "/" in parts[2] or is_rule(parts[1]):
                continue
            found[key] = parts
            holders.setdefault(key, set()).add(str(row.get(TASK)))
    tasks = len({row.get(TASK) for row in rows}) or 1
    if len(found) > MOST_KEYS:
        found = {k: v for k, v in found.items() if 3 * len(holders[k]) >= tasks}
    suites: dict[str, set[str]] = {}
    for suite, split, measure in found.values():
        if suite:
            suites.setdefault(f"{split}|{measure}", set()).add(suite)
    names = {}
    for key, (suite, split, measure) in found.items():
        name = f"{split}|{measure}"
        if suite or name not in suites:
            names[key] = f"{suite} {name}" if len(suites.get(name, ())) > 1 else name
    return names


def is_rule(split: str) -> bool:
    """Whether an evaluation is that of a rule, not of the model."""
    return split.rsplit("/", 1)[-1].startswith(("chance", "oracle", "shortcut"))


def planned(sweep: Row, rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Tasks and models in the order of the file, those that only rows have after them."""
    axes = sweep.get("axes")
    axes = axes if isinstance(axes, dict) else {}
    found: list[list[str]] = []
    for column in (TASK, MODEL):
        named = axes.get(column.removeprefix(COLUMN))
        names = [str(one["name"]) for one in named or [] if isinstance(one, dict) and "name" in one]
        names += [str(row[column]) for row in rows if column in row]
        found.append(list(dict.fromkeys(names)))
    return found[0], found[1]


def excluded(sweep: Row, point: Mapping[str, str]) -> bool:
    """Whether the file leaves a combination out."""
    for rule in sweep.get("exclude") or []:
        asked = {str(k): v if isinstance(v, list) else [v] for k, v in dict(rule).items()}
        if all(point.get(key) in [str(v) for v in values] for key, values in asked.items()):
            return True
    return False


def facet_of(row: Row) -> str:
    """What a row varies besides task and model."""
    rest = {k: v for k, v in row.items() if k.startswith(COLUMN) and k not in (TASK, MODEL)}
    rest.pop("column/family", None)
    return ", ".join(f"{k.removeprefix(COLUMN)} {v}" for k, v in rest.items())


def make_cells(
    root: Path, sweep: Row, rows: Sequence[Row], page_of: Callable[[Row], str]
) -> tuple[list[Cell], list[str], list[str]]:
    """All cells, tasks and models of a sweep.

    Args:
        root: its directory.
        sweep: its file, for what was planned.
        rows: of results.jsonl; those of one job once.
        page_of: where the page of a row's run is; empty where it has none.
    """
    tasks, models = planned(sweep, rows)
    evals = evals_of(root, rows)
    keys = shown_keys([row for row in rows if row.get("status") == "done"], evals)
    grouped: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if TASK in row and MODEL in row:
            grouped.setdefault((str(row[TASK]), str(row[MODEL]), facet_of(row)), []).append(row)
    facets = list(dict.fromkeys(facet for _, _, facet in grouped)) or [""]
    wanted = max((len(found) for found in grouped.values()), default=1)
    cells = []
    for facet in facets:
        for task in tasks:
            for model in models:
                mine = grouped.get((task, model, facet), [])
                if not mine:
                    mine = begun(root, f"{task}_{model}")
                point = {"task": task, "model": model}
                if not mine and excluded(sweep, point):
                    cells.append(Cell(task, model, facet, "excluded"))
                    continue
                cells.append(one_cell((task, model, facet), mine, keys, evals, wanted, page_of))
    return cells, tasks, models


def begun(root: Path, experiment: str) -> list[Row]:
    """Jobs of an experiment that have a directory but no row yet."""
    found: list[Row] = []
    for path in sorted((root / experiment).glob("seed_*/status.json")):
        told = read_json(path)
        state = str(told.get("state", "broken"))
        seed = path.parent.name.removeprefix("seed_")
        if seed.isdigit():  # not one that was moved aside
            run_dir = f"{experiment}/{path.parent.name}"
            found.append({"run_dir": run_dir, "status": state, "progress": told, "seed": int(seed)})
    return found


def read_json(path: Path) -> Row:
    """A JSON mapping; empty where it cannot be read."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def one_cell(
    place: tuple[str, str, str],
    rows: Sequence[Row],
    keys: Mapping[str, str],
    evals: Mapping[str, Sequence[Row]],
    wanted: int,
    page_of: Callable[[Row], str],
) -> Cell:
    """Statistics of what is done, states of the rest."""
    done = [row for row in rows if row.get("status") == "done"]
    states = [str(row.get("status", "missing")) for row in rows]
    state = next((s for s in STATES if s in states), "missing")
    if done:
        state = "done" if len(done) == len(rows) == wanted else "partial"
    cell = Cell(*place, state, runs=[one_run(row, page_of(row)) for row in rows])
    for key, name in keys.items():
        found = [(row.get("metrics") or {}).get(key) for row in done]
        numbers = [float(value) for value in found if value is not None and is_number(value)]
        if numbers and len(numbers) == len(found):
            cell.values[name] = spread(numbers)
    for row in done:
        add_levels(cell, evals.get(str(row.get("run_dir")), ()), keys)
    if done and len(done) < SEEDS:
        cell.flags.append("seeds")
    if state == "partial":
        cell.flags.append("part")
    if any(dead(row.get("metrics") or {}) for row in done):
        cell.flags.append("dead")
    return cell


def add_levels(cell: Cell, evals: Sequence[Row], keys: Mapping[str, str]) -> None:
    """Chance, number of examples, oracle and best shortcut of what a run's summary tells of."""
    for told in evals:
        name = keys.get(eval_key(told))
        split, _, rule = str(told.get("task")).rpartition("/")
        if name is not None:
            if is_number(told.get("chance")):
                cell.chance[name] = float(told["chance"])
            cell.sizes[name] = int(told.get("n") or 0)
        elif is_rule(rule) and rule != "chance" and is_number(told.get("value")):
            levels = cell.levels.setdefault(f"{split}|{told.get('metric')}", {})
            kind = "oracle" if rule == "oracle" else "shortcut"
            levels[kind] = max(levels.get(kind, -math.inf), float(told["value"]))


def dead(metrics: Row) -> bool:
    """Whether the run ended with a memory level that had never been written."""
    for key, value in metrics.items():
        parts = key.split("/")
        written = {"writes", "updates"} & set(parts[1:])
        # Where an evaluation keeps memories from writing, nothing is written.
        if value == 0 and written and "frozen" not in parts:
            return True
    return False


def progress_text(progress: Any) -> str:
    """How far a run is, from its share of steps or its status."""
    if is_number(progress):
        return f"{100 * progress:.0f} %"
    if isinstance(progress, dict) and is_number(progress.get("total_steps")):
        return f"step {progress.get('step', 0)} of {progress['total_steps']}"
    return ""


def one_run(row: Row, page: str) -> Row:
    """What the page shows of one seed."""
    found: Row = {"seed": row.get("seed"), "state": row.get("status"), "page": page}
    found["run"] = str(row.get("run_dir", ""))
    error = row.get("error")
    if isinstance(error, dict):
        found["error"] = f"{error.get('type')}: {error.get('message')}"
    if row.get("status") != "done":
        found["step"] = progress_text(row.get("progress"))
    if is_number(row.get("seconds")):
        found["seconds"] = round(float(row["seconds"]), 1)
    if is_number(row.get("parameters")):
        found["parameters"] = row["parameters"]
    return found
