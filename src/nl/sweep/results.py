"""What a sweep's runs came to: one row per job, summaries over seeds; always from a scan. Floor 1.

results.jsonl, results.csv, sweep_summary.yaml and <experiment>/experiment_summary.yaml can be made
again from the run directories at any time.
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nl.run import RunDir, RunError, read_records, write_atomic
from nl.run.files import finite, read_json, write_json
from nl.run.student import spread
from nl.sweep.job import Job, failure_of, progress_of, standing

Row = dict[str, Any]
LEFT_OUT = ("step", "time", "tokens", "lr", "grad_norm")
"""Keys of a metric row that are no result."""
DETAILS = ("seed", "status", "run_dir", "seconds", "cpu_seconds", "error")
"""What an experiment's summary says of a run."""


def row_of(job: Job) -> Row:
    """One job as a row: what it is, how far it is, its numbers or its error."""
    state = standing(job)
    attempts = job.attempts()
    row: Row = {
        "experiment": job.experiment,
        "seed": job.seed,
        **{f"column/{name}": value for name, value in job.columns.items()},
        "status": "missing" if state == "other" else state,
        "attempts": attempts["started"],
        "cpu_seconds": attempts["cpu_seconds"],
        "config_hash": job.config_hash,
        "run_dir": job.name,
        "overrides": list(job.overrides),
    }
    if state == "failed":
        row["error"] = failure_of(job)
    elif state == "done":
        row |= numbers(RunDir.open(job.home))
    elif state in ("running", "stopped"):
        row["progress"] = progress_of(job)
    return row


def numbers(run: RunDir) -> Row:
    """Everything a finished run ends with.

    Returns:
        ``parameters``, ``steps``, ``tokens``, ``seconds``, ``best`` and ``metrics``: every number
        of the last row of each split as ``<split>/<key>``, evaluations as
        ``eval/<suite>/<task>/<metric>``.
    """
    summary = read_json(run.summary)
    found: dict[str, float | None] = {}
    for line in read_records(run.metrics):
        found |= {
            f"{line.get('split', 'train')}/{key}": float(value)
            for key, value in line.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
            if key not in LEFT_OUT and not key.startswith("perf/")
        }
    found |= summary.get("final") or {}
    for line in summary.get("evals") or []:
        found[f"eval/{line['suite']}/{line['task']}/{line['metric']}"] = line["value"]
    plain = {key: summary.get(key) for key in ("parameters", "steps", "tokens", "seconds")}
    return {**plain, "best": summary.get("best"), "metrics": found}


def scan(jobs: Iterable[Job]) -> list[Row]:
    """The rows of all jobs, in order; a run whose files cannot be read is a failed row."""
    rows = []
    for job in jobs:
        try:
            rows.append(row_of(job))
        except (RunError, AttributeError, KeyError, TypeError, ValueError) as error:
            text = {"type": type(error).__name__, "message": str(error), "traceback_tail": ""}
            head = {"experiment": job.experiment, "seed": job.seed, "run_dir": job.name}
            rows.append({**head, "status": "broken", "error": text})
    return rows


def write_results(root: Path, rows: Sequence[Row]) -> None:
    """results.jsonl and results.csv, whole or not at all."""
    lines = (
        json.dumps(row, sort_keys=False, allow_nan=False, default=str) for row in map(finite, rows)
    )
    write_atomic(root / "results.jsonl", "".join(f"{line}\n" for line in lines), durable=False)
    write_atomic(root / "results.csv", as_csv(rows), durable=False)


def append_row(root: Path, row: Row) -> None:
    """Add a line to results.jsonl as soon as a job has ended."""
    with (root / "results.jsonl").open("a") as file:
        file.write(json.dumps(finite(row), allow_nan=False, default=str) + "\n")


def as_csv(rows: Sequence[Row]) -> str:
    """All rows with all numbers; the columns are the union in order of first appearance."""
    flat_rows = []
    for row in rows:
        line = {k: v for k, v in row.items() if k not in ("metrics", "error", "best", "overrides")}
        line |= row.get("metrics") or {}
        if error := row.get("error"):
            line["error"] = f"{error['type']}: {error['message']}"
        flat_rows.append(line)
    names = list(dict.fromkeys(name for line in flat_rows for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(flat_rows)
    return text.getvalue()


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts and statistics over seeds of every number that all done runs of an experiment have."""
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row["experiment"], []).append(row)
    experiments = {name: experiment_summary(found) for name, found in by_name.items()}
    done = sum(row["status"] == "done" for row in rows)
    failed = sum(row["status"] in ("failed", "broken") for row in rows)
    return {
        "sweep_completed_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "total_experiments": len(by_name),
        "total_runs": len(rows),
        "total_successful_runs": done,
        "total_failed_runs": failed,
        "total_unfinished_runs": len(rows) - done - failed,
        "total_cpu_seconds": cpu_seconds(rows),
        "overall_success_rate": done / len(rows) if rows else 0.0,
        "experiment_statistics": experiments,
    }


def experiment_summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts, and statistics of every number that all its finished runs have."""
    done = [row for row in rows if row["status"] == "done"]
    keys = (
        []
        if not done
        else [
            key
            for key in done[0]["metrics"]
            if all(_usable(row["metrics"].get(key)) for row in done)
        ]
    )
    return {
        "total_runs": len(rows),
        "successful_runs": len(done),
        "failed_runs": sum(row["status"] in ("failed", "broken") for row in rows),
        "success_rate": len(done) / len(rows),
        "cpu_seconds": cpu_seconds(rows),
        "statistics": {key: spread([row["metrics"][key] for row in done]) for key in keys},
    }


def cpu_seconds(rows: Sequence[Row]) -> float | None:
    """CPU seconds of all attempts whose end a sweep saw; None where nobody counted."""
    known = [float(row["cpu_seconds"]) for row in rows if row.get("cpu_seconds") is not None]
    return sum(known) if known else None


def _usable(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def write_summaries(root: Path, rows: Sequence[Row]) -> dict[str, Any]:
    """sweep_summary.yaml and one experiment_summary.yaml per experiment."""
    whole = summary(rows)
    for name, found in whole["experiment_statistics"].items():
        details = [
            {key: row.get(key) for key in DETAILS} for row in rows if row["experiment"] == name
        ]
        page = {"experiment_name": name, **found, "run_details": details}
        (root / name).mkdir(parents=True, exist_ok=True)
        write_yaml(root / name / "experiment_summary.yaml", page)
    write_yaml(root / "sweep_summary.yaml", whole)
    return whole


def write_yaml(path: Path, data: Any) -> None:
    """YAML in the order of its keys."""
    text = yaml.safe_dump(json.loads(json.dumps(finite(data), default=str)), sort_keys=False)
    write_atomic(path, text, durable=False)


def write_progress(root: Path, counts: Mapping[str, Any]) -> None:
    """progress.json: counts, rate, elapsed, what runs now."""
    write_json(root / "progress.json", dict(counts), durable=False)
