"""Ctrl-C while a command still imports: one line and code 130, no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
STOPS = """
import runpy, signal, sys

class Stops:
    def find_spec(self, name, *_):
        if name == {name!r}:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Stops())
sys.argv = {argv!r}
{start}
"""
COMMAND = "from nl.cli import command; command()"
LAUNCHERS = ("train", "train_dist", "train_fsdp", "train_deepspeed")


def stopped_at(name: str, argv: list[str], start: str, before: str = "") -> tuple[int, str]:
    code = before + STOPS.format(name=name, argv=argv, start=start)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("name", ["hydra", "torch", "nl.objectives.distill"])
def test_a_launcher_that_imports(launcher: str, name: str) -> None:
    file = str(ROOT / f"{launcher}.py")
    start = f"runpy.run_path({file!r}, run_name='__main__')"
    assert stopped_at(name, [file, "--config-name", "pilot_smoke"], start) == (130, "stopped\n")


@pytest.mark.parametrize("name", ["nl.config", "nl.cli_probes", "torch"])
def test_the_command_that_imports(name: str) -> None:
    argv = ["nl", "train", "--config-name", "pilot_smoke"]
    assert stopped_at(name, argv, COMMAND) == (130, "stopped\n")


@pytest.mark.parametrize("handler", ["signal.SIG_IGN", "signal.default_int_handler"])
def test_what_is_ignored_stays_ignored_and_the_handler_comes_back(handler: str) -> None:
    before = f"import signal; signal.signal(signal.SIGINT, {handler})"
    start = "from nl.core.stopped import importing\nwith importing():\n    pass\n"
    check = f"assert signal.getsignal(signal.SIGINT) is {handler}"
    assert stopped_at("none", ["x"], start + check, before) == (0, "")
