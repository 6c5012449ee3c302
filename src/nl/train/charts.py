"""What W&B is sent at the end of a run that has a namespace: histories, curves, confusion. Floor 5.

The curves are those that evaluators computed and left in the run directory, so that no further
package is needed, and the files stay the source of truth.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from nl.run.directory import RunDir
from nl.run.records import read_records
from nl.train.last_layer import FILE as LAST_LAYER

Row = Mapping[str, Any]
HISTORIES = {
    ("train", "loss"): "metrics/loss",
    ("train", "accuracy"): "metrics/accuracy_train_history",
}
"""Names of the training histories; those of other splits say the split."""


def named(row: Row, namespace: str) -> dict[str, float]:
    """A row under its keys: ``<split>/<key>``, with a namespace also ``metrics/<key>_<split>``."""
    split = str(row["split"])
    numbers = {k: v for k, v in row.items() if isinstance(v, (int, float)) and k != "step"}
    found = {f"{split}/{key}": value for key, value in numbers.items()}
    if not namespace:
        return found
    for key, value in numbers.items():
        if key in ("loss", "accuracy"):
            found[f"metrics/{key}_{split}"] = value
        elif key == "grad_norm":
            found["metrics/grad_norm"] = value
    return {f"{namespace}/{key}": value for key, value in found.items()}


def charts(run_dir: RunDir, plot: Any) -> Iterator[dict[str, Any]]:
    """Everything that is drawn once, one log call each.

    Args:
        run_dir: of the run.
        plot: ``wandb.plot``.
    """
    rows = read_records(run_dir.metrics)
    for split in dict.fromkeys(str(row.get("split")) for row in rows):
        for key in ("loss", "accuracy"):
            pairs = [
                (row["step"], row[key])
                for row in rows
                if row.get("split") == split and isinstance(row.get(key), (int, float))
            ]
            if pairs:
                name = HISTORIES.get((split, key), f"metrics/{key}_{split}_history")
                steps, values = [list(column) for column in zip(*pairs, strict=True)]
                yield {name: plot.line_series(steps, [values], [key], name, "step")}
    yield from layer_charts(run_dir, plot)
    for path in sorted((run_dir.artifacts / "evals").glob("*/*.json")):
        told = json.loads(path.read_text())
        if isinstance(told, dict) and {"split", "roc", "pr", "confusion"} <= told.keys():
            yield from class_charts(told, plot)


def layer_charts(run_dir: RunDir, plot: Any) -> Iterator[dict[str, Any]]:
    """Histories of every weight and bias of the last linear map, where they were written."""
    rows = read_records(run_dir.artifacts / LAST_LAYER)
    steps = [row["step"] for row in rows]
    for key in ("weight", "bias"):
        if rows and all(isinstance(row.get(key), list) for row in rows):
            series = [list(values) for values in zip(*(row[key] for row in rows), strict=True)]
            names = [f"{key[0]}[{i}]" for i in range(len(series))]
            yield {f"metrics/{key}": plot.line_series(steps, series, names, key, "step")}


def class_charts(told: Row, plot: Any) -> Iterator[dict[str, Any]]:
    """ROC, precision over recall and confusion of one split."""
    split = told["split"]
    for key, x, y in (
        ("roc", "false positive rate", "true positive rate"),
        ("pr", "recall", "precision"),
    ):
        xs, ys = [list(column) for column in zip(*told[key], strict=True)]
        yield {f"{split}/{key}": plot.line_series(xs, [ys], [y], f"{split} {key}", x)}
    cells = [(a, b, int(n)) for a, row in enumerate(told["confusion"]) for b, n in enumerate(row)]
    truth = [a for a, _, n in cells for _ in range(n)]
    said = [b for _, b, n in cells for _ in range(n)]
    names = [str(n) for n in range(len(told["confusion"]))]
    drawn = plot.confusion_matrix(y_true=truth, preds=said, class_names=names)
    yield {f"{split}/confusion": drawn}


def finals(run_dir: RunDir) -> dict[str, float]:
    """``metrics/<metric>_<task>`` of every evaluation of the run."""
    return {
        f"metrics/{row['metric']}_{row['task']}": row["value"]
        for row in read_records(run_dir.evals)
        if isinstance(row.get("value"), (int, float))
    }
