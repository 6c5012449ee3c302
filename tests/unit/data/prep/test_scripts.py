"""The data commands: help without torch, one line and exit code 2 on bad input."""

from __future__ import annotations

import logging
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nl.config import ConfigError
from nl.data.prep.command import run

SCRIPTS = Path(__file__).resolve().parents[4] / "scripts" / "data"
NAMES = [p.stem for p in sorted(SCRIPTS.glob("*.py"))]


def call(name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("name", NAMES)
def test_help_has_an_example_and_defaults(name: str) -> None:
    result = call(name, "--help")
    assert result.returncode == 0, result.stderr
    assert f"Example: python scripts/data/{name}.py" in result.stdout
    assert "default" in result.stdout
    assert len((SCRIPTS / f"{name}.py").read_text().splitlines()) <= 65


def test_scripts_do_not_wait_for_torch() -> None:
    imports = "; ".join(f"runpy.run_path('{SCRIPTS / name}.py')" for name in NAMES)
    code = f"import runpy, sys; {imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=300, check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("build_stdlib", ["--limit-mb", "-3", "--output-dir", "{tmp}/c"], "--limit-mb: -3.0"),
        ("train_tokenizer", ["--corpus", "{tmp}/none"], "none/manifest.json: no such file"),
        ("shard_corpus", ["--corpus", "{tmp}/none"], "none/manifest.json: no such file"),
        ("filter_corpus", ["--output-path", "{tmp}/a.txt"], "a.txt; a line of a text file cannot"),
        ("filter_corpus", ["--output-path", "{tmp}/a"], "--corpus, --dataset: name one"),
        ("dedup_corpus", ["--corpus=x", "--output-path={tmp}/a", "--ngram=0"], "--ngram: 0"),
        ("inspect_shards", ["{tmp}/none"], "none/manifest.json: no such file"),
        ("inspect_shards", ["x", "--samples", "-1"], "--samples: -1; must be >= 0"),
        ("import_shards", ["--format=npy", "--output-dir=x", "wiki"], "give SPLIT/DOMAIN=PATH"),
        ("analyze_components", ["x", "--json", "/dev/full"], "/dev/full: is no regular file"),
        ("validate_mixture", ["--manifest=x", "--output=/proc/x"], "/proc: cannot be written"),
        ("check_tokenizer", ["--tokenizer-path=bytes", "--output={tmp}"], "is no regular file"),
        ("shard_corpus", ["--corpus=x", "--output-dir=x", "--log-file=/proc/x"], "/proc: cannot"),
        ("process_mixture", ["{configs}/data/stdlib.yaml", "--log-file=/proc/x"], "/proc: cannot"),
    ],
)
def test_bad_input(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    flags: list[str],
    message: str,
) -> None:
    places = {"{tmp}": str(tmp_path), "{configs}": str(SCRIPTS.parents[1] / "configs")}
    for mark, place in places.items():
        flags = [flag.replace(mark, place) for flag in flags]
    script = str(SCRIPTS / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [script, *flags])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(script, run_name="__main__")
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert message in said.err
    assert not list(tmp_path.iterdir())


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def complain() -> None:
        raise ConfigError("path: 3; must be 4.")

    def interrupt() -> None:
        raise KeyboardInterrupt

    assert run(complain) == 2
    before = signal.getsignal(signal.SIGTERM)
    assert run(interrupt) == 130
    assert run(lambda: signal.raise_signal(signal.SIGTERM)) == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert run(lambda: logging.getLogger("nl.data").info("progress")) == 0
    errors = capsys.readouterr().err.splitlines()
    assert errors[0] == "error: path: 3; must be 4."
    assert errors[1:3] == ["stopped; the same command goes on from what is finished"] * 2
    assert errors[-1] == "progress"
    with pytest.raises(ZeroDivisionError):
        run(lambda: print(1 / 0))
