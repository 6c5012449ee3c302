"""A benchmark as text and as a figure. Floor 8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nl.report.figures import Figure, Line

COLUMNS = (
    ("part", "part", "{}"),
    ("name", "block", "{}"),
    ("T", "T", "{}"),
    ("chunk", "chunk", "{}"),
    ("params", "params", "{:,}"),
    ("tokens_per_s", "tokens/s", "{:,.0f}"),
    ("ratio_to_transformer", "ratio", "{:.2f}"),
    ("ratio_min", "min", "{:.2f}"),
    ("ratio_max", "max", "{:.2f}"),
    ("kept_ratio", "kept", "{:.2f}"),
    ("share_model", "MFU", "{:.0%}"),
    ("share_algorithmic", "algorithmic", "{:.0%}"),
    ("share_layer", "GEMM share", "{:.0%}"),
)


def as_table(result: dict[str, Any]) -> str:
    """The rows as aligned text; ratios are to the Transformer of the same run."""
    lines: list[Sequence[str]] = [[head for _, head, _ in COLUMNS]]
    for row in result["rows"]:
        lines.append([shown(row.get(key), form) for key, _, form in COLUMNS])
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Words in columns."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def shown(value: Any, form: str) -> str:
    """A cell of the table; a dash where there is no value."""
    return "-" if value is None else form.format(value)


def figure(result: dict[str, Any]) -> Figure:
    """Tokens per second relative to the Transformer over T, one line per part, block and chunk."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in result["rows"]:
        words = [str(row["name"])]
        words += [] if row["part"] == "step" else [str(row["part"])]
        words += [] if row["chunk"] is None else [f"C {row['chunk']}"]
        series.setdefault(", ".join(words), []).append((row["T"], row["ratio_to_transformer"]))
    lines = [
        Line(name, [x for x, _ in points], [y for _, y in points], colour=i)
        for i, (name, points) in enumerate(series.items())
    ]
    return Figure(
        "bench",
        "Tokens per second, Transformer = 1",
        lines,
        x_label="tokens per row",
        alt="Speed of each block relative to the Transformer of the same run.",
        wide=True,
    )
