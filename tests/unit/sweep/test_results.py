"""Rows, statistics and files of a sweep against numbers worked out by hand."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import yaml

from nl.run.student import spread
from nl.sweep.results import as_csv, scan, summary, write_results, write_summaries


def row(name: str, seed: int, status: str, **metrics: float) -> dict[str, object]:
    return {
        "experiment": name,
        "seed": seed,
        "status": status,
        "run_dir": f"{name}/seed_{seed}",
        "metrics": metrics,
        "cpu_seconds": 2.0 if status == "done" else None,
        **({"error": {"type": "ValueError", "message": "no, sorry"}} if status == "failed" else {}),
    }


ROWS = [
    row("a", 0, "done", **{"val/loss": 1.0, "only/here": 5.0}),
    row("a", 1, "done", **{"val/loss": 2.0}),
    row("a", 2, "done", **{"val/loss": 4.5}),
    row("b", 0, "failed"),
    row("b", 1, "done", **{"val/loss": 3.0}),
    row("b", 2, "missing"),
]


def test_spread_by_hand() -> None:
    found = spread([1.0, 2.0, 4.5])
    # deviations -1.5, -0.5, 2: squares 2.25 + 0.25 + 4 = 6.5; / 2 = 3.25; t(2) = 4.303
    assert found["mean"] == 2.5
    assert found["std"] == pytest.approx(math.sqrt(3.25))
    assert found["ci95"] == pytest.approx(4.303 * math.sqrt(3.25) / math.sqrt(3))
    assert (found["n"], found["min"], found["max"], found["median"]) == (3, 1.0, 4.5, 2.0)
    assert (spread([7.0])["std"], spread([7.0])["ci95"]) == (None, None)


def test_the_quantiles_are_those_of_student() -> None:
    stats = pytest.importorskip("scipy.stats")
    from nl.run.student import SMALL

    for freedom, value in enumerate(SMALL, start=1):
        assert value == pytest.approx(stats.t.ppf(0.975, freedom), abs=6e-4)


def test_summary_counts_everything_and_averages_what_all_have() -> None:
    whole = summary(ROWS)
    counts = [whole[f"total_{key}_runs"] for key in ("successful", "failed", "unfinished")]
    assert counts == [4, 1, 1]
    assert whole["total_runs"] == 6
    assert whole["total_cpu_seconds"] == 8.0
    assert summary([row("c", 0, "missing")])["total_cpu_seconds"] is None
    assert whole["overall_success_rate"] == pytest.approx(4 / 6)
    a, b = whole["experiment_statistics"]["a"], whole["experiment_statistics"]["b"]
    assert set(a["statistics"]) == {"val/loss"}
    assert (b["successful_runs"], b["failed_runs"], b["total_runs"]) == (1, 1, 3)
    assert b["statistics"]["val/loss"]["mean"] == 3.0
    assert (a["cpu_seconds"], b["cpu_seconds"]) == (6.0, 2.0)


def test_csv_holds_every_row_and_the_error() -> None:
    lines = list(csv.DictReader(as_csv(ROWS).splitlines()))
    assert [line["status"] for line in lines] == [str(r["status"]) for r in ROWS]
    assert lines[3]["error"] == "ValueError: no, sorry"
    assert lines[0]["val/loss"] == "1.0"
    assert [line["cpu_seconds"] for line in lines[:4]] == ["2.0", "2.0", "2.0", ""]
    assert lines[3]["val/loss"] == ""


def test_files_hold_no_nan(tmp_path: Path) -> None:
    rows = [row("a", 0, "done", **{"val/loss": math.nan})]
    write_results(tmp_path, rows)
    assert "NaN" not in (tmp_path / "results.jsonl").read_text()
    write_summaries(tmp_path, rows)
    found = yaml.safe_load((tmp_path / "a" / "experiment_summary.yaml").read_text())
    assert found["statistics"] == {}
    assert found["run_details"][0]["status"] == "done"


def test_a_broken_run_directory_is_a_marked_row(tmp_path: Path) -> None:
    from nl.sweep.job import Job

    home = tmp_path / "a" / "seed_0"
    home.mkdir(parents=True)
    (home / "config.yaml").write_text("{}")
    (home / "meta.json").write_text('{"config_hash": "h"}')
    (home / "status.json").write_text('{"state": "done"}')
    (home / "summary.json").write_text('["not", "a", "mapping"]')
    (home / "metrics.jsonl").write_text("")
    found = scan([Job("a", 0, home, (), "h", {}, ())])
    assert found[0]["status"] == "broken"
    assert found[0]["error"]["type"]
