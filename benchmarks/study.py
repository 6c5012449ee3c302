"""What the studies share: cells that are run directories, jobs, intervals over seeds, pages.

A study is a list of cells; a cell is one call of train.py with a run directory of its own. Finished
cells are kept, so a study may be stopped and continued, grow, and be reported while it runs. Pages
are made only from files that commands wrote.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from nl.report.dots import Dots, dots_csv, draw_dots
from nl.report.figures import Figure, draw, figure_csv, standalone
from nl.run import RunDir, RunError
from nl.run.student import spread

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = "pilot_smoke"
PLACES = ("--root", "--output", "--data", "--jobs")
"""Flags that say where and how fast, not what: left out of the command on a page."""
COMPOSING = Lock()
"""Hydra composes one configuration at a time; ``--jobs`` are threads."""


@dataclass(frozen=True)
class Cell:
    """One run: the name of its directory and what train.py is told."""

    name: str
    overrides: tuple[str, ...]


# Running


def flags(parser: argparse.ArgumentParser, root: str, output: str) -> Callable[..., Any]:
    """Add the flags of every study; returns ``parser.add_argument`` for the others."""
    add = parser.add_argument
    add("--root", type=Path, default=Path(root), help="run directories; default: %(default)s")
    add("--output", type=Path, default=Path(output), help="the page; default: %(default)s")
    add("--data", type=Path, help="data directory instead of the configuration's")
    add("--jobs", type=int, default=1, help="runs at the same time, one core each")
    add("--report-only", action="store_true", help="train nothing, write the page")
    add("--override", nargs="*", default=[], help="more Hydra overrides, for every run")
    return add


def fixed(args: argparse.Namespace) -> tuple[str, ...]:
    """Overrides that all runs of a call share."""
    data = () if args.data is None else (f"stream.path={args.data.resolve()}",)
    return (*data, *args.override)


def standing(root: Path, cell: Cell) -> str:
    """``done``, ``failed``, ``running`` (another process has it), ``stopped`` or ``missing``."""
    home = root / cell.name
    if not RunDir.holds_run(home):
        return "missing"
    run = RunDir.open(home)
    if run.finished():
        return "done"
    try:
        run.lock()
    except RunError:
        return "running"
    run.release()
    return "failed" if run.read_status().get("state") == "failed" else "stopped"


def refusal(cell: Cell) -> str | None:
    """Why this checkout cannot run the cell (a key that it does not have yet); None if it can."""
    import nl.assembly  # noqa: F401 - registers the parts
    from nl.config import ConfigError
    from nl.config.hydra import compose, run_config

    try:
        with COMPOSING:
            run_config(compose(CONFIG, list(cell.overrides)))
    except ConfigError as error:
        return str(error).splitlines()[0]
    return None


def run_cells(
    cells: Iterable[Cell], root: Path, *, jobs: int = 1, extra: Sequence[str] = ()
) -> None:
    """Train what is not there, in order; a refused or failed cell does not stop the others."""
    root.mkdir(parents=True, exist_ok=True)

    def one(cell: Cell) -> None:
        if line := train(cell, root, extra):
            print(line, flush=True)

    with ThreadPoolExecutor(max(1, jobs)) as pool:
        list(pool.map(one, list(cells)))


def train(cell: Cell, root: Path, extra: Sequence[str]) -> str:
    """Run one cell unless it is done, failed before or running; says what came of it."""
    state = standing(root, cell)
    if state in ("done", "failed", "running"):
        return "" if state == "done" else f"{cell.name}: {state}, left as it is"
    if reason := refusal(cell):
        return f"{cell.name}: skipped, {reason}"
    home = (root / cell.name).resolve()
    if state == "stopped":
        shutil.rmtree(home)
    command = [sys.executable, "train.py", "--config-name", CONFIG, *cell.overrides, *extra]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY / "src")}
    with (root / f"{cell.name}.log").open("w") as log:
        process = subprocess.Popen(
            [*command, f"run.dir={home}"], env=env, stdout=log, stderr=log, cwd=REPOSITORY
        )
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = {"cpu_seconds": used.ru_utime + used.ru_stime, "peak_kib": used.ru_maxrss}
    (root / f"{cell.name}.usage.json").write_text(json.dumps(seconds))
    return f"{cell.name}: exit code {process.returncode}, {seconds['cpu_seconds']:.0f} s of CPU"


# Reading


@dataclass(frozen=True)
class Result:
    """What a finished run left."""

    final: dict[str, float]
    parameters: int
    tokens: int
    seconds: float
    cpu_seconds: float | None
    commit: str


@functools.cache
def result(root: Path, name: str) -> Result | None:
    """The numbers of one run; None unless it is done."""
    run = RunDir(root / name)
    if not RunDir.holds_run(run.path) or not run.finished():
        return None
    data, meta = json.loads(run.summary.read_text()), json.loads(run.meta.read_text())
    usage = root / f"{name}.usage.json"
    cpu = json.loads(usage.read_text())["cpu_seconds"] if usage.is_file() else None
    commit = str((meta.get("git") or {}).get("sha") or "")[:7] or "unknown"
    return Result(data["final"], data["parameters"], data["tokens"], data["seconds"], cpu, commit)


def commits(root: Path, names: Iterable[str]) -> list[str]:
    """The commits that finished runs were made with."""
    found = (result(root, name) for name in names)
    return sorted({one.commit for one in found if one is not None})


def curve(
    root: Path, name: str, key: str, *, split: str = "train", x: str = "step"
) -> tuple[list[float], list[float]]:
    """(x, value) of one metric over a run; a value that was not finite is nan."""
    text = (root / name / "metrics.jsonl").read_text()
    rows = [row for row in map(json.loads, text.splitlines()) if row["split"] == split]
    values = [math.nan if row.get(key) is None else float(row[key]) for row in rows]
    return [float(row[x]) for row in rows], values


# Numbers


def student(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval (Student); nan from a single value."""
    found = spread(values)
    return found["mean"], math.nan if found["ci95"] is None else found["ci95"]


def interval(values: Sequence[float], digits: int = 4) -> str:
    """Mean +- half width; the mean alone from one seed, a dash from none."""
    if not values:
        return "-"
    mean, half = student(values)
    return f"{mean:.{digits}f}" + ("" if math.isnan(half) else f" +- {half:.{digits}f}")


def median(values: Iterable[float | None]) -> float | None:
    """Median of what is there."""
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


# Equal parameters


@functools.cache
def parameters(overrides: tuple[str, ...]) -> int:
    """Parameters of a model, without memory for them."""
    import torch

    import nl.assembly  # noqa: F401 - registers the parts
    from nl.config.hydra import compose, run_config

    run = run_config(compose(CONFIG, list(overrides)))
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what a part warns of, its own run says too
        model = run.model.build()  # type: ignore[attr-defined]
    return sum(p.numel() for p in model.parameters())


def width(block: str, overrides: tuple[str, ...], goal: int) -> str:
    """The override of the inner width that brings a model closest to ``goal`` parameters."""
    import nl.assembly  # noqa: F401 - registers the parts
    from nl.config import lookup

    levels = lookup("block", block, "block")().levels
    key = "model.cms.hidden" if levels else "model.mlp_hidden"
    low, high = (parameters((*overrides, f"{key}={n}")) for n in (64, 65))
    return f"{key}={max(1, 64 + round((goal - low) / (high - low)))}"


# Pages


def call(name: str) -> str:
    """The command that made a page, without the flags that only say where and how fast."""
    words, skip = [], False
    for word in sys.argv[1:]:
        if word in PLACES:
            skip = True
        elif skip:
            skip = False
        elif word.partition("=")[0] not in (*PLACES, "--report-only"):
            words.append(word)
    return " ".join(["python", f"benchmarks/{name}.py", *words])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Markdown lines of a table, between blank lines."""
    lines = [head, ["---"] * len(head), *rows]
    return ["", *("| " + " | ".join(line) + " |" for line in lines), ""]


def save_figure(page: Path, figure: Figure | Dots) -> str:
    """Write the figure as SVG and CSV next to the page; the Markdown line that shows it."""
    page.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(figure, Dots):
        svg, numbers = draw_dots(figure), dots_csv(figure)
    else:
        svg, numbers = draw(figure), figure_csv(figure)
    (page.parent / f"{figure.name}.csv").write_text(numbers)
    (page.parent / f"{figure.name}.svg").write_text(standalone(svg))
    return f"![{figure.title}]({figure.name}.svg)"


def save_page(page: Path, lines: Iterable[str]) -> None:
    """Write the page, blank lines never doubled."""
    page.parent.mkdir(parents=True, exist_ok=True)
    text: list[str] = []
    for line in lines:
        if line or (text and text[-1]):
            text.append(line)
    page.write_text("\n".join(text).rstrip() + "\n")
    print(f"written: {page}")
