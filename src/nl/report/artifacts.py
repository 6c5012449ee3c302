"""What evaluators and the run left under ``artifacts``, as grids, levels and texts. Floor 1.

Details are recognised by what they hold, not by where they lie, because the folder of an
evaluation is chosen by who starts it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nl.report.frames import RunFrame, is_number
from nl.report.tables import Grid

NEEDLE_METRICS = {
    "choice_accuracy": "right answer chosen",
    "exact_match": "right answer written",
    "generated_match": "right answer generated",
}


@dataclass(frozen=True)
class Sample:
    """One generated text: what was given, what came back, and how it was drawn."""

    prompt: str
    text: str
    settings: str


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def documents(frame: RunFrame, *keys: str) -> list[tuple[str, dict[str, Any]]]:
    """(name, content) of every JSON artifact that has these keys."""
    return [
        (name, data)
        for name, data in frame.artifacts.items()
        if isinstance(data, dict) and all(key in data for key in keys)
    ]


def baselines(frame: RunFrame) -> dict[str, float]:
    """Named losses to compare with, in nats per target: ``unigram``, ``unigram val``.

    They come from ``baselines`` in summary.json or from ``artifacts/baselines.json``: a number
    per name, or a number per split and name.
    """
    found = {
        **mapping(frame.artifacts.get("baselines.json")),
        **mapping(frame.summary.get("baselines")),
    }
    levels: dict[str, float] = {}
    for name, value in found.items():
        if is_number(value):
            levels[str(name)] = float(value)
        for split, number in mapping(value).items():
            if is_number(number):
                levels[f"{name} {split}"] = float(number)
    return levels


def needle_grids(frame: RunFrame) -> list[Grid]:
    """Length by depth, one grid per haystack, metric and memorisation mode."""
    grids = []
    for path, data in documents(frame, "lengths", "depths", "memorize"):
        for metric, words in NEEDLE_METRICS.items():
            for mode, maps in mapping(data["memorize"]).items():
                values = mapping(maps).get(metric)
                if isinstance(values, list):
                    grids.append(needle_grid(path, data, metric, f"{words}, memory {mode}", values))
    return grids


def needle_grid(
    path: str, data: dict[str, Any], metric: str, title: str, values: list[list[Any]]
) -> Grid:
    """One grid; rows are depths, columns are lengths, as such maps are usually drawn."""
    lengths, depths = data["lengths"], data["depths"]
    turned = [[cell(values, c, r) for c in range(len(lengths))] for r in range(len(depths))]
    count = data.get("samples", "?")
    detail = [
        [f"depth {depth:g}, {length} tokens, {count} samples" for length in lengths]
        for depth in depths
    ]
    chance = data.get("chance")
    known = metric == "choice_accuracy" and is_number(chance)
    return Grid(
        name=f"needle_{stem(path)}_{stem(title)}",
        title=f"{title} ({data.get('task', 'single')}, {data.get('haystack', 'needle')})",
        row_label="depth",
        column_label="length in tokens",
        rows=[f"{depth:g}" for depth in depths],
        columns=[str(length) for length in lengths],
        values=turned,
        low=0.0,
        high=1.0,
        details=detail,
        note=f"{count} samples per cell." + (f" Chance is {chance:.3g}." if known else ""),
    )


def cell(values: list[list[Any]], row: int, column: int) -> float | None:
    """A value of a nested list; None where it is missing or not a number."""
    try:
        value = values[row][column]
    except (IndexError, TypeError):
        return None
    return float(value) if is_number(value) else None


def forgetting_grids(frame: RunFrame) -> list[Grid]:
    """Loss on every segment after every phase, one grid per memorisation mode."""
    grids = []
    for path, data in documents(frame, "memorize", "better"):
        words = {name: f"{way} is better" for name, way in mapping(data["better"]).items()}
        title = "loss in nats per token"
        grids += forgetting_parts(path, mapping(data["memorize"]), words, (title, "phase"))
    for path, data in documents(frame, "details", "rows"):  # an evaluator's own file
        parts = {
            mode: part
            for mode, part in mapping(data["details"]).items()
            if {"nats_per_token", "phases", "segments"} <= mapping(part).keys()
        }
        rows = [mapping(row) for row in data["rows"]] if isinstance(data["rows"], list) else []
        words = {str(r.get("metric")): str(r.get("note", "")).partition(";")[0] for r in rows}
        title = f"{data.get('suite', path)}: loss in nats per token"
        grids += forgetting_parts(path, parts, words, (title, "task"))
    return grids


def forgetting_parts(
    path: str, parts: dict[str, Any], words: dict[str, str], labels: tuple[str, str]
) -> list[Grid]:
    """The grids of one file, on one scale.

    Args:
        path: of the file.
        parts: its content by mode.
        words: what is good about each metric.
        labels: title before the mode, and what a row comes after.
    """
    numbers = [
        float(value)
        for part in parts.values()
        for row in mapping(part).get("nats_per_token", [])
        for value in row
        if is_number(value)
    ]
    ends, (title, after) = (min(numbers), max(numbers)) if numbers else (0.0, 1.0), labels
    return [
        forgetting_grid(
            f"{stem(path)}_{mode}", mapping(part), words, ends, (f"{title}, memory {mode}", after)
        )
        for mode, part in parts.items()
    ]


def forgetting_grid(
    name: str,
    part: dict[str, Any],
    words: dict[str, str],
    ends: tuple[float, float],
    labels: tuple[str, str],
) -> Grid:
    """One matrix with its metrics as the note; ``labels`` are its title and what a row is after."""
    rows, segments = part.get("rows", []), part.get("segments", [])
    values = part.get("nats_per_token", [])
    metrics = [
        f"{key.replace('_', ' ')} {value:.4f} ({words.get(key, '')})"
        for key, value in mapping(part.get("metrics")).items()
        if is_number(value)
    ]
    return Grid(
        name=f"forgetting_{name}",
        title=labels[0],
        row_label=f"after {labels[1]}",
        column_label="measured on",
        rows=[str(row) for row in rows],
        columns=[str(segment) for segment in segments],
        values=[[cell(values, r, c) for c in range(len(segments))] for r in range(len(rows))],
        low=ends[0],
        high=ends[1],
        note="; ".join(metrics) + "." if metrics else "",
    )


def stem(text: str) -> str:
    """A path or title as part of a file name."""
    text = text.removesuffix(".json")
    return "".join(c if c.isalnum() else "_" for c in text)


def samples(frame: RunFrame) -> list[Sample]:
    """Texts of ``artifacts/samples.jsonl``, which ``nl generate --save`` writes."""
    rows = frame.artifacts.get("samples.jsonl")
    found = []
    for row in rows if isinstance(rows, list) else []:
        settings = ", ".join(
            f"{key.replace('_', ' ')} {value}"
            for key, value in row.items()
            if key not in ("prompt", "text") and value is not None
        )
        found.append(Sample(str(row.get("prompt", "")), str(row.get("text", "")), settings))
    return found
