"""Progress of an evaluation, where there is no terminal: a line now and then."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from nl.eval.progress import ProgressMeter


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
