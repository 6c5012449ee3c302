"""A sweep through tasks as the earlier system's grid: a tree of views beside the runs. Floor 1.

    legacy/grid_results.jsonl grid_results.csv grid_progress.json
    legacy/<env>/<variant>/<ablation>/experts<n>/seed<k>/   nl.report.legacy_run

Coordinates are the sweep's axes ``environment``, ``variant``, ``ablation`` and ``experts``; values
of other axes become part of the variant. Every file is replaced in one step; what an earlier call
wrote of runs that are gone is removed.
"""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nl.config import ConfigError, writing
from nl.report.cells import read_json
from nl.report.frames import Row, RunFrame, read_run
from nl.report.legacy_run import Label, experts_of, files_of, links_of, table
from nl.report.page import replace
from nl.report.task_runs import controller_kind, on_tasks
from nl.run.files import finite

FOLDER = "legacy"
NAMES = {"dense": "dense_baseline", "learned": "tg_smn_learned"}
"""Variants that had other names."""
KEYS = (
    *("env", "variant", "ablation", "n_experts", "seed", "status", "exp_name"),
    *("avg_final_task_ppl", "avg_forgetting_ppl", "final_val_ppl", "final_test_ppl", "params"),
)
"""Columns of grid_results.csv; errors, then what was not there before follow."""
OWN = re.compile(r"config\.json|metrics\.csv|eval\.csv|summary\.json|ckpt_task\d+\.safetensors")
FRESH = 60.0
"""Seconds since progress.json changed, below which the sweep is taken to be at work."""


def reads_tasks(root: Path, rows: Sequence[Row]) -> bool:
    """Whether the first run of a sweep that says what it is reads a stream of tasks."""
    configs = (read_config(root / str(row.get("run_dir"))) for row in rows)
    return on_tasks(next((config for config in configs if config), {}))


def read_config(run: Path) -> Row:
    """The configuration of a run, or of the experiment it would be of; empty if neither is."""
    experiment = run.parent
    planned = experiment.parent / "configs" / f"{experiment.name}_config.yaml"
    for path in (run / "config.yaml", planned):
        if path.is_file():
            found = yaml.safe_load(path.read_text())
            return found if isinstance(found, dict) else {}
    return {}


def write_run_view(run: Path, folder: Path) -> list[Path]:
    """The earlier files of one run.

    Raises:
        ConfigError: its stream has no tasks, or the folder cannot be written.
    """
    frame = read_run(run)
    if not on_tasks(frame.config):
        raise ConfigError(f"--legacy-csv: {run} is no run on stream=tasks; leave it out.")
    return _write_run(frame, label_of(frame.config, {}), folder)


def write_grid_view(
    roots: Sequence[Path], root: Path, rows: Sequence[Row], folder: Path
) -> list[Path]:
    """The earlier files of a sweep and of its runs.

    Args:
        roots: directories of sweeps, whose progress counts together.
        root: folder that the run directories of ``rows`` are below.
        rows: of results.jsonl.
        folder: where.

    Returns:
        The three files of the whole.

    Raises:
        ConfigError: two runs have one place, or something cannot be written.
    """
    labels, written, lines = dict[str, str](), set[Path](), list[Row]()
    for row in rows:
        run = root / str(row.get("run_dir"))
        config = read_config(run)
        if not on_tasks(config):
            raise ConfigError(
                f"--legacy-csv: {row.get('run_dir')} is no run on stream=tasks, others of this "
                "sweep are; leave it out."
            )
        label = label_of(config, row)
        other = labels.setdefault(label.name, str(row.get("run_dir")))
        if other != str(row.get("run_dir")):
            raise ConfigError(
                f"--legacy-csv: {other} and {row.get('run_dir')} would both be {label.name}; give "
                "axes names that differ."
            )
        frame = read_run(run) if (run / "config.yaml").is_file() else None
        if frame is not None:
            written.update(_write_run(frame, label, folder / label.name))
        line = line_of(row, label, folder / label.name)
        lines += [line] if line else []
    _prune(folder, written)
    more = list(dict.fromkeys(key for line in lines for key in line))
    columns = (*KEYS, *(key for key in more if key not in KEYS))
    files = {
        "grid_results.jsonl": "".join(f"{json.dumps(line, allow_nan=False)}\n" for line in lines),
        "grid_results.csv": table(columns, lines),
        "grid_progress.json": _json(progress_of(roots, root, rows, lines)),
    }
    return [replace(folder / name, text) for name, text in files.items()]


def label_of(config: Row, row: Row) -> Label:
    """Coordinates of a run: of its sweep's axes, else what its configuration amounts to."""
    columns = {k.removeprefix("column/"): v for k, v in row.items() if k.startswith("column/")}
    experts = columns.pop("experts", None)
    digits = re.search(r"\d+", str(experts)) if experts is not None else None
    environment = str(columns.pop("environment", config.get("name", "tasks")))
    ablation = str(columns.pop("ablation", "none"))
    variant = "_".join(NAMES.get(str(v), str(v)) for v in columns.values()) or own_variant(config)
    return Label(
        env=environment,
        variant=variant,
        ablation=ablation,
        experts=int(digits[0]) if digits else experts_of(config),
        seed=int({"seed": 0, **config, **row}["seed"]),
    )


def own_variant(config: Row) -> str:
    """Dense, sparse with its knobs fixed, or the kind of the controller."""
    kind = controller_kind(config)
    if kind:
        return NAMES["learned"] if kind == "gru" else kind
    return NAMES["dense"] if experts_of(config) is None else "sparse_fixed"


def line_of(row: Row, label: Label, folder: Path) -> Row:
    """One line of the grid's results; empty of a run that has not ended."""
    ended = {"done": "ok", "failed": "error", "broken": "error"}.get(str(row.get("status")))
    if ended is None:
        return {}
    line = _coordinates(label) | {"status": ended, "exp_name": label.name}
    if ended == "ok":
        line |= read_json(folder / "summary.json")
    else:
        error = row.get("error") or {}
        line |= {"error_type": error.get("type"), "error_message": error.get("message")}
    return line | {"run_dir": row.get("run_dir"), "config_hash": row.get("config_hash")}


def progress_of(
    roots: Sequence[Path], root: Path, rows: Sequence[Row], lines: Sequence[Row]
) -> Row:
    """Counts, seconds and the run that is being made, as grid_progress.json had them."""
    facts = [read_json(root / "progress.json") for root in roots]
    fresh = [f for f in facts if time.time() - float(f.get("updated") or 0) < FRESH]
    running = [name for f in fresh for name in (f.get("running") or {})]
    now = next((r for r in rows if running and str(r.get("run_dir")).endswith(running[0])), None)
    return {
        "total": len(rows),
        "done": len(lines),
        "skipped": sum(int(f.get("done_before") or 0) for f in facts),
        "failed": sum(line["status"] == "error" for line in lines),
        "elapsed_sec": sum(float(f.get("elapsed_seconds") or 0.0) for f in facts),
        "current": _coordinates(label_of(read_config(root / str(now["run_dir"])), now))
        if now
        else None,
        "fallback_jsonl_path": None,
        "fallback_progress_path": None,
    }


def _coordinates(label: Label) -> Row:
    return {
        "env": label.env,
        "variant": label.variant,
        "ablation": label.ablation,
        "n_experts": label.experts,
        "seed": label.seed,
    }


def _write_run(frame: RunFrame, label: Label, folder: Path) -> list[Path]:
    """Files and links of one run."""
    written = []
    for name, content in files_of(frame, label).items():
        text = content if isinstance(content, str) else _json(content)
        written.append(replace(folder / name, text))
    for name, target in links_of(frame).items():
        written.append(_link(folder / name, target))
    return written


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(finite(content), indent=2, allow_nan=False) + "\n"


def _link(path: Path, target: Path) -> Path:
    """A relative link, so that the sweep can be moved as a whole."""
    relative = os.path.relpath(target.resolve(), path.parent.resolve())
    temporary = path.with_name(f".tmp-{path.name}-{uuid.uuid4().hex[:8]}")
    with writing(path):
        temporary.symlink_to(relative)
        temporary.replace(path)
    return path


def _prune(folder: Path, written: set[Path]) -> None:
    """Remove views of runs that are not what they were, and directories that this empties."""
    for seed in folder.glob("*/*/*/experts*/seed*"):
        for path in [p for p in seed.iterdir() if OWN.fullmatch(p.name) and p not in written]:
            path.unlink()
        place = seed
        while place != folder and not any(place.iterdir()):
            place.rmdir()
            place = place.parent
