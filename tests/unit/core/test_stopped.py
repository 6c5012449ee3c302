"""SIGTERM and Ctrl-C: what is raised when, what is said of what was kept."""

from __future__ import annotations

import importlib
import signal
import sys
import time
from pathlib import Path

import pytest

from nl.core.stopped import Terminated, keeping, stopped_code, stopped_text, terminable


def test_a_stop_says_what_was_kept() -> None:
    with pytest.raises(Terminated) as caught, terminable(), keeping(lambda: "two of three kept"):
        signal.raise_signal(signal.SIGTERM)
    assert stopped_text(caught.value) == "stopped: two of three kept"
    assert stopped_text(KeyboardInterrupt()) == "stopped"
    assert [stopped_code(stop) for stop in (caught.value, KeyboardInterrupt())] == [143, 130]


def test_an_import_under_way_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by what swallows whatever is raised while it is imported."""
    text = "import signal\ntry:\n    signal.raise_signal(signal.SIGTERM)\nexcept BaseException:\n"
    (tmp_path / "swallows_all.py").write_text(text + "    pass\nloaded = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)]

    def work() -> None:
        with terminable():
            importlib.import_module("swallows_all")
            time.sleep(10)

    with pytest.raises(Terminated):
        work()
    assert sys.modules.pop("swallows_all").loaded
    assert before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)]
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
