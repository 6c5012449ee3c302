"""Where in a window does a block win? Validation loss by position, from finished runs.

A memory that learns from what has been read can help only after its first write; before it the
block stands on what it learned in training. The numbers lie beside the runs.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import study

BUCKET = 16
"""Positions averaged together."""
RANGES = ((0, 32), (32, 64), (64, 128), (128, 256))
"""Ranges of the table: nothing is written before position 32."""


def file(root: Path, name: str) -> Path:
    """Where the numbers of a run lie."""
    return root / f"{name}.positions.json"


def opened(root: Path, name: str, data: Path | None) -> tuple[Any, Any] | None:
    """Configuration and model of a finished run; None, and a line, where that is not to be had."""
    if study.result(root, name) is None:
        print(f"{name}: not measured; no finished run in {root / name}", flush=True)
        return None
    import torch

    from nl.assembly import load_run, register
    from nl.config import ConfigError

    torch.set_num_threads(1)
    register()
    try:
        loaded, model = load_run(root / name)
    except ConfigError as error:  # made by an older checkout with other names
        print(f"{name}: not measured; {str(error).splitlines()[0]}", flush=True)
        return None
    run: Any = loaded
    if data is not None:
        run = replace(run, stream=replace(run.stream, path=str(data.resolve())))
    return run, model


def splits(run: Any) -> list[str]:
    """The splits that a run was validated on."""
    from nl.fit import validation_splits

    return list(validation_splits(run))


def batches(run: Any, split: str) -> Iterator[Any]:
    """The batches that a run was validated on."""
    stream = run.stream.build(split, seed=run.seed, rank=0, world=1)
    for batch in itertools.islice(stream, run.train.validate_batches):
        yield batch.to("cpu")


def measure(root: Path, name: str, data: Path | None) -> None:
    """Read the validation windows of a finished run again, loss by position; kept if there."""
    if file(root, name).is_file():
        return
    import torch

    if (both := opened(root, name, data)) is None:
        return
    run, model = both
    found: dict[str, list[float]] = {}
    for split in splits(run):
        sums: list[Any] = []
        with torch.no_grad():
            for batch in batches(run, split):
                nll, _ = model.nll(
                    batch.inputs, batch.targets, write=run.objective.write, keep=False
                )
                sums.append(nll.double().mean(0))
        mean = torch.stack(sums).mean(0)
        found[split] = mean.view(-1, BUCKET).mean(1).tolist()
    file(root, name).write_text(json.dumps(found))
    print(f"{name}: by position", flush=True)


def losses(root: Path, name: str) -> list[float] | None:
    """Loss per bucket of positions, mean over the validation splits; None if not measured."""
    if not file(root, name).is_file():
        return None
    splits = json.loads(file(root, name).read_text()).values()
    return [sum(column) / len(column) for column in zip(*splits, strict=True)]


def table(pairs: dict[tuple[str, str], list[list[float]]]) -> list[str]:
    """Differences in ranges of positions: per pair and seed one row of buckets."""
    body = []
    for (label, other), found in pairs.items():
        if not found:
            continue
        row = [f"{label} - {other}", str(len(found))]
        for low, high in RANGES:
            part = [one[low // BUCKET : high // BUCKET] for one in found]
            row.append(study.interval([sum(p) / len(p) for p in part]))
        body.append(row)
    head = ["difference", "seeds", *(f"tokens {low} to {high - 1}" for low, high in RANGES)]
    return study.table(head, body) if body else []
