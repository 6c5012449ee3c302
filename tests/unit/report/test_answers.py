"""Rows that a probe's evaluator kept, on the page of their run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nl.report import write_report
from nl.report.answers import answers, strip
from nl.report.frames import read_run


def line(index: int, guesses: list[int], **changes: Any) -> dict[str, Any]:
    return {
        "index": index,
        "inputs": [4, 7, 1, 4],
        "places": [1, 3],
        "targets": [7, 9],
        "guesses": guesses,
        "probability": [0.6, 0.9],
        "right": [0.6, 0.05],
        **changes,
    }


@pytest.fixture
def run(full_run: Path) -> Path:
    folder = full_run / "artifacts" / "evals" / "probe"
    folder.mkdir(parents=True)
    told = {
        "task": "test",
        "wrong": 5,
        "errors": [line(3, [7, 2]), line(8, [7, 2]), line(1, [2, 2], probability=[0.3, 0.4])],
        "right": [line(5, [7, 9], inputs=[1, 7, 1, 4])],
    }
    (folder / "examples.json").write_text(json.dumps(told))
    return full_run


def test_a_row_token_by_token() -> None:
    found = strip(line(3, [7, 2]))
    assert [step["token"] for step in found["steps"]] == [4, 7, 1, 4]
    first, second = found["steps"][1]["answer"], found["steps"][3]["answer"]
    assert found["steps"][0]["answer"] is None
    assert (first["right"], second["right"]) == (True, False)
    assert second == {"right": False, "said": 2, "is": 9, "p_said": 0.9, "p_is": 0.05}
    assert (found["wrong"], found["asked"], found["sure"]) == (1, 2, 0.9)
    assert strip(line(3, [7, 9]))["sure"] == 0.0


def test_equal_rows_are_shown_once(run: Path) -> None:
    found = answers(read_run(run))
    assert found is not None
    assert [(row["index"], row["times"]) for row in found["rows"]] == [(3, 2), (1, 1), (5, 1)]
    assert found["note"].startswith("test: 5 rows with an error, 2 different ones kept")


def test_the_page_shows_what_was_said_and_what_is_right(run: Path) -> None:
    html = write_report(run).read_text()
    assert "row 3: 1 of 2 answers wrong, 2 times" in html
    assert "2, is 9" in html
    assert "row 5: all 2 answers right" in html
    assert "said 2 with probability 0.9; right is 9, probability 0.05" in html


def test_runs_without_a_probe_have_no_such_part(full_run: Path) -> None:
    assert answers(read_run(full_run)) is None
    assert 'id="answers"' not in write_report(full_run).read_text()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_rows_are_chosen_and_ordered(run: Path) -> None:
    from playwright.sync_api import sync_playwright

    path, problems = write_report(run), []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = chromium.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"file://{path}")

        def shown() -> list[str]:
            rows = page.locator("#answers .strips li:visible").all()
            return [str(row.get_attribute("data-index")) for row in rows]

        assert shown() == ["3", "1"]
        assert page.locator("#answer-count").inner_text() == "2 of 3 kept rows."
        page.select_option("#answer-order", "wrong")
        assert shown() == ["1", "3"]
        page.select_option("#answer-right", "")
        page.select_option("#answer-order", "index")
        assert shown() == ["1", "3", "5"]
        chromium.close()
    assert problems == []
