"""Ctrl-C and SIGTERM while a command still imports: one line and their code, no traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nl.core import stopped

ROOT = Path(__file__).resolve().parents[3]
STOPS = """
import runpy, signal, sys

class Stops:
    def find_spec(self, name, *_):
        if name == {name!r}:
            signal.raise_signal({number})

# A shell starts what it puts into the background with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Stops())
sys.argv = {argv!r}
{start}
"""
COMMAND = "from nl.cli import command; command()"
LAUNCHERS = ("train", "train_dist", "train_fsdp", "train_deepspeed")


def stopped_at(
    name: str, argv: list[str], start: str, number: int = signal.SIGINT
) -> tuple[int, str]:
    code = STOPS.format(name=name, argv=argv, start=start, number=int(number))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
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
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_that_imports(name: str, number: int) -> None:
    argv = ["nl", "train", "--config-name", "pilot_smoke"]
    assert stopped_at(name, argv, COMMAND, number) == (128 + number, "stopped\n")


def test_a_launcher_hears_sigterm() -> None:
    file = str(ROOT / "train.py")
    start = f"runpy.run_path({file!r}, run_name='__main__')"
    assert stopped_at("torch", [file], start, signal.SIGTERM) == (143, "stopped\n")


@pytest.mark.parametrize("listens", ["importing", "terminable"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_what_is_ignored_or_somebody_elses_stays_so(listens: str, name: str) -> None:
    number, begun = signal.Signals[name], signal.getsignal(signal.Signals[name])
    heard: list[int] = []
    try:
        for handler in (signal.SIG_IGN, lambda number, _: heard.append(number)):
            signal.signal(number, handler)
            with getattr(stopped, listens)():
                signal.raise_signal(number)
                assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, begun)
    assert heard == [number]


def test_the_command_that_reads_its_arguments() -> None:
    """After its imports, before it does anything."""
    begins = "import nl.cli, signal\nparser = nl.cli.build_parser\n"
    stops = "nl.cli.build_parser = lambda: signal.raise_signal(signal.SIGINT) or parser()\n"
    assert stopped_at("none", ["nl", "doctor"], f"{begins}{stops}nl.cli.command()") == (
        130,
        "stopped\n",
    )
