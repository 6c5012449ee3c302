"""What an evaluator of classes left: curves, confusion, kinds, examples, attention. Floor 1.

Recognised by what the files hold, as everything on the page of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from nl.report.artifacts import documents, mapping
from nl.report.figures import Figure, Line
from nl.report.frames import Row, RunFrame, is_number
from nl.report.numbers import figure
from nl.report.tables import Cell, Grid, Table, sort_key

MARK = "mark"
"""What stands in front of the steps where a network puts something there."""


def class_splits(frame: RunFrame) -> dict[str, Row]:
    """Split -> what the evaluator says of it, train first."""
    found = {str(d["split"]): d for _, d in documents(frame, "split", "confusion", "roc", "pr")}
    return dict(sorted(found.items(), key=lambda pair: (pair[0] != "train", pair[0])))


def area(points: Sequence[Sequence[float]]) -> float:
    """Under a curve of (x, y), by trapezoids."""
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))


def class_figures(splits: dict[str, Row]) -> list[Figure]:
    """ROC and precision over recall, a line per split."""
    roc: list[Line] = []
    pr: list[Line] = []
    levels: dict[str, float] = {}
    for number, (split, told) in enumerate(splits.items()):
        points = told["roc"]
        name = f"{split} {figure(area(points), 3)}"
        roc.append(Line(name, *columns(points), colour=number))
        pr.append(Line(split, *columns(told["pr"]), colour=number))
        positive = sum(told["confusion"][1])
        share = positive / max(1, positive + sum(told["confusion"][0]))
        levels["guess" if share in levels.values() or not levels else f"guess {split}"] = share
    roc.append(Line("guess", [0.0, 1.0], [0.0, 1.0], colour=5))
    title = "ROC: true over false positive rate (area)"
    return [
        Figure("roc", title, roc, x_label="false positive rate"),
        Figure("precision_recall", "Precision over recall", pr, levels, x_label="recall"),
    ]


def columns(points: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Points as x and y."""
    return [float(p[0]) for p in points], [float(p[1]) for p in points]


def confusion_grids(splits: dict[str, Row]) -> list[Grid]:
    """True class by said class, per split."""
    return [
        Grid(
            name=f"confusion_{split}",
            title=f"{split}: examples by class",
            row_label="is",
            column_label="said",
            rows=["is 0", "is 1"],
            columns=["said 0", "said 1"],
            values=[[float(n) for n in row] for row in told["confusion"]],
            low=0.0,
            high=float(max(1, *(sum(row) for row in told["confusion"]))),
        )
        for split, told in splits.items()
    ]


def kind_name(told: Row, kind: Any) -> str:
    """What a kind of example is called."""
    names = told.get("kind_names")
    if isinstance(names, list) and str(kind).isdigit() and int(kind) < len(names):
        return str(names[int(kind)])
    return "" if kind is None else str(kind)


def kind_table(splits: dict[str, Row]) -> Table | None:
    """Accuracy per kind of example; None where there is one kind only."""
    kinds = list(dict.fromkeys(k for told in splits.values() for k in mapping(told.get("kinds"))))
    if len(kinds) < 2:
        return None
    some = next(iter(splits.values()))
    head = ["kind", *(h for split in splits for h in (f"{split} accuracy", f"{split} n"))]
    cells, numbers = [], [list(head)]
    for kind in kinds:
        name = kind_name(some, kind)
        values = []
        for told in splits.values():
            one = mapping(mapping(told.get("kinds")).get(kind))
            values += [one.get("accuracy"), one.get("n")]
        numbers.append([name, *map(str, values)])
        line = [Cell(figure(v, 3), sort_key(v), numeric=True) for v in values]
        cells.append([Cell(name, name), *line])
    return Table("kinds", "Accuracy by kind of example", head, cells, numbers)


def written(example: Row, tokens: Any) -> str:
    """An example as people read it: digits together, or the sum of every step."""
    raw = example.get("input")
    if not isinstance(raw, list):
        return str(raw)
    if isinstance(tokens, list) and all(isinstance(n, int) and n < len(tokens) for n in raw):
        words = [str(tokens[n]) for n in raw]
        if not any(word.isdigit() for word in words):
            return " ".join(words)
        return "".join(word if word.isdigit() else f" {word} " for word in words)
    sums = [sum(step) if isinstance(step, list) else step for step in raw]
    return " ".join(f"{value:+.2f}" for value in sums if is_number(value))


def example_rows(splits: dict[str, Row]) -> list[Row]:
    """All kept examples of all splits, for the browser of errors."""
    rows = []
    for split, told in splits.items():
        for verdict in ("errors", "right"):
            for one in told.get(verdict) or []:
                share = float(one.get("probability", 0.5))
                rows.append(
                    {
                        "split": split,
                        "right": verdict == "right",
                        "index": one.get("index"),
                        "text": written(one, told.get("tokens")),
                        "raw": one.get("input"),
                        "kind": kind_name(told, one.get("kind")),
                        "label": one.get("label"),
                        "p": float(f"{share:.4g}"),
                        "times": one.get("times", 1),
                    }
                )
    return rows


def example_note(splits: dict[str, Row]) -> str:
    """How many are wrong, and how many of them are shown."""
    parts = []
    for split, told in splits.items():
        wrong, shown = told.get("wrong", 0), len(told.get("errors") or [])
        different = told.get("wrong_different", wrong)
        parts.append(f"{split}: {wrong} wrong, {different} of them different, {shown} shown")
    return "; ".join(parts) + ". The most confident come first."


def attention(frame: RunFrame) -> Row | None:
    """Maps of a few examples, and of tokens out of context; None where nothing attends."""
    for _, data in documents(frame, "examples", "vocabulary", "tokens"):
        tokens = data["tokens"]
        found = []
        for one in data["examples"]:
            names = step_names(one, tokens)
            width = len(one["layers"][0][0][0])
            steps = [*([MARK] * (width - len(names))), *names]
            rows = steps if len(one["layers"][0][0]) == width else ["all"]
            verdict = "right" if (one["probability"] > 0.5) == (one["label"] == 1) else "wrong"
            title = f"{one['split']} {one['index']}: {written(one, tokens)}, {verdict}"
            found.append({"title": title, "steps": steps, "rows": rows, "layers": one["layers"]})
        return {"examples": found, "vocabulary": data["vocabulary"], "tokens": tokens}
    return None


def step_names(example: Row, tokens: Any) -> list[str]:
    """A name per step of an example."""
    raw = example["input"]
    if isinstance(tokens, list):
        return [str(tokens[n]) for n in raw]
    return [f"{sum(step):+.2f}" if isinstance(step, list) else str(step) for step in raw]
