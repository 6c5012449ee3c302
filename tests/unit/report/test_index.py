"""One page over many runs: every run is on it, columns sort, it needs nothing from elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nl.cli import main
from nl.config import ConfigError
from nl.report import write_report
from nl.report.index import runs_below, short_names, write_index
from nl.report.sides import read_side


@pytest.fixture
def runs(full_run: Path, tmp_path: Path) -> Path:
    """Three runs: a full one with its page, one with another value, one that just began."""
    root = tmp_path / "many"
    for name in ("a/first", "a/second"):
        shutil.copytree(full_run, root / name)
    write_report(root / "a/first")
    evals = root / "a/second/evals.jsonl"
    rows = [json.loads(line) for line in evals.read_text().splitlines()]
    for row in rows:
        row["value"] = row["value"] and row["value"] + 1
    evals.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "b/new").mkdir(parents=True)
    (root / "b/new/config.yaml").write_text("seed: 7\nmodel: {kind: language, block: titan}\n")
    return root


def test_all_runs_are_there(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(runs)]) == 0
    page = runs / "index.html"
    assert f"{page}: 3 runs" in capsys.readouterr().out
    html = page.read_text()
    assert "http" not in html
    assert '<a href="a/first/report.html">a/first</a>' in html
    assert "a/second" in html
    assert "b/new" in html
    assert "language (titan)" in html
    first, second = (read_side(runs / "a" / name, name) for name in ("first", "second"))
    key = ("perplexity", "val/prose", "nats_per_token", "off")
    assert second.rows[key]["value"] == first.rows[key]["value"] + 1
    for side in (first, second):
        value = side.rows[key]["value"]
        assert f'data-sort="{value}"' in html


def test_which_runs(runs: Path, tmp_path: Path) -> None:
    found = runs_below([runs / "b", runs / "a/first", runs])
    assert [path.relative_to(runs).as_posix() for path in found] == [
        "b/new",
        "a/first",
        "a/second",
    ]
    assert short_names(found) == ["b/new", "a/first", "a/second"]
    assert short_names(found[:1]) == ["new"]
    assert write_index([runs / "a"], tmp_path / "deep" / "page.html") == 2
    assert "../many/a/first/report.html" in (tmp_path / "deep" / "page.html").read_text()
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ConfigError, match="no run directory here or"):
        runs_below([tmp_path / "nothing"])


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for place, words in (
        ("gone", "no such directory"),
        ("empty", "no run directory here or"),
    ):
        assert main(["report", str(tmp_path / place)]) == 2
        assert words in capsys.readouterr().err


def shown(page: Any) -> list[str]:
    found: list[str] = page.locator("table.sortable").first.locator("tbody th").all_inner_texts()
    return found


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_in_a_browser(runs: Path) -> None:
    from playwright.sync_api import sync_playwright

    write_index([runs], runs / "index.html")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1180, "height": 900})
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"file://{runs / 'index.html'}")
        before = shown(page)
        head = page.locator("table.sortable").first.locator("thead button").first
        head.click()
        assert shown(page) == sorted(before)
        head.click()
        assert shown(page) == sorted(before, reverse=True)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        browser.close()
    assert problems == []
