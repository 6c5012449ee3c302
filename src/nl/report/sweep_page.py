"""One page of a sweep: its axes against each other, statistics over seeds, what failed. Floor 1."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nl.config import ConfigError
from nl.report.cells import is_grid, read_json
from nl.report.dashboard import Board, dashboard
from nl.report.frames import Row, is_number
from nl.report.numbers import DASH, duration, figure, with_error
from nl.report.page import Placed, data_uri, load_template, replace
from nl.report.tables import Cell, Table, sort_key, table_csv
from nl.run.student import spread

METADATA, RESULTS, SPEC = "sweep_metadata.yaml", "results.jsonl", "sweep.yaml"
COLUMN = "column/"
RUN_COLUMNS = ("status", "seed", "parameters", "steps", "seconds", "cpu_seconds")
MOST_METRICS = 12
"""Numbers of the table of experiments; all of them are in its CSV."""
MOST_NUMBERS = 3000
"""Above this many statistics the CSV of the table holds those of the table alone."""


def is_sweep(path: Path) -> bool:
    """Whether a directory holds a sweep."""
    return (path / METADATA).is_file()


def write_sweep_page(
    roots: Path | Sequence[Path],
    page: Path | None = None,
    *,
    overlaps: Mapping[str, Sequence[Row]] | None = None,
    pages: Path | None = None,
) -> Path:
    """Write ``index.html`` of a sweep, finished or not; a dashboard where it has tasks and models.

    Args:
        roots: the sweep's directory; of several, one page over all, which takes the goal of the
            first.
        page: where; default: ``index.html`` in the first.
        overlaps: per task what train and test share, for runs that do not say.
        pages: where the pages of runs are, below their names; default: in the runs.

    Raises:
        ConfigError: its files cannot be read, or the page cannot be written.
    """
    several = [roots] if isinstance(roots, Path) else list(roots)
    page = page or several[0] / "index.html"
    root, rows = merged(several)
    place = pages or root

    def page_of(row: Row) -> str:
        """Where the page of a run is, seen from this page."""
        found = place / str(row.get("run_dir", "")) / "report.html"
        return Path(os.path.relpath(found, page.parent)).as_posix() if found.is_file() else ""

    html = html_of(several, root, rows, page_of, overlaps or {})
    replace(page, html)
    return page


def html_of(
    roots: Sequence[Path],
    root: Path,
    rows: Sequence[Row],
    page_of: Callable[[Row], str],
    overlaps: Mapping[str, Sequence[Row]],
) -> str:
    """The page: a dashboard of tasks and models, else the tables that every sweep has."""
    tellings = [_yaml(one / METADATA) for one in roots]
    goal = (tellings[0].get("goal") or {}).get("name", "val/loss")
    best_high = (tellings[0].get("goal") or {}).get("direction") == "maximize"
    names = [
        str(told.get("sweep_name", one.name)) for one, told in zip(roots, tellings, strict=True)
    ]
    facts = [
        ("runs", ", ".join(f"{n} {state}" for state, n in counted(rows).items()) or "none"),
        ("seeds", ", ".join(map(str, tellings[0].get("seeds", [])))),
        ("goal", f"{goal}, {'higher' if best_high else 'lower'} is better"),
        ("base", str(tellings[0].get("base_config_file", DASH))),
        *cpu_fact(rows),
    ]
    sections = sweep_sections(rows, goal, best_high, page_of)
    if not is_grid(rows):
        return plain_page(", ".join(names), root, facts, sections, rows)
    return dashboard(
        Board(
            title=", ".join(names),
            where=", ".join(one.name for one in roots),
            facts=[*facts, *made_with(root, rows)],
            root=root,
            sweep=merged_spec(roots),
            rows=rows,
            goal=goal,
            overlaps=overlaps,
            sections=[placed for placed in sections if placed[0] != "Axes"],
            page_of=page_of,
        )
    )


def merged(roots: Sequence[Path]) -> tuple[Path, list[Row]]:
    """The folder that holds all sweeps, and their rows with run directories below it."""
    if len(roots) == 1:
        return roots[0], read_results(roots[0])
    whole = [root.resolve() for root in roots]
    top = Path(os.path.commonpath(whole))
    rows = []
    for root in whole:
        below = root.relative_to(top)
        found = read_results(root)
        rows += [{**row, "run_dir": (below / str(row.get("run_dir"))).as_posix()} for row in found]
    return top, rows


def merged_spec(roots: Sequence[Path]) -> Row:
    """The files of the sweeps, as far as they say what was planned."""
    axes: dict[str, list[Any]] = {}
    exclude: list[Any] = []
    for root in roots:
        spec = _yaml(root / SPEC) if (root / SPEC).is_file() else {}
        for name, variants in (spec.get("axes") or {}).items():
            axes.setdefault(name, []).extend(variants or [])
        exclude += spec.get("exclude") or []
    return {"axes": axes, "exclude": exclude}


def sweep_sections(
    rows: Sequence[Row], goal: str, best_high: bool, page_of: Callable[[Row], str]
) -> list[tuple[str, list[Placed]]]:
    """The tables that every sweep has."""
    statistics = statistics_of(rows)
    tables = [("Experiments", [experiment_table(rows, statistics, goal, best_high)])]
    axes = axes_of(rows)
    if len(axes) == 2:
        tables.insert(0, ("Axes", pivots(rows, statistics, axes, goal, best_high)))
    if failed := [row for row in rows if row.get("error")]:
        tables.append(("Failures", [failure_table(failed)]))
    tables.append(("Runs", [run_table(rows, page_of)]))
    return [
        (heading, [Placed(t, f"{t.name}.csv", data_uri(table_csv(t))) for t in found])
        for heading, found in tables
    ]


def counted(rows: Sequence[Row]) -> dict[str, int]:
    """Runs by state."""
    return {state: sum(row["status"] == state for row in rows) for state in states(rows)}


def cpu_fact(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """CPU time of all runs, and of how many it is known where not of all."""
    known = [row["cpu_seconds"] for row in rows if is_number(row.get("cpu_seconds"))]
    of = "" if len(known) == len(rows) else f" ({len(known)} of {len(rows)} runs)"
    return [("CPU time", f"{duration(sum(known))}{of}")] if known else []


def plain_page(
    title: str,
    root: Path,
    facts: list[tuple[str, str]],
    sections: list[tuple[str, list[Placed]]],
    rows: Sequence[Row],
) -> str:
    """The page of a sweep that is not over tasks and models."""
    unfinished = sum(row["status"] not in ("done", "failed", "broken") for row in rows)
    warning = f"{unfinished} runs have not ended; their cells are empty."
    written = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return str(
        load_template("tables.html.j2").render(
            title=title,
            where=str(root),
            facts=[*facts, ("written", written)],
            warnings=[warning] if unfinished else [],
            notes=[
                "Mean over seeds +- half the 95 % interval of that mean (Student); no interval "
                "from one seed."
            ],
            sections=sections,
        )
    )


def made_with(root: Path, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Code and device of the runs, from the first that says them."""
    for row in rows:
        meta = read_json(root / str(row.get("run_dir", "")) / "meta.json")
        if meta:
            git = meta.get("git") if isinstance(meta.get("git"), dict) else {}
            sha = str((git or {}).get("sha") or "")[:12]
            devices = sorted({str(device) for device in meta.get("devices") or []})
            found = {"code": sha, "device": ", ".join(devices)}
            return [(name, value) for name, value in found.items() if value]
    return []


def statistics_of(rows: Sequence[Row]) -> dict[str, dict[str, Row]]:
    """Experiment -> number -> its statistics over the seeds that are done."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["status"] == "done":
            found.setdefault(row["experiment"], []).append(row.get("metrics") or {})
    return {
        name: {
            key: spread([one[key] for one in many])
            for key in many[0]
            if all(is_number(one.get(key)) for one in many)
        }
        for name, many in found.items()
    }


def axes_of(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Columns that take more than one value, and their values in order of appearance."""
    found: dict[str, list[Any]] = {}
    for row in rows:
        for key, value in row.items():
            if key.startswith(COLUMN) and value not in found.setdefault(key, []):
                found[key].append(value)
    return {key: values for key, values in found.items() if len(values) > 1}


def states(rows: Sequence[Row]) -> list[str]:
    """States that occur, done first."""
    return sorted({row["status"] for row in rows}, key=lambda state: (state != "done", state))


def shown_metrics(statistics: dict[str, dict[str, Row]], goal: str) -> list[str]:
    """The goal, then evaluations, then losses of splits; the first that fit."""
    names = list(dict.fromkeys(key for one in statistics.values() for key in one))
    rest = [n for n in names if n != goal]
    rest.sort(key=lambda n: (not n.startswith("eval/"), not n.endswith("/loss")))
    return [name for name in (goal, *rest) if name in names][:MOST_METRICS]


def spread_text(found: Row | None) -> str:
    """``mean +- half width of its interval``; the mean alone of one seed."""
    if not found:
        return DASH
    return with_error(found["mean"], found.get("ci95"))


def pivots(
    rows: Sequence[Row],
    statistics: dict[str, dict[str, Row]],
    axes: dict[str, list[Any]],
    goal: str,
    best_high: bool,
) -> list[Table]:
    """The goal, and up to three more numbers, as one axis against the other."""
    metrics = shown_metrics(statistics, goal)
    siblings = [m for m in metrics if m.rsplit("/", 1)[-1] == goal.rsplit("/", 1)[-1]]
    return [pivot(rows, statistics, axes, metric, best_high) for metric in siblings[:4]]


def pivot(
    rows: Sequence[Row],
    statistics: dict[str, dict[str, Row]],
    axes: dict[str, list[Any]],
    metric: str,
    best_high: bool,
) -> Table:
    """A line per value of the axis with more of them, a column per value of the other."""
    down, across = sorted(axes, key=lambda key: -len(axes[key]))
    names = {(row[down], row[across]): row["experiment"] for row in rows if down in row}
    head = [down.removeprefix(COLUMN), *map(str, axes[across]), "mean"]
    numbers: list[list[Any]] = [[head[0], head[1] and across.removeprefix(COLUMN), "mean", "ci95"]]
    cells = []
    for value in axes[down]:
        found = [statistics.get(names.get((value, c), ""), {}).get(metric) for c in axes[across]]
        means = [one["mean"] for one in found if one]
        best = (max if best_high else min)(means, default=None)
        line = [Cell(str(value), str(value))]
        for column, one in zip(axes[across], found, strict=True):
            mean = one["mean"] if one else None
            title = "best of its row" if one and mean == best else ""
            text = spread_text(one) + (" *" if title else "")
            line.append(Cell(text, sort_key(mean), title, numeric=True))
            if one:
                numbers.append([value, column, mean, one.get("ci95")])
        whole = sum(means) / len(means) if len(means) == len(axes[across]) else None
        line.append(Cell(figure(whole), sort_key(whole), numeric=True))
        cells.append(line)
    stem = "pivot_" + "".join(c if c.isalnum() else "_" for c in metric)
    note = "* best of its row; a mean only where no cell is missing."
    return Table(stem, metric, head, cells, numbers, note)


def experiment_table(
    rows: Sequence[Row], statistics: dict[str, dict[str, Row]], goal: str, best_high: bool
) -> Table:
    """A line per experiment, the best first."""
    metrics = shown_metrics(statistics, goal)
    names = list(dict.fromkeys(row["experiment"] for row in rows))

    def rank(name: str) -> float:
        found = statistics.get(name, {}).get(goal)
        if not found:
            return float("inf")
        return float(-found["mean"] if best_high else found["mean"])

    head = ["experiment", "done", *metrics]
    every = list(dict.fromkeys(key for one in statistics.values() for key in one))
    whole = len(every) * len(names) <= MOST_NUMBERS
    every = every if whole else metrics
    numbers: list[list[Any]] = [["experiment", "metric", "n", "mean", "std", "ci95", "min", "max"]]
    cells = []
    for name in sorted(names, key=rank):
        mine = [row for row in rows if row["experiment"] == name]
        done = sum(row["status"] == "done" for row in mine)
        line = [Cell(name, name), Cell(f"{done} of {len(mine)}", float(done), numeric=True)]
        for metric in metrics:
            found = statistics.get(name, {}).get(metric)
            key = sort_key(found["mean"]) if found else ""
            line.append(Cell(spread_text(found), key, numeric=True))
        for metric in every:
            if found := statistics.get(name, {}).get(metric):
                values = [found.get(k) for k in ("n", "mean", "std", "ci95", "min", "max")]
                numbers.append([name, metric, *values])
        cells.append(line)
    note = (
        "" if whole else "The numbers of this table; all of them are in results.csv of the sweep."
    )
    return Table("experiments", "experiments", head, cells, numbers, note)


def failure_table(rows: Sequence[Row]) -> Table:
    """What failed, with the error."""
    head = ["experiment", "seed", "attempts", "error", "message"]
    numbers: list[list[Any]] = [list(head)]
    cells = []
    for row in rows:
        error = row["error"]
        values = [row["experiment"], row["seed"], row.get("attempts"), error.get("type")]
        values.append(error.get("message"))
        numbers.append(values)
        trace = str(error.get("traceback_tail", ""))
        cells.append([Cell(str(v), str(v), trace if n == 4 else "") for n, v in enumerate(values)])
    return Table("failures", "failures", head, cells, numbers)


def run_table(rows: Sequence[Row], page_of: Callable[[Row], str]) -> Table:
    """A line per run, with a link to its own page where there is one."""
    head = ["run", *(key.replace("cpu_", "CPU ") for key in RUN_COLUMNS), "hash"]
    numbers: list[list[Any]] = [list(head)]
    cells = []
    for row in rows:
        link = page_of(row)
        values = [row.get(key) for key in RUN_COLUMNS]
        numbers.append([row.get("run_dir"), *values, row.get("config_hash")])
        line = [Cell(str(row.get("run_dir")), str(row.get("run_dir")), href=link)]
        line.append(Cell(str(values[0]), str(values[0])))
        line += [Cell(figure(v), sort_key(v), numeric=True) for v in values[1:4]]
        line += [Cell(duration(v), sort_key(v), numeric=True) for v in values[4:]]
        line.append(Cell(str(row.get("config_hash", DASH)), str(row.get("config_hash", ""))))
        cells.append(line)
    return Table("runs", "runs", head, cells, numbers)


def _yaml(path: Path) -> Row:
    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}).") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: no mapping; run nl sweep on this directory again.")
    return found


def read_results(root: Path) -> list[Row]:
    """Rows of results.jsonl; a later row of a job replaces an earlier one.

    Raises:
        ConfigError: a line that is no JSON.
    """
    path = root / RESULTS
    if not path.is_file():
        return []
    found: dict[str, Row] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path}: line {number} is no JSON; run nl sweep again.") from error
        found[str(row.get("run_dir"))] = row
    return list(found.values())
