"""SIGTERM and Ctrl-C: what is raised when, what is said of what was kept."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_import_under_way_is_waited_for(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by what swallows whatever is raised while it is imported."""
    text = f"import signal\ntry:\n    signal.raise_signal({int(number)})\nexcept BaseException:\n"
    (tmp_path / "swallows_all.py").write_text(text + "    pass\nloaded = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "swallows_all", raising=False)
    listened = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    begun = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    before = [signal.getsignal(number) for number in listened]

    def work() -> None:
        with terminable():
            importlib.import_module("swallows_all")
            time.sleep(10)

    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            work()
        assert [signal.getsignal(number) for number in listened] == before
    finally:
        signal.signal(signal.SIGINT, begun)
    assert stopped_code(caught.value) == 128 + number
    assert sys.modules.pop("swallows_all").loaded
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_second_signal_during_an_import_ends_at_once(tmp_path: Path) -> None:
    twice = "import signal\nfor _ in range(2):\n    signal.raise_signal(signal.SIGTERM)\n"
    (tmp_path / "stopped_twice.py").write_text(twice + "print('loaded')\n")
    code = "from nl.core.stopped import terminable\nwith terminable():\n    import stopped_twice\n"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "stopped\n")
