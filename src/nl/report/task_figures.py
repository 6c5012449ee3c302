"""Pictures of runs through tasks and of grids of them: what a notebook or a page shows. Floor 1.

Every function makes a figure of numbers that runs wrote; ``save`` writes it as PNG, with the
numbers as CSV beside it.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from nl.config import ConfigError
from nl.report.figures import Figure, Line, figure_csv
from nl.report.figures import save_png as save_curves
from nl.report.frames import Row, RunFrame, series
from nl.report.heat import HeatMap, HeatMaps, heat_csv
from nl.report.heat import save_png as save_heat
from nl.report.task_runs import TaskMatrix, matrices, task_ends, task_steps
from nl.run.files import write_atomic
from nl.run.student import spread

KNOBS = ("experts_k", "replay", "router_noise", "router_temperature", "lr_scale", "write_scale")
MOST_COLUMNS = 8
"""Of a map of experts."""
HELD_OUT = {"signal/loss": "held out, this task", "signal/memory_loss": "held out, earlier tasks"}


def save(figure: Figure | HeatMaps, folder: Path) -> Path:
    """Write ``<name>.png`` and ``<name>.csv``; returns the picture's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{figure.name}.png"
    if isinstance(figure, Figure):
        save_curves(figure, path)
        write_atomic(path.with_suffix(".csv"), figure_csv(figure), durable=False)
    else:
        save_heat(figure, path)
        write_atomic(path.with_suffix(".csv"), heat_csv(figure), durable=False)
    return path


def matrix_of(frame: RunFrame) -> TaskMatrix:
    """R of a run: of the test windows, else of the validation windows.

    Raises:
        ConfigError: it was not measured.
    """
    found = matrices(frame)
    if not found:
        raise ConfigError(
            f"{frame.directory}: has no R; run it with '+evals.tasks={{kind: task_losses}}'."
        )
    return found.get("test") or found["val"]


def boundaries(frame: RunFrame) -> tuple[float, ...]:
    """Steps at which a task begins, but for the first."""
    last = int(frame.last.get("step", 0))
    each = task_steps(frame.config)
    return tuple(float(step) for step in range(each, last, each))


def loss_curves(frame: RunFrame) -> Figure:
    """Training loss over steps, and the held-out losses of the signals where there are any."""
    key = "nats" if "nats" in frame.last else "loss"
    lines = [Line("training", *series(frame.train, key))]
    for colour, (name, label) in enumerate(HELD_OUT.items(), start=1):
        x, y = series(frame.train, name)
        if x:
            lines.append(Line(label, x, y, colour=colour))
    title = "Loss (nats per token)"
    return Figure("losses", title, lines, wide=True, marks=boundaries(frame))


def matrix_map(frame: RunFrame) -> HeatMaps:
    """R: after which task, on which task."""
    found = matrix_of(frame)
    flat = [value for row in found.values for value in row]
    names = [name.removeprefix("task_") for name in found.segments]
    rows = [row.replace("task_", "") for row in found.rows]
    return HeatMaps(
        name="matrix",
        maps=[HeatMap(f"R on {found.split} windows", rows, names, found.values)],
        row_label="moment",
        column_label="task",
        value="nats per token",
        low=min(flat),
        high=max(flat),
    )


def task_curves(frame: RunFrame) -> Figure:
    """Loss of every task over training: falling where it is learned, rising where it is lost."""
    found = matrix_of(frame)
    steps = [0.0, *map(float, task_ends(frame.config, int(frame.last.get("step", 0))))]
    columns = list(zip(*found.values, strict=True))
    lines = [
        Line(name.removeprefix("task_"), steps[: len(column)], list(column), colour=i)
        for i, (name, column) in enumerate(zip(found.segments, columns, strict=True))
    ]
    title = "Loss of every task (nats per token)"
    return Figure("tasks", title, lines, wide=True, marks=tuple(steps[1:]))


def forgetting_curves(frame: RunFrame) -> list[Figure]:
    """Mean loss on the tasks so far, and how far it is above what they were at their best.

    Forgetting after task i is mean_{j < i} (R[i, j] - min_{j <= l < i} R[l, j]).
    """
    found = matrix_of(frame)
    columns, after = found.columns, found.values[1:]
    anytime, lost = [], []
    for i in range(len(columns)):
        anytime.append(sum(after[i][columns[j]] for j in range(i + 1)) / (i + 1))
        rises = []
        for j, c in enumerate(columns[:i]):
            rises.append(after[i][c] - min(after[n][c] for n in range(j, i)))
        lost.append(sum(rises) / len(rises) if rises else 0.0)
    x = [float(i + 1) for i in range(len(columns))]
    told = {
        "anytime": ("Mean loss so far (nats)", anytime),
        "forgetting": ("Forgetting (nats)", lost),
    }
    return [
        Figure(name, title, [Line(name, x, values)], x_label="tasks trained")
        for name, (title, values) in told.items()
    ]


def knob_curves(frame: RunFrame) -> list[Figure]:
    """Where the controller set each knob, and what it was paid."""
    keys = {f"knob/{name}": name for name in KNOBS} | {"control/reward": "reward"}
    figures = []
    for key, name in keys.items():
        x, y = series(frame.train, key)
        if x and (len(set(y)) > 1 or name not in ("lr_scale", "write_scale")):
            line = [Line(name, x, y)]
            figures.append(Figure(f"knob_{name}", name, line, marks=boundaries(frame)))
    return figures


def signal_curves(frame: RunFrame) -> list[Figure]:
    """What steps did to held-out text: how far they went, and how well that was used."""
    titles = {
        "signal/fisher_rao": "Length of a step",
        "signal/eta": "eta",
        "signal/eta_above_1": "Share with eta > 1",
    }
    figures = []
    for key, title in titles.items():
        x, y = series(frame.train, key)
        if x:
            name = key.replace("/", "_")
            figures.append(Figure(name, title, [Line(key, x, y)], marks=boundaries(frame)))
    return figures


def expert_curve(frame: RunFrame) -> Figure:
    """How many experts a batch uses, as if all were used alike: exp of the entropy."""
    lines = [
        Line(label, *series(frame.train, key), colour=i)
        for i, (key, label) in enumerate(
            {"experts/effective": "mean over layers", "experts/effective_min": "least"}.items()
        )
    ]
    if not lines[0].x:
        raise ConfigError(f"{frame.directory}: logs no experts; its model has none.")
    title = "Effective experts of a batch"
    return Figure("experts", title, lines, wide=True, marks=boundaries(frame))


def expert_maps(frame: RunFrame) -> HeatMaps:
    """Which experts the windows of each task use after the last one, a map per router.

    Raises:
        ConfigError: it was not measured.
    """
    pages = [
        (frame.artifacts.get(f"evals/{name}.json") or {}).get("details", {}).get("experts")
        for name in frame.config.get("evals") or {}
    ]
    found: dict[str, list[list[int]]] = next((page for page in pages if page), {})
    if not found:
        raise ConfigError(f"{frame.directory}: has no use of experts; its model has none.")
    maps = []
    for router in range(len(next(iter(found.values())))):
        uses = {name.removeprefix("task_"): share(use[router]) for name, use in found.items()}
        rows = [f"{name} ({effective(use):.1f})" for name, use in uses.items()]
        columns, values = binned(list(uses.values()))
        maps.append(HeatMap(f"router {router}", rows, columns, values))
    shares = [one.values for one in maps]
    return HeatMaps(
        name="expert_use",
        maps=maps,
        row_label="task (effective experts)",
        column_label="experts",
        value="share of choices",
        high=max(value or 0.0 for one in shares for row in one for value in row),
    )


def effective(use: Sequence[float]) -> float:
    """exp of the entropy: experts in use, as if all were used alike."""
    return math.exp(-sum(p * math.log(p) for p in use if p > 0))


def binned(uses: Sequence[Sequence[float]]) -> tuple[list[str], list[list[float]]]:
    """Names and shares of columns: of each expert, or of neighbours together if there are many."""
    count = len(uses[0])
    each = -(-count // MOST_COLUMNS)
    cuts = range(0, count, each)
    names = [str(i) if each == 1 else f"{i}-{min(i + each, count) - 1}" for i in cuts]
    return names, [[sum(use[i : i + each]) for i in cuts] for use in uses]


def share(counts: Sequence[int]) -> list[float]:
    """Counts over their sum."""
    total = max(1, sum(counts))
    return [count / total for count in counts]


def read_grid(folder: Path) -> list[Row]:
    """Rows of a grid's ``grid_results.csv`` that are results, numbers as numbers.

    Raises:
        ConfigError: no such file.
    """
    path = folder / "grid_results.csv"
    if not path.is_file():
        raise ConfigError(f"{path}: does not exist; nl report <sweep> --legacy-csv writes it.")
    rows = csv.DictReader(path.read_text().splitlines())
    return [{k: _number(v) for k, v in row.items()} for row in rows if row["status"] == "ok"]


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def scaling(rows: Sequence[Row], env: str, metric: str) -> Figure:
    """A number over experts, a line per variant and ablation: mean and 95 % interval over seeds.

    Of fewer than three seeds there is no band: it would be wider than anything it could tell.

    Raises:
        ConfigError: no row of this environment has the number.
    """
    groups: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        if row["env"] == env and isinstance(row.get(metric), float):
            name = str(row["variant"])
            name += "" if row["ablation"] == "none" else f" {row['ablation']}"
            at = row["n_experts"] if isinstance(row["n_experts"], float) else 1.0
            groups.setdefault(name, {}).setdefault(at, []).append(row[metric])
    if not groups:
        have = ", ".join(sorted({str(row["env"]) for row in rows}))
        raise ConfigError(f"{metric}: no result in environment {env!r}; there is {have or 'none'}.")
    lines = []
    for colour, (name, found) in enumerate(groups.items()):
        xs = sorted(found)
        told = [spread(found[x]) for x in xs]
        half = [one["ci95"] if one["n"] > 2 else math.nan for one in told]
        means = [one["mean"] for one in told]
        low = [m - h for m, h in zip(means, half, strict=True)]
        high = [m + h for m, h in zip(means, half, strict=True)]
        lines.append(Line(name, xs, means, colour=colour, low=low, high=high))
    title = f"{env} | {metric}"
    return Figure(f"scaling_{metric}", title, lines, x_label="experts", wide=True)


def trade_off(rows: Sequence[Row], env: str) -> Figure:
    """Loss at the end against forgetting, a point per variant: means over seeds."""
    lines: list[Line] = []
    here = [row for row in rows if row["env"] == env]
    names = dict.fromkeys(map(_name, here))
    for colour, name in enumerate(names):
        mine = [row for row in here if _name(row) == name]
        points = [(r.get("forgetting"), r.get("average_loss")) for r in mine]
        known = [(a, b) for a, b in points if isinstance(a, float) and isinstance(b, float)]
        if not known:
            continue
        x = sum(a for a, _ in known) / len(known)
        y = sum(b for _, b in known) / len(known)
        label = " ".join(part.removesuffix(".0") for part in name if part != "none")
        lines.append(Line(label, [x], [y], colour=colour))
    title = f"{env} | loss at the end (nats)"
    return Figure("trade_off", title, lines, x_label="forgetting (nats)", wide=True)


def _name(row: Row) -> tuple[str, str, str]:
    return str(row["variant"]), str(row["ablation"]), str(row["n_experts"])
