"""Progress of an evaluation, where there is no terminal: a line now and then."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nl.cli import main
from nl.eval.progress import ProgressMeter
from tests.unit import test_cli_model

data = test_cli_model.data
trained = test_cli_model.trained


def test_a_line_says_of_what_how_fast_and_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter((0.0, 4.0, 10.0))
    lines: list[str] = []
    logger = SimpleNamespace(info=lambda form, *values: lines.append(form % values))
    monkeypatch.setattr("nl.eval.progress.time", SimpleNamespace(monotonic=lambda: next(now)))
    monkeypatch.setattr("nl.eval.progress.get_logger", lambda _: logger)
    with ProgressMeter("needle (off)", 50, "prompts") as meter:
        meter.advance(8)
        assert lines == []
        meter.advance(12)
    assert lines == ["needle (off): 20 of 50 prompts, 2.0/s, 15 s left"]


def test_progress_says_on_which_documents_it_is(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []
    made = ProgressMeter.__init__

    def noted(self: Any, title: str, total: int, unit: str) -> None:
        titles.append(title)
        made(self, title, total, unit)

    monkeypatch.setattr(ProgressMeter, "__init__", noted)
    sets = ["perplexity.max_documents=2", "long_documents.documents=2"]
    sets += ["long_documents.tokens=80", *test_cli_model.FEW]
    suites = ["perplexity", "long_documents"]
    output = ["--output", str(tmp_path / "out")]
    assert main(["eval", str(trained), "--suite", *suites, "--set", *sets, *output]) == 0
    for title in ("perplexity val/code", "perplexity val/prose", "long documents test/code"):
        assert {f"{title} (off)", f"{title} (context)"} <= set(titles)
