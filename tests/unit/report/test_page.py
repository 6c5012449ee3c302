"""The run page: complete on a full run, honest about a broken one, the same bytes twice."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nl.cli import main
from nl.config import ConfigError
from nl.report import write_report


class Outline(html.parser.HTMLParser):
    """Headings, ids, links and visible text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("href", "src", "xlink:href"):
                self.links.append(str(value))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def outline(page: Path) -> Outline:
    parser = Outline()
    parser.feed(page.read_text())
    return parser


def headings(text: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", text)


def test_a_full_run_shows_everything(full_run: Path) -> None:
    page = write_report(full_run)
    assert page == full_run / "report.html"
    text = page.read_text()
    assert headings(text) == [
        "Loss",
        "Evaluation",
        "Needle in a haystack",
        "Forgetting",
        "Generated text",
        "Training",
        "Memory",
        "Configuration",
        "Provenance",
        "Files",
    ]
    for fact in ("pilot_smoke", "0a1b2c3d4e5f", "1.23M", "614k", "1 min 37 s", ">done<"):
        assert fact in text
    assert "language (hope_attention, transformer)" in text
    assert "2026-09-21" in text
    assert "unigram 6.020" in text
    assert "3.280 \u00b1 0.021" in text
    assert "3.200 \u00b1 0.021" in text
    assert "not finite (nan)" in text


def test_the_page_needs_nothing_outside_itself(full_run: Path) -> None:
    found = outline(write_report(full_run))
    outside = [link for link in found.links if not link.startswith(("data:", "#"))]
    assert "config.yaml" in outside
    assert all((full_run / link).is_file() for link in outside), "only the run's own files"
    assert len(found.ids) == len(set(found.ids))
    assert found.tags.count("h1") == 1
    assert "b" not in found.tags, "generated text is escaped"


def test_equal_runs_give_equal_bytes(
    full_run: Path, run_maker: Callable[[Path], Path], tmp_path: Path
) -> None:
    again = run_maker(tmp_path / "again" / full_run.name)
    first, second = write_report(full_run), write_report(again)
    assert first.read_bytes() == second.read_bytes()
    names = sorted(p.name for p in (full_run / "artifacts" / "report").iterdir())
    for name in names:
        one = (full_run / "artifacts" / "report" / name).read_bytes()
        assert one == (again / "artifacts" / "report" / name).read_bytes()


def test_every_figure_has_its_numbers_beside_it(full_run: Path) -> None:
    write_report(full_run)
    folder = full_run / "artifacts" / "report"
    assert {p.stem for p in folder.glob("*.svg")} <= {p.stem for p in folder.glob("*.csv")}
    rows = list(csv.DictReader(io.StringIO((folder / "loss.csv").read_text())))
    by_line: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_line.setdefault(row["line"], []).append(row)
    assert set(by_line) == {
        "train (raw)",
        "train (smoothed)",
        "val/code",
        "val/prose",
        "unigram val/prose",
        "unigram val/code",
    }
    assert len(by_line["train (raw)"]) == 299, "the non-finite step has no point"
    metrics = [json.loads(line) for line in (full_run / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in metrics if row["split"] == "val/code"][-1]
    assert float(by_line["val/code"][-1]["value"]) == last["loss"]
    assert by_line["unigram val/code"][0]["value"] == "5.71"


def test_an_unfinished_run_says_what_is_missing(full_run: Path) -> None:
    for name in ("summary.json", "evals.jsonl", "meta.json", "config.yaml"):
        (full_run / name).unlink()
    shutil.rmtree(full_run / "artifacts")
    (full_run / "status.json").write_text('{"state": "failed", "step": 7, "total_steps": 300, ')
    with (full_run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 301, "split": "tr')
    text = write_report(full_run).read_text()
    assert headings(text) == [
        *("Loss", "Training", "Memory", "Configuration", "Files", "Not on this page"),
    ]
    for sentence in (
        "summary.json is missing.",
        "meta.json is missing.",
        "config.yaml is missing.",
        "status.json cannot be read",
        "metrics.jsonl: 1 unreadable line left out.",
        "No evaluations yet",
    ):
        assert sentence in text


def test_a_failed_run_shows_its_error(full_run: Path) -> None:
    status = {
        "state": "failed",
        "step": 7,
        "total_steps": 300,
        "error": {"type": "FloatingPointError", "message": "loss is <nan> at step 7"},
    }
    (full_run / "status.json").write_text(json.dumps(status))
    text = write_report(full_run).read_text()
    assert "FloatingPointError: loss is &lt;nan&gt; at step 7" in text
    assert "7 of 300" in text


def test_a_run_with_nothing_yet_still_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: early\n")
    text = write_report(tmp_path).read_text()
    assert "<h1>early</h1>" in text
    assert "No training metrics yet" in text


def test_what_memories_wrote_is_folded_behind_the_scores(tmp_path: Path) -> None:
    told = {"step": 4, "suite": "perplexity", "task": "val", "memorize": "context", "n": 2}
    rows = [
        {**told, "metric": metric, "value": value}
        for metric, value in (("memory/writes/level0", 7.0), ("perplexity", 123.0))
    ]
    (tmp_path / "config.yaml").write_text("name: one\n")
    (tmp_path / "evals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = write_report(tmp_path).read_text()
    scores, folded = (
        text.index(">perplexity</td>"),
        text.index("perplexity: what memories wrote</summary>"),
    )
    assert scores < folded < text.index(">memory/writes/level0</td>")
    report = tmp_path / "artifacts" / "report"
    assert "memory" not in (report / "eval_perplexity.csv").read_text()
    assert "memory/writes/level0" in (report / "eval_perplexity_memory.csv").read_text()


def test_a_run_that_takes_no_page_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("name: one\n")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert main(["report", str(tmp_path)]) == 2
    assert f"--output: {tmp_path}; no permission to write" in capsys.readouterr().err
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "else")]) == 0


def test_caches_are_not_among_the_files(full_run: Path) -> None:
    evals = full_run / "artifacts" / "evals"
    for name in ("tasks/.cache/info.json", "tasks/seen.json"):
        (evals / name).parent.mkdir(parents=True, exist_ok=True)
        (evals / name).write_text("{}")
    text = write_report(full_run).read_text()
    assert "artifacts/evals/tasks/seen.json" in text
    assert ".cache" not in text


def test_classification_metrics_become_validation_curves(tmp_path: Path) -> None:
    rows = [
        {"step": step, "split": split, "loss": 1 / step, "accuracy": 1 - 1 / step}
        for step in (1, 2, 3)
        for split in ("train", "val")
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = write_report(tmp_path).read_text()
    assert "Validation metrics" in headings(text)
    assert (tmp_path / "artifacts" / "report" / "validation_accuracy.csv").is_file()


def test_a_run_through_tasks_shows_r_knobs_and_signals(tmp_path: Path) -> None:
    stream = {"kind": "tasks", "tasks": 3, "steps": 4, "tokens": 0, "joint": False, "only": None}
    config = {"name": "through", "stream": stream, "train": {"grad_accum": 2}}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    rows = [
        {"step": step, "split": "train", "loss": 1 / step, "knob/replay": step / 10,
         "signal/loss": 2 / step} for step in range(1, 7)
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    part = {
        "segments": ["task_00", "task_01", "task_02"],
        "phases": ["task_00", "task_01", "task_02"],
        "rows": ["init", "after task_00", "after task_01", "after task_02"],
        "nats_per_token": [[5.0, 5.0, 5.0], [1.0, 5.5, 6.0], [2.0, 1.5, 6.5], [2.5, 2.25, 1.75]],
        "metrics": {"average_loss": 6.5 / 3, "forgetting": 1.125},
    }
    told = [{"metric": "forgetting", "note": "nats, lower is better; 3 tasks"}]
    details = {"context": part, "process": {"cpu_seconds": 1.0}}
    page = {"suite": "tasks", "details": details, "rows": told}
    (tmp_path / "artifacts/evals").mkdir(parents=True)
    (tmp_path / "artifacts/evals/tasks.json").write_text(json.dumps(page))
    text = write_report(tmp_path).read_text()
    assert {"Forgetting", "Knobs", "Signals"} <= set(headings(text))
    assert "tasks: loss in nats per token, memory context" in text
    assert "forgetting 1.1250 (nats, lower is better)" in text

    def lines_of(name: str) -> list[list[str]]:
        csv_text = (tmp_path / f"artifacts/report/{name}.csv").read_text()
        return list(csv.reader(csv_text.splitlines()))

    cells = lines_of("forgetting_evals_tasks_context")
    assert [row[:3] for row in cells[4:6]] == [
        ["after task_00", "task_00", "1.0"],
        ["after task_00", "task_01", "5.5"],
    ]
    for name in ("loss", "knob_replay", "signal_loss"):
        marks = [r for r in lines_of(name) if r[0] == "(mark)"]
        assert marks == [["(mark)", "2", ""], ["(mark)", "4", ""]], "tasks are of two steps"


@pytest.mark.parametrize("make", ["missing", "empty", "file"])
def test_what_is_no_run_is_refused(tmp_path: Path, make: str) -> None:
    path = tmp_path / "run"
    if make == "empty":
        path.mkdir()
    elif make == "file":
        path.write_text("")
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        write_report(path)
    assert not (path / "artifacts").exists()


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_extra_is_named(
    full_run: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match="viz extra"):
        write_report(full_run)
    assert not (full_run / "report.html").exists()
