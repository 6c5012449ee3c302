"""Recall over lengths and depths for a checkpoint of stream=noisy_recall. Floor 8."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nl.cli_measure import check_device, check_output, step_at
from nl.config import ConfigError, structure, unstructure
from nl.config.run import RunConfig, config_hash

POLICY = "State fresh per sample, carried over its segments"


def recall(options: argparse.Namespace) -> None:
    """Measure --checkpoint, print the table, write cells (JSON) and samples (JSONL)."""
    from nl.assembly import load_run
    from nl.core.seeds import SeedBook
    from nl.eval.recall_grid import RecallGrid, measure_recall
    from nl.eval.rows import save_json
    from nl.run.files import write_atomic
    from nl.run.records import line

    check_output(options.output)
    check_device(options.device)
    settings = {key: getattr(options, key) for key in ("lengths", "depths", "samples", "memorize")}
    grid = structure(RecallGrid, settings, "")
    run, model = load_run(options.checkpoint)
    task: Any = task_of(run, options.pairs)
    book = SeedBook(options.seed)

    def draw(number: int, length: int, depth: float) -> tuple[list[int], int]:
        key = book.seed("eval", "noisy_recall", length, repr(float(depth)))
        tokens, value = task.question(key, number, length, depth)
        return tokens.tolist(), value

    samples = measure_recall(
        model.to(options.device),
        draw,
        grid,
        batch_size=options.batch_size,
        segment=options.segment,
        device=options.device,
    )
    result = record(options, run, task, samples)
    result["model"]["parameters"] = sum(p.numel() for p in model.parameters())
    result["oracle"] = oracle(draw, grid, task.keys)
    if "context" in grid.memorize:
        result["writes"] = {str(n): writes(options, model, draw, n) for n in grid.lengths}
    save_json(options.output, result)
    rows = [{**s._asdict(), "right": s.predicted == s.answer} for s in samples]
    write_atomic(options.output.with_suffix(".jsonl"), "".join(line(row) for row in rows))
    print(table(result))
    print(f"written: {options.output}, {options.output.with_suffix('.jsonl')}")


def record(options: argparse.Namespace, run: RunConfig, task: Any, samples: Any) -> dict[str, Any]:
    """What the JSON file holds."""
    from nl.eval.recall_grid import cells_of
    from nl.run.provenance import provenance

    model, stream = unstructure(run.model), unstructure(run.stream)
    return {
        "checkpoint": str(options.checkpoint),
        "step": step_at(Path(options.checkpoint)),
        "config_hash": config_hash(run),
        "model": {"block": model["block"]},
        "train": {key: stream[key] for key in ("seq_len", "pairs")},
        "task": unstructure(task),
        "seed": options.seed,
        "state": POLICY,
        "chance": 1 / task.keys,
        "cells": cells_of(samples),
        "provenance": provenance(),
    }


def writes(options: argparse.Namespace, model: Any, draw: Any, length: int) -> dict[str, float]:
    """What reading one row of a length wrote: by memory its writes and its relative size."""
    import torch

    tokens, state = torch.tensor([draw(0, length, 0.5)[0]], device=options.device), None
    with torch.no_grad():
        for part in torch.split(tokens, options.segment, 1):
            state = model(part, state).state
    found = model.memory_report(state)
    return {
        f"memory/{key}/{one['path']}/layer{one['layer']}": float(one[key])
        for one in found
        for key in ("writes", "added")
    }


def oracle(draw: Any, grid: Any, keys: int) -> dict[str, Any]:
    """What looking the key up scores on the same samples: the task can be solved."""
    import numpy as np

    from nl.data.noisy_recall import look_up
    from nl.eval.rows import wilson

    cells = [(length, depth) for length in grid.lengths for depth in grid.depths]
    told = [draw(number, *cell) for cell in cells for number in range(grid.samples)]
    hits = sum(look_up(np.asarray(tokens), keys) == value for tokens, value in told)
    low, high = wilson(hits, len(told))
    return {"accuracy": hits / len(told), "n": len(told), "low": low, "high": high}


def task_of(run: RunConfig, pairs: int | None) -> Any:
    """The stream the run was trained on, with as many facts as asked for.

    Raises:
        ConfigError: the run read something else.
    """
    from dataclasses import replace

    from nl.data.noisy_recall import NoisyRecallConfig

    stream = run.stream
    if not isinstance(stream, NoisyRecallConfig):
        raise ConfigError(
            f"--checkpoint: it was trained on stream={stream.kind}; this measures models of "
            "stream=noisy_recall. For text use scripts/eval/niah.py or passkey.py."
        )
    return stream if pairs is None else replace(stream, pairs=pairs)


def table(record: dict[str, Any]) -> str:
    """A line per memorisation mode and length, a column per depth."""
    cells = record["cells"]
    depths = list(dict.fromkeys(cell["depth"] for cell in cells))
    head = "".join(f"{f'depth {depth:g}':>22}" for depth in depths)
    lines = [f"{'memorize':10}{'length':>8}  {head}"]
    by = {(c["memorize"], c["length"], c["depth"]): c for c in cells}
    for mode, length in dict.fromkeys((c["memorize"], c["length"]) for c in cells):
        row = [by[mode, length, depth] for depth in depths]
        shown = (f"{c['accuracy']:.3f} [{c['low']:.3f}, {c['high']:.3f}]" for c in row)
        lines.append(f"{mode:10}{length:8}  " + "".join(f"{text:>22}" for text in shown))
    n, oracle = cells[0]["n"], record["oracle"]["accuracy"]
    lines.append(f"n = {n} per cell; chance {record['chance']:.4f}; looking it up {oracle:.3f}")
    return "\n".join(lines)
