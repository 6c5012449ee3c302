"""The data commands: help without torch, one line and exit code 2 on bad input."""

from __future__ import annotations

import logging
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
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


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
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


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
    ],
)
def test_bad_input(tmp_path: Path, name: str, flags: list[str], message: str) -> None:
    result = call(name, *(flag.replace("{tmp}", str(tmp_path)) for flag in flags))
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def complain() -> None:
        raise ConfigError("path: 3; must be 4.")

    def interrupt() -> None:
        raise KeyboardInterrupt

    assert run(complain) == 2
    assert run(interrupt) == 130
    assert run(lambda: logging.getLogger("nl.data").info("progress")) == 0
    errors = capsys.readouterr().err.splitlines()
    assert errors[0] == "error: path: 3; must be 4."
    assert errors[-1] == "progress"
    with pytest.raises(ZeroDivisionError):
        run(lambda: print(1 / 0))
