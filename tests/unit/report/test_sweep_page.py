"""The page of a sweep: axes, statistics, failures; unfinished runs are marked, nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nl.cli import main
from nl.config import ConfigError
from nl.report.sweep_page import (
    axes_of,
    cpu_fact,
    is_sweep,
    run_table,
    spread_text,
    statistics_of,
    write_sweep_page,
)


def row(task: str, model: str, seed: int, value: float | None, **more: Any) -> dict[str, Any]:
    name = f"{task}_{model}"
    found = {
        "experiment": name,
        "seed": seed,
        "column/data": task,
        "column/size": model,
        "status": "missing" if value is None else "done",
        "run_dir": f"{name}/seed_{seed}",
        "config_hash": "abc",
        **more,
    }
    return found if value is None else found | {"metrics": {"val/loss": value}, "steps": 3}


ERROR = {"type": "ValueError", "message": "<b>no</b>", "traceback_tail": "line 7"}
ROWS = [
    row("copy", "small", 0, 2.0),
    row("copy", "small", 1, 4.0),
    row("copy", "large", 0, 1.0),
    row("copy", "large", 1, 2.0),
    row("sort", "small", 0, 5.0),
    row("sort", "small", 1, None),
    row("sort", "large", 0, None, status="failed", error=ERROR, attempts=2),
]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    root = tmp_path / "sweep"
    root.mkdir()
    (root / "sweep_metadata.yaml").write_text(
        "sweep_name: both\nseeds: [0, 1]\nbase_config_file: pilot_smoke\n"
        "goal: {name: val/loss, direction: minimize}\n"
    )
    stale = {**ROWS[0], "metrics": {"val/loss": 9.0}}
    lines = [json.dumps(line) for line in (stale, *ROWS)]
    (root / "results.jsonl").write_text("\n".join(lines) + "\n")
    (root / "copy_small/seed_0").mkdir(parents=True)
    (root / "copy_small/seed_0/report.html").write_text("x")
    return root


def test_the_page_says_what_runs_cost() -> None:
    costs = [61.0, 9.0, None]
    rows = [{**line, "cpu_seconds": cost} for line, cost in zip(ROWS, costs, strict=False)]
    assert cpu_fact(rows) == [("CPU time", "1 min 10 s (2 of 3 runs)")]
    assert cpu_fact(rows[:2]) == [("CPU time", "1 min 10 s")]
    assert cpu_fact(ROWS) == []
    table = run_table(rows, lambda _: "")
    assert table.head[5:7] == ["seconds", "CPU seconds"]
    assert [line[6] for line in table.numbers] == ["CPU seconds", *costs]
    assert table.rows[0][6].text == "1 min 01 s"


def test_statistics_are_those_of_done_runs() -> None:
    found = statistics_of(ROWS)
    assert found["copy_small"]["val/loss"]["mean"] == 3.0
    assert found["copy_small"]["val/loss"]["ci95"] == pytest.approx(12.706)
    assert found["sort_small"]["val/loss"]["n"] == 1
    assert "sort_large" not in found
    assert axes_of(ROWS) == {"column/data": ["copy", "sort"], "column/size": ["small", "large"]}
    assert spread_text({"mean": 1.5, "ci95": None}) == "1.500"
    assert spread_text(None) == "-"


def test_everything_is_on_the_page(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert is_sweep(sweep)
    assert main(["report", str(sweep)]) == 0
    page = sweep / "index.html"
    assert str(page) in capsys.readouterr().out
    html = page.read_text()
    assert "http" not in html
    assert "5 done, 1 failed, 1 missing" in html
    assert "1 runs have not ended" in html
    assert 'data-sort="3.0"' in html
    assert 'data-sort="9.0"' not in html, "a later row of a job replaces an earlier one"
    assert "&lt;b&gt;no&lt;/b&gt;" in html
    assert "line 7" in html
    assert '<a href="copy_small/seed_0/report.html">copy_small/seed_0</a>' in html
    # large is the best of copy; of sort only small is there, and no mean of the row
    assert html.index("val/loss") < html.index("experiments")
    assert html.count("best of its row") >= 2


def test_what_cannot_be_read_is_named(sweep: Path) -> None:
    (sweep / "results.jsonl").write_text("{}\nnot json\n")
    with pytest.raises(ConfigError, match="line 2 is no JSON"):
        write_sweep_page(sweep)
    (sweep / "results.jsonl").unlink()
    assert "none" in write_sweep_page(sweep).read_text()
    (sweep / "sweep_metadata.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="no mapping"):
        write_sweep_page(sweep)
