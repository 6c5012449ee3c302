"""The page in a real browser: opens without errors, sorts, switches theme, works by keyboard."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nl.report import write_report

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


@pytest.fixture
def page(full_run: Path) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = write_report(full_run)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 900})
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda r: problems.append(r.url) if r.url.startswith("http") else None)
        page.goto(f"file://{path}")
        yield page
        browser.close()
        assert problems == []


def test_the_page_works(page: Any) -> None:
    table = page.locator("table.sortable").first
    column = "tbody tr td:nth-child(3)"
    before = [float(t.split()[0]) for t in table.locator(column).all_inner_texts()]
    button = table.locator("thead button").nth(2)
    button.focus()
    page.keyboard.press("Enter")
    rising = [float(t.split()[0]) for t in table.locator(column).all_inner_texts()]
    page.keyboard.press("Enter")
    falling = [float(t.split()[0]) for t in table.locator(column).all_inner_texts()]
    assert before != rising == sorted(before)
    assert falling == sorted(before, reverse=True)
    assert table.locator("thead th").nth(2).get_attribute("aria-sort") == "descending"

    def paper() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    theme = page.locator("#theme")
    theme.click()
    light = paper()
    theme.click()
    assert theme.inner_text() == "theme: dark"
    assert paper() != light
    ink = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
    assert ink != "rgb(0, 0, 0)", "figures follow the theme"

    page.locator("summary").press("Enter")
    assert page.locator("pre").is_visible()
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
