"""The page of one run: ``report.html``, one self-contained file, and a CSV per figure. Floor 1."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nl.config import ConfigError, writing
from nl.report.answers import answers
from nl.report.artifacts import baselines, forgetting_grids, mapping, needle_grids, samples
from nl.report.curves import loss_figure, small_figures
from nl.report.examples import (
    attention,
    class_figures,
    class_splits,
    confusion_grids,
    example_note,
    example_rows,
    kind_table,
)
from nl.report.figures import Figure, draw, figure_csv, standalone, themed
from nl.report.frames import RunFrame, is_number, read_run
from nl.report.numbers import count, duration, figure
from nl.report.tables import Cell, Table, eval_tables, fact_rows, grid_table, sort_key, table_csv
from nl.report.weights import Weight, newest_weights, read_weights, sparkline
from nl.run.files import write_atomic

FOLDER = "report"
"""Below ``artifacts``: CSV and SVG files of the page."""


@dataclass(frozen=True)
class Picture:
    """A drawn figure on the page."""

    title: str
    svg: str
    csv_name: str
    csv_uri: str
    wide: bool


@dataclass(frozen=True)
class Placed:
    """A table on the page with its CSV."""

    table: Table
    csv_name: str
    csv_uri: str


def write_report(directory: str | Path, place: Path | None = None) -> Path:
    """Write ``report.html`` and ``artifacts/report/*`` of a run directory, finished or not.

    Args:
        directory: the run directory.
        place: the folder for both; default: the run directory.

    Returns:
        The path of the page.

    Raises:
        ConfigError: not a run directory, it cannot be written, or the viz extra is missing.
    """
    frame = read_run(Path(directory))
    template = load_template()
    place = place or frame.directory
    output, page = place / "artifacts" / FOLDER, place / "report.html"
    with writing(page):
        output.mkdir(parents=True, exist_ok=True)
        replace(page, template.render(page_data(frame, output)))
    return page


def load_template(name: str = "run.html.j2") -> Any:
    """A page template.

    Raises:
        ConfigError: the viz extra is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ConfigError(
            "report: jinja2 is missing; install the viz extra: uv sync --extra viz, or"
            " pip install 'nl[viz]'."
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nl.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(name)


def replace(path: Path, text: str) -> Path:
    """Write a file atomically, its folder where there is none.

    Raises:
        ConfigError: it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text, durable=False)
    return path


def page_data(frame: RunFrame, output: Path) -> dict[str, Any]:
    """Everything the template shows; writes the figures' files on the way."""
    levels = baselines(frame)
    loss = loss_figure(frame, levels)
    path = newest_weights(frame.directory)
    weights = read_weights(path) if path else []
    classes = class_section(frame, output)
    shown = {
        "examples": classes["rows"],
        "attention": attention(frame),
        "answers": answers(frame) is not None,
        "weights": {w.name: [list(w.shape), w.values] for w in weights if w.values is not None},
    }
    return {
        "classes": classes,
        "answers": answers(frame),
        "attention": shown["attention"] is not None,
        "weights": place([weight_table(weights)], output)[0] if weights else None,
        "bins": {w.name: sparkline(w.bins) for w in weights},
        "open_weights": list(shown["weights"]),
        "data": script_data(shown) if any(shown.values()) else "",
        "files": raw_files(frame, output.parent.parent),
        "name": frame.config.get("name") or frame.directory.parent.name,
        "directory": frame.directory.name,
        "state": str(frame.status.get("state", "unknown")),
        "error": error_text(frame),
        "facts": fact_rows(headline(frame)),
        "tiles": tiles(frame, levels),
        "loss": picture(loss, output) if loss else None,
        "evals": place(eval_tables(frame.evals), output),
        "needle": place(map(grid_table, needle_grids(frame)), output),
        "forgetting": place(map(grid_table, forgetting_grids(frame)), output),
        "samples": samples(frame),
        "curves": {
            heading: [picture(item, output) for item in found]
            for heading, found in small_figures(frame).items()
        },
        "config": yaml.safe_dump(frame.config, sort_keys=False) if frame.config else "",
        "overrides": frame.overrides,
        "provenance": fact_rows(provenance(frame)),
        "missing": frame.missing,
    }


def class_section(frame: RunFrame, output: Path) -> dict[str, Any]:
    """Curves, confusion, kinds and examples of an evaluator of classes."""
    splits = class_splits(frame)
    kinds = kind_table(splits) if splits else None
    return {
        "figures": [picture(item, output) for item in class_figures(splits)] if splits else [],
        "tables": place(map(grid_table, confusion_grids(splits)), output),
        "kinds": place([kinds], output) if kinds else [],
        "rows": example_rows(splits),
        "note": example_note(splits) if splits else "",
    }


def script_data(data: Any) -> str:
    """JSON that is safe inside a script element of a page."""
    text = json.dumps(data, separators=(",", ":"), default=str)
    # A closing tag inside the data would end the script early.
    return text.replace("<", "\\u003c").replace("\u2028", "").replace("\u2029", "")


def weight_table(weights: list[Weight]) -> Table:
    """A line per tensor."""
    facts = ("norm", "mean", "std", "largest")
    head = ["parameter", "shape", "numbers", *facts]
    numbers: list[list[Any]] = [list(head)]
    cells = []
    for one in weights:
        shape = " x ".join(map(str, one.shape)) or "scalar"
        values = [one.facts.get(key) for key in facts]
        numbers.append([one.name, shape, one.count, *values])
        line = [Cell(one.name, one.name), Cell(shape, one.count)]
        line.append(Cell(count(one.count), one.count, numeric=True))
        lost = one.facts.get("not finite")
        note = f"{lost:.0f} numbers are not finite" if lost else ""
        line += [Cell(figure(v, 3) + "!" * bool(note), sort_key(v), note, True) for v in values]
        cells.append(line)
    total = sum(one.count for one in weights)
    note = f"{len(weights)} tensors, {total:,} numbers, of the newest checkpoint."
    return Table("parameters", "parameters", head, cells, numbers, note)


RAW = ("config.yaml", "overrides.txt", "meta.json", "status.json", "summary.json")
"""Files of a run that the page links to, with the rows and what lies below the folders."""


def raw_files(frame: RunFrame, place: Path) -> list[tuple[str, str]]:
    """(name, where it is from the page) of the files behind the page."""
    home = frame.directory
    found = [home / name for name in (*RAW, "metrics.jsonl", "evals.jsonl")]
    found += sorted((home / "logs").glob("rank_*.log"))
    evals = home / "artifacts" / "evals"
    visible = (file for file in evals.rglob("*.json*") if not _hidden(file.relative_to(evals)))
    found += sorted(visible)
    found += [path] if (path := newest_weights(home)) else []
    return [
        (file.relative_to(home).as_posix(), Path(os.path.relpath(file, place)).as_posix())
        for file in found
        if file.is_file()
    ]


def _hidden(path: Path) -> bool:
    """Whether a file, or a folder it is in, is one that listings leave out (caches)."""
    return any(part.startswith(".") for part in path.parts)


def picture(item: Figure, output: Path) -> Picture:
    """Draw a figure; its CSV and a standalone SVG go to ``output``."""
    svg, text = draw(item), figure_csv(item)
    replace(output / f"{item.name}.csv", text)
    replace(output / f"{item.name}.svg", standalone(svg))
    return Picture(item.title, themed(svg, item), f"{item.name}.csv", data_uri(text), item.wide)


def place(tables: Iterable[Table], output: Path) -> list[Placed]:
    """Tables with their CSV files written."""
    placed = []
    for table in tables:
        text = table_csv(table)
        replace(output / f"{table.name}.csv", text)
        placed.append(Placed(table, f"{table.name}.csv", data_uri(text)))
    return placed


def data_uri(text: str) -> str:
    """A CSV inside the page, so that the file stays useful when it is sent on its own."""
    return "data:text/csv;base64," + base64.b64encode(text.encode()).decode()


def model_name(frame: RunFrame) -> str:
    """The kind of model and its blocks."""
    model = frame.config.get("model")
    if not isinstance(model, dict):
        return ""
    block = model.get("block", "")
    block = ", ".join(map(str, block)) if isinstance(block, list) else str(block)
    return f"{model.get('kind', '')} ({block})" if block else str(model.get("kind", ""))


def headline(frame: RunFrame) -> dict[str, Any]:
    """The facts under the title."""
    parameters = frame.summary.get("parameters", frame.meta.get("parameters"))
    steps = frame.status.get("step", frame.last.get("step"))
    total = frame.status.get("total_steps")
    return {
        "model": model_name(frame),
        "parameters": count(parameters) if is_number(parameters) else None,
        "steps": f"{steps} of {total}" if total and steps != total else steps,
        "tokens": count(tokens) if is_number(tokens := scored_tokens(frame)) else None,
        "wall time": duration(seconds) if is_number(seconds := wall_time(frame)) else None,
        "config hash": frame.meta.get("config_hash"),
        "seed": frame.config.get("seed"),
        "started": started(frame),
    }


def started(frame: RunFrame) -> str:
    """When the run began, in UTC; meta.json holds seconds since 1970 or ISO text."""
    value = frame.meta.get("started", "")
    if is_number(value):
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(value))
    return str(value)[:19].replace("T", " ")


def scored_tokens(frame: RunFrame) -> Any:
    """Targets scored so far."""
    return frame.summary.get("tokens", frame.last.get("tokens"))


def wall_time(frame: RunFrame) -> Any:
    """Seconds of the whole run; between the first and the last row where it is not finished."""
    if is_number(frame.summary.get("seconds")):
        return frame.summary["seconds"]
    times = [row["time"] for row in frame.train if is_number(row.get("time"))]
    return times[-1] - times[0] if len(times) > 1 else None


def error_text(frame: RunFrame) -> str:
    """Why the run failed, if it did."""
    error = frame.status.get("error")
    if isinstance(error, dict):
        return f"{error.get('type', 'error')}: {error.get('message', '')}"
    return str(error) if error else ""


def tiles(frame: RunFrame, levels: dict[str, float]) -> list[tuple[str, str, str]]:
    """(what, value, beside it) of the few numbers to see first."""
    out = []
    if is_number(frame.last.get("loss")):
        out.append(("train loss", figure(frame.last["loss"]), f"step {frame.last.get('step')}"))
    for split, rows in frame.validation.items():
        losses = [row["loss"] for row in rows if is_number(row.get("loss"))]
        if losses:
            level = levels.get(f"unigram {split}", levels.get("unigram"))
            beside = f"best {figure(min(losses))}"
            beside += f", unigram {figure(level)}" if level is not None else ""
            out.append((f"{split} loss", figure(losses[-1]), beside))
    speeds = sorted(
        r["perf/tokens_per_s"] for r in frame.train if is_number(r.get("perf/tokens_per_s"))
    )
    if speeds:
        out.append(("tokens per second", count(speeds[len(speeds) // 2]), "median over the run"))
    return out


def provenance(frame: RunFrame) -> dict[str, Any]:
    """Where the numbers come from."""
    meta = frame.meta
    git = mapping(meta.get("git"))
    sha = str(git.get("sha") or "")
    resumes = meta.get("resumes")
    return {
        "git commit": sha + (" (with uncommitted changes)" if sha and git.get("dirty") else ""),
        "python": meta.get("python"),
        "platform": meta.get("platform"),
        "devices": meta.get("devices"),
        "processes": meta.get("world_size"),
        "strategy": meta.get("strategy"),
        "versions": meta.get("versions"),
        "resumes": len(resumes) if isinstance(resumes, list) and resumes else None,
    }
