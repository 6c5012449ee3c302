"""The parameters of a run's newest checkpoint: shapes, norms, small tensors as numbers. Floor 1.

safetensors is a header in JSON and plain bytes behind it, so that reading it needs no torch.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nl.run.discover import checkpoints

MOST_BYTES = 64 << 20
"""Of a larger file only the header is read."""
MOST_NUMBERS = 4096
"""A larger tensor is not shown as numbers."""
MOST_IN_ALL = 40_000
"""Numbers on a page; the tensors after them are not shown as numbers."""
BINS = 24
TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "u1"}


@dataclass(frozen=True)
class Weight:
    """One tensor.

    Attributes:
        name, shape, count: what it is.
        facts: norm, mean, standard deviation, largest absolute value; empty where it was not read.
        bins: a histogram from its least to its largest value.
        values: all its numbers in order, of small tensors.
    """

    name: str
    shape: tuple[int, ...]
    count: int
    facts: dict[str, float] = field(default_factory=dict)
    bins: list[int] = field(default_factory=list)
    values: list[float] | None = None


def newest_weights(run: Path) -> Path | None:
    """The file of the newest checkpoint; None where there is none in one file."""
    found = checkpoints(run)
    path = found[-1] / "model.safetensors" if found else run
    return path if path.is_file() else None


def read_weights(path: Path) -> list[Weight]:
    """Every tensor of a safetensors file, in the order of the file; empty where it is broken."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if size <= path.stat().st_size else {}
            whole = path.stat().st_size <= MOST_BYTES
            data = file.read() if whole else b""
        entries = {k: v for k, v in header.items() if k != "__metadata__"}
        found, left = [], MOST_IN_ALL
        for name, told in entries.items():
            weight = one_weight(name, told, data, left)
            left -= len(weight.values or ())
            found.append(weight)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return found


def one_weight(name: str, told: dict[str, Any], data: bytes, left: int) -> Weight:
    """One tensor from its line in the header."""
    shape = tuple(int(n) for n in told["shape"])
    count = math.prod(shape)
    start, end = told["data_offsets"]
    if not data or not count or (told["dtype"] not in TYPES and told["dtype"] != "BF16"):
        return Weight(name, shape, count)
    import numpy as np

    if told["dtype"] == "BF16":
        upper = np.frombuffer(data[start:end], "<u2").astype("<u4") << 16
        numbers = upper.view("<f4").astype("f8")
    else:
        numbers = np.frombuffer(data[start:end], TYPES[told["dtype"]]).astype("f8")
    known = numbers[np.isfinite(numbers)]
    if not len(known):
        return Weight(name, shape, count)
    facts = {
        "norm": float(np.sqrt((known**2).sum())),
        "mean": float(known.mean()),
        "std": float(known.std()),
        "largest": float(np.abs(known).max()),
        "not finite": float(count - len(known)),
    }
    bins = np.histogram(known, BINS)[0].tolist()
    shown = count <= min(MOST_NUMBERS, left)
    values = [float(f"{v:.4g}") if math.isfinite(v) else 0.0 for v in numbers] if shown else None
    return Weight(name, shape, count, facts, bins, values)


def sparkline(bins: list[int]) -> str:
    """A histogram as a small SVG in the colour of the text."""
    top = max(bins, default=0)
    if not top:
        return ""
    bars = "".join(
        f'<rect x="{4 * n}" y="{18 - 18 * b / top:.1f}" width="3" height="{18 * b / top:.1f}"/>'
        for n, b in enumerate(bins)
        if b
    )
    wide = 4 * len(bins)
    return f'<svg class="bins" viewBox="0 0 {wide} 18" aria-hidden="true">{bars}</svg>'
