"""Progress of an evaluation, where there is no terminal: a line now and then."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from nl.eval.progress import ProgressMeter


def test_a_line_says_of_what_how_fast_and_how_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = iter((0.0, 4.0, 10.0))
    clock = SimpleNamespace(monotonic=lambda: next(now))
    monkeypatch.setattr("nl.eval.progress.time", clock)
    monkeypatch.setattr(logging.getLogger("nl"), "propagate", True)
    caplog.set_level(logging.INFO, "nl")
    with ProgressMeter("needle (off)", 50, "prompts") as meter:
        meter.advance(8)
        assert caplog.messages == []
        meter.advance(12)
    assert caplog.messages == ["needle (off): 20 of 50 prompts, 2.0/s, 15 s left"]
