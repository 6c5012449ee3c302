"""Which curves a run page shows, from the rows of metrics.jsonl. Floor 1."""

from __future__ import annotations

from nl.report.figures import Figure, Line, smooth
from nl.report.frames import RunFrame, numeric_keys, series
from nl.report.numbers import figure as number

TITLES = {
    "lr": "Learning rate",
    "grad_norm": "Gradient norm before clipping",
    "perf/tokens_per_s": "Throughput (tokens/s)",
    "perf/step_seconds": "Step time (s)",
    "perf/data_share": "Share of time waiting for data",
}
HEADINGS = {"memory/": "Memory", "knob/": "Knobs", "signal/": "Signals"}
"""Where small curves stand, by the beginning of their names."""
MOST_MARKS = 100
"""More tasks than that are not marked."""
DERIVED = {"loss", "ppl"}
"""Not drawn as small curves: the loss has its own figure and ppl is its exponential."""


def loss_figure(frame: RunFrame, levels: dict[str, float]) -> Figure | None:
    """Training loss (raw behind smoothed), one validation curve per split, baselines as levels."""
    lines: list[Line] = []
    x, y = series(frame.train, "loss")
    if len(x) > 40:
        lines.append(Line("train", x, y, faint=True))
        lines.append(Line("train (smoothed)", x, smooth(y)))
    elif x:
        lines.append(Line("train", x, y))
    for number_, (split, rows) in enumerate(frame.validation.items(), 1):
        vx, vy = series(rows, "loss")
        if vx:
            lines.append(Line(split, vx, vy, colour=number_))
    if not lines:
        return None
    shown = [line for line in lines if not line.faint]
    ends = "; ".join(f"{line.name} {ends_of(line)}" for line in shown)
    title, marks = "Loss (nats per target)", task_starts(frame)
    return Figure("loss", title, lines, levels, alt=ends, wide=True, marks=marks)


def task_starts(frame: RunFrame) -> tuple[float, ...]:
    """Steps at which another task begins, of a run through tasks one after another."""
    stream, train = frame.config.get("stream") or {}, frame.config.get("train") or {}
    if stream.get("kind") != "tasks" or stream.get("joint") or stream.get("only") is not None:
        return ()
    batches = stream.get("steps", 0)
    if stream.get("tokens"):
        batches = -(-stream["tokens"] // (stream["seq_len"] * stream["batch_size"]))
    each, last = batches / train.get("grad_accum", 1), frame.last.get("step", 0)
    count = int(last / each) if each else 0
    return tuple(each * n for n in range(1, count + 1) if each * n < last and count <= MOST_MARKS)


def ends_of(line: Line) -> str:
    """``from 8.3 to 2.1``: a curve in words."""
    return f"from {number(line.y[0])} to {number(line.y[-1])}"


def small_figures(frame: RunFrame) -> dict[str, list[Figure]]:
    """Small curves by heading: training, knobs, signals, memory writes, others, validation."""
    names = ("Training", "Knobs", "Signals", "Memory", "Other metrics")
    groups: dict[str, list[Figure]] = {name: [] for name in names}
    for key in numeric_keys(frame.train):
        if key in DERIVED:
            continue
        heading = "Training" if key in TITLES else "Other metrics"
        heading = next((n for start, n in HEADINGS.items() if key.startswith(start)), heading)
        groups[heading].append(one_curve(frame, key))
    validation = []
    for key in dict.fromkeys(k for rows in frame.validation.values() for k in numeric_keys(rows)):
        if key not in DERIVED:
            validation.append(validation_curve(frame, key))
    groups["Validation metrics"] = validation
    return {heading: found for heading, found in groups.items() if found}


def one_curve(frame: RunFrame, key: str) -> Figure:
    """One training metric over steps."""
    x, y = series(frame.train, key)
    line, title = Line(key, x, y), TITLES.get(key, key)
    return Figure(file_stem(key), title, [line], alt=ends_of(line), marks=task_starts(frame))


def validation_curve(frame: RunFrame, key: str) -> Figure:
    """One validation metric, a line per split."""
    lines = []
    for number_, (split, rows) in enumerate(frame.validation.items(), 1):
        x, y = series(rows, key)
        if x:
            lines.append(Line(split, x, y, colour=number_))
    ends = "; ".join(f"{line.name} {ends_of(line)}" for line in lines)
    return Figure(f"validation_{file_stem(key)}", key, lines, alt=ends)


def file_stem(key: str) -> str:
    """A metric key as a file name."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in key)
