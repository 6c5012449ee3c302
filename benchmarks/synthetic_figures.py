"""Pictures of the core suite: heat map, recall against bytes of State, accuracy over length."""

from __future__ import annotations

from pathlib import Path

import study
from synthetic_cells import FAMILIES, Suite

from nl.report.figures import Figure, Line, standalone
from nl.report.heat import HeatMap, HeatMaps, heat_csv, heat_svg

LONGER = ("test", "double", "fourfold")
"""Cases that differ in length alone."""


def short(mixer: str) -> str:
    """A name in two lines."""
    return mixer.replace("_", "\n")


def heat(suite: Suite, page: Path) -> str:
    """Normalised score of every cell, mean over seeds; the Markdown line that shows it."""
    values = [[suite.mean(t, m, "test", "on", "score") for m in suite.mixers] for t in suite.tasks]
    title = "(accuracy - chance) / (1 - chance) on test rows, mean over seeds"
    grid = HeatMap(title, suite.tasks, [short(m) for m in suite.mixers], values)
    figure = HeatMaps("synthetic_scores", [grid], "", "", "score")
    (page.parent / "synthetic_scores.csv").write_text(heat_csv(figure))
    (page.parent / "synthetic_scores.svg").write_text(standalone(heat_svg(figure)))
    return "![Scores of every task and mixer](synthetic_scores.svg)"


def by_length(suite: Suite, task: str, mixer: str, key: str) -> list[tuple[float, float]]:
    """(tokens of a row, mean of a number) of the cases that differ in length alone."""
    found = []
    for case in LONGER:
        mean = suite.mean(task, mixer, case, "on", key)
        length = suite.length(task, case)
        if mean is not None and length is not None:
            found.append((float(length), mean))
    return found


def lengths(suite: Suite, page: Path) -> list[str]:
    """A figure per task that was read at two greater lengths at least."""
    lines = []
    for task in suite.tasks:
        drawn = []
        for number, mixer in enumerate(suite.mixers):
            points = by_length(suite, task, mixer, "accuracy")
            if len(points) >= 3:
                xs, ys = zip(*points, strict=True)
                drawn.append(Line(mixer, list(xs), list(ys), colour=number))
        if not drawn:
            continue
        trained = suite.fact(task, lambda page: page["test"]["length"])
        chance = suite.fact(task, lambda page: page["test"]["chance"])
        figure = Figure(
            f"synthetic_length_{task}",
            f"{task}: accuracy over tokens of a row; grey: trained",
            drawn,
            levels={"chance": chance},
            x_label="tokens of a row",
            wide=True,
            from_zero=True,
            shaded=(0.0, float(trained)),
        )
        lines += [f"{task}:", "", study.save_figure(page, figure), ""]
    return lines


def pareto(suite: Suite, page: Path) -> str:
    """Mean accuracy of recall against bytes of State, one point per length."""
    tasks = [t for t in FAMILIES["recall"] if len(by_length(suite, t, "transformer", "score")) == 3]
    drawn = []
    for number, mixer in enumerate(suite.mixers):
        points = []
        for case in LONGER:
            accuracy = [suite.mean(t, mixer, case, "on", "accuracy") for t in tasks]
            size = [suite.mean(t, mixer, case, "on", "state_bytes") for t in tasks]
            known = [(a, s) for a, s in zip(accuracy, size, strict=True) if a is not None and s]
            if known and len(known) == len(tasks):
                both = zip(*known, strict=True)
                mean = [sum(values) / len(tasks) for values in both]
                points.append((mean[1], mean[0]))
        if points:
            xs, ys = zip(*points, strict=True)
            drawn.append(Line(mixer, list(xs), list(ys), colour=number))
    if not drawn:
        return ""
    figure = Figure(
        "synthetic_state",
        "recall: mean accuracy over bytes of State at 1, 2 and 4 times the length",
        drawn,
        x_label=f"bytes of State after a row, mean of {', '.join(tasks)}",
        wide=True,
        from_zero=True,
        log="x",
    )
    return study.save_figure(page, figure)
