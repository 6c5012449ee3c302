"""Figures of the study of task streams."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from tgsmn_read import Run, difference, matrix_mean, rewards
from tgsmn_tables import Row, name_of

from nl.report.dots import Dot, Dots
from nl.report.figures import Figure, Line, standalone
from nl.report.heat import HeatMap, HeatMaps, heat_csv, heat_svg

PAIRS = (
    ("dense", "dense_replay"),
    ("sparse", "sparse_replay"),
    ("sparse_random", "sparse_gru"),
    ("hope_attention", "hope_selfmod"),
)
"""Rows whose R is drawn, two to a figure; the CSV holds all."""
CONTROLLERS = {"sparse_gru": "GRU", "sparse_random": "random", "sparse_pi": "PI"}
REMEMBERED = ("dense", "dense_replay", "sparse", "sparse_replay", "hope_attention")
"""Rows whose loss on earlier tasks is drawn."""


def difference_dots(rows: Mapping[str, Row], bases: Sequence[str]) -> list[Dots]:
    """Average loss of every row minus a base, one figure per base."""
    found = []
    for base in bases:
        if base not in rows:
            continue
        dots = []
        for row in rows.values():
            gap = difference(row.values("average_loss"), rows[base].values("average_loss"))
            if row.key not in (base, "dense_joint") and gap is not None:
                dots.append(Dot(row.name, gap.mean, gap.half))
        title = f"Average loss at the end minus that of: {name_of(base)}"
        label = f"nats per token, minus {name_of(base)}"
        if dots:
            found.append(Dots(f"tgsmn_minus_{base}", title, dots, label))
    return found


def boundaries(run: Run) -> tuple[float, ...]:
    """Steps at which tasks begin."""
    steps, tasks = run.config.stream.steps, run.config.stream.tasks
    return tuple(float(steps * task) for task in range(1, tasks))


def curve(run: Run, key: str) -> tuple[list[float], list[float]]:
    """(step, value) of the rows that have it."""
    rows = [row for row in run.frame.train if row.get(key) is not None]
    return [float(row["step"]) for row in rows], [float(row[key]) for row in rows]


def mean_curve(runs: Mapping[int, Run], key: str) -> tuple[list[float], list[float]]:
    """The mean over seeds of a curve, at the steps that all have."""
    curves = [dict(zip(*curve(run, key), strict=True)) for run in runs.values()]
    steps = [step for step in curves[0] if all(step in one for one in curves)]
    return steps, [statistics.fmean(one[step] for one in curves) for step in steps]


def trace_figures(rows: Mapping[str, Row], governed: Sequence[str]) -> list[Figure]:
    """Knobs over steps, what a turn paid, and the loss on earlier tasks."""
    found = []
    marks = boundaries(next(iter(rows["dense"].runs.values())))
    for key, title in (
        ("replay", "Share of a batch that is replayed, upright lines: another task"),
        ("experts_k", "Experts that read a token"),
    ):
        lines = []
        for number, (name, short) in enumerate(CONTROLLERS.items()):
            runs = rows[name].runs if name in rows else {}
            for seed, run in runs.items():
                x, y = curve(run, f"knob/{key}")
                if y and (name == "sparse_gru" or seed == min(runs)):
                    colour = seed if name == "sparse_gru" else 3 + number
                    lines.append(Line(f"{short}, seed {seed}", x, y, colour=colour))
        if lines:
            alt = "What controllers set, between the tasks' ends."
            named = f"tgsmn_{key}"
            found.append(Figure(named, title, lines, alt=alt, wide=True, marks=marks))
    paid = [
        Line(name_of(name), *paid_by_task(rows[name].runs), colour=number)
        for number, name in enumerate(name for name in governed if name != "sparse")
    ]
    if paid:
        title = "Reward per turn, mean of a task and of seeds"
        alt = "What the learned controller was paid, beside what others would have been."
        found.append(Figure("tgsmn_reward", title, paid, alt=alt, wide=True, marks=marks))
    kept = [
        Line(name_of(name), *mean_curve(rows[name].runs, "signal/memory_loss"), colour=number)
        for number, name in enumerate(name for name in REMEMBERED if name in rows)
    ]
    title = "Held-out loss on earlier tasks, nats per token, mean of seeds"
    alt = "It rises with every task, least with replay."
    return [*found, Figure("tgsmn_memory", title, kept, alt=alt, wide=True, marks=marks)]


def paid_by_task(runs: Mapping[int, Run]) -> tuple[list[float], list[float]]:
    """(step of a task's middle, mean reward per turn in it over all seeds)."""
    tasks: dict[int, list[float]] = {}
    length = next(iter(runs.values())).config.stream.steps
    for run in runs.values():
        for step, reward in zip(*rewards(run), strict=True):
            tasks.setdefault(math.ceil(step / length) - 1, []).append(reward)
    ends = [length * (task + 0.5) for task in tasks]
    return ends, [statistics.fmean(values) for values in tasks.values()]


def heat(row: Row) -> HeatMap:
    """Mean R of a row, intervals in its CSV."""
    values = matrix_mean(row.runs, row.mode)
    count = len(values[0])
    names = ["init", *(f"after {task}" for task in range(len(values) - 1))]
    counts = [[len(row.runs)] * count for _ in values]
    return HeatMap(
        f"{row.name}, n={len(row.runs)}", names, [str(i) for i in range(count)], values, (), counts
    )


def matrix_figures(rows: Mapping[str, Row], output: Path) -> list[str]:
    """Heat maps of R beside the page, all of R as CSV; the lines that show them."""
    maps = {key: heat(row) for key, row in rows.items()}
    known = [v for one in maps.values() for line in one.values for v in line if v is not None]
    axes = ("", "task", "nats per token")
    ends = {"low": min(known), "high": max(known), "form": "{:.1f}"}
    whole = HeatMaps("tgsmn_r", list(maps.values()), *axes, **ends)  # type: ignore[arg-type]
    (output.parent / "tgsmn_r.csv").write_text(heat_csv(whole))
    lines = [
        "Mean over seeds: rows are moments, columns tasks, dark is a high loss. All of them, the "
        "other rows' too, are in [tgsmn_r.csv](tgsmn_r.csv).",
        "",
    ]
    for pair in PAIRS:
        chosen = [maps[key] for key in pair if key in maps]
        if chosen:
            name = f"tgsmn_r_{pair[0]}"
            figure = HeatMaps(name, chosen, *axes, **ends)  # type: ignore[arg-type]
            (output.parent / f"{name}.svg").write_text(standalone(heat_svg(figure)))
            lines += [f"![R of {' and '.join(map(name_of, pair))}]({name}.svg)", ""]
    return lines
