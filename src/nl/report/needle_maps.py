"""Heat maps of needle results, from the files that evaluators wrote. Floor 1."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nl.config import ConfigError
from nl.report.artifacts import NEEDLE_METRICS
from nl.report.heat import HeatMap, HeatMaps


def read_details(path: Path) -> dict[str, Any]:
    """The grid that the needle evaluator or scripts/eval/recall.py left.

    Args:
        path: ``needle_<name>.json``, the JSON of recall.py, or that of niah.py, beside whose folder
            it lies.

    Raises:
        ConfigError: not such a file.
    """
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not readable JSON ({error}).") from error
    if isinstance(data, dict) and {"memorize", "lengths", "depths"} <= data.keys():
        return data
    if isinstance(data, dict) and "cells" in data:
        return _from_cells(data)
    beside = sorted(path.with_suffix("").glob("needle_*.json"))
    rows = data.get("rows", []) if isinstance(data, dict) else []
    tasks = {str(row.get("task", "")).partition("/")[0] for row in rows if isinstance(row, dict)}
    own = [file for file in beside if file.stem.removeprefix("needle_") in tasks] or beside
    if len(own) == 1:
        return read_details(own[0])
    found = f" It stands beside {', '.join(map(str, own))}: name one." if own else ""
    raise ConfigError(
        f"{path}: no grid of lengths and depths; give needle_<name>.json of an evaluation, or the "
        f"JSON of scripts/eval/recall.py.{found}"
    )


def _from_cells(data: dict[str, Any]) -> dict[str, Any]:
    """The cells of recall.py as nested lists."""
    cells = {(c["memorize"], c["length"], c["depth"]): c for c in data["cells"]}
    modes, lengths, depths = (list(dict.fromkeys(k[i] for k in cells)) for i in range(3))
    rows = {m: [[cells[m, n, d] for d in depths] for n in lengths] for m in modes}
    return {
        "task": "recall",
        "lengths": lengths,
        "depths": depths,
        "samples": data["cells"][0]["n"],
        "chance": data["chance"],
        "memorize": {
            m: {"accuracy": [[c["accuracy"] for c in row] for row in grid]}
            for m, grid in rows.items()
        },
        "intervals": {
            m: {"accuracy": [[(c["low"], c["high"]) for c in row] for row in grid]}
            for m, grid in rows.items()
        },
    }


def needle_maps(
    sources: Sequence[tuple[str, dict[str, Any]]], metric: str | None, name: str
) -> HeatMaps:
    """One map per source and memorisation mode; depth from the top down, length from the left.

    Args:
        sources: names and what ``read_details`` gave.
        metric: None: the first share that a source has.
        name: of the files.

    Raises:
        ConfigError: a source without that metric.
    """
    maps, used = [], ""
    for title, data in sources:
        for mode, found in data["memorize"].items():
            used = metric or next((k for k in (*NEEDLE_METRICS, "accuracy") if k in found), "")
            if used not in found:
                known = ", ".join(found)
                raise ConfigError(f"--metric: {metric}; {title} has {known}.")
            maps.append(_one(f"{title}, memory {mode}", data, mode, used))
    return HeatMaps(name, maps, "depth", "tokens read before the answer", used.replace("_", " "))


def _one(title: str, data: dict[str, Any], mode: str, metric: str) -> HeatMap:
    lengths, depths = data["lengths"], data["depths"]
    values = data["memorize"][mode][metric]
    ends = data.get("intervals", {}).get(mode, {}).get(metric)
    turned = [[values[c][r] for c in range(len(lengths))] for r in range(len(depths))]
    intervals = [
        [tuple(ends[c][r]) if ends and ends[c][r] else None for c in range(len(lengths))]
        for r in range(len(depths))
    ]
    return HeatMap(
        title=title,
        rows=[f"{depth:g}" for depth in depths],
        columns=[str(length) for length in lengths],
        values=turned,
        intervals=intervals,
        counts=[[data["samples"]] * len(lengths) for _ in depths],
    )
