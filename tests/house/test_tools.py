"""What the tools see: no tool's own list of folders to leave out hides a file of ours.

pytest and ruff leave out every folder named ``dist`` or ``build`` unless they are told otherwise,
and a folder that is left out passes.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

import pytest
from mypy.find_sources import create_source_list
from mypy.options import Options

from tests.house.test_files import ROOT, tracked


def not_collected(
    paths: Iterable[Path], folders: list[str], files: list[str], root: Path = ROOT
) -> list[str]:
    """Test files that pytest passes over: a folder on its list, or a name it does not look for."""
    found = []
    for path in sorted(paths):
        local = path.relative_to(root)
        hidden = any(fnmatch(part, one) for part in local.parts[:-1] for one in folders)
        if hidden or not any(fnmatch(local.name, one) for one in files):
            found.append(str(local))
    return found


def python_files(under: str = "") -> set[Path]:
    return {p for p in tracked(ROOT) if p.suffix == ".py" and p.is_relative_to(ROOT / under)}


def test_pytest_collects_every_test_file(pytestconfig: pytest.Config) -> None:
    tests = {p for p in python_files("tests") if "def test_" in p.read_text()}
    folders, files = pytestconfig.getini("norecursedirs"), pytestconfig.getini("python_files")
    assert ROOT / "tests" / "unit" / "dist" / "test_fsdp.py" in tests
    assert not_collected(tests, folders, files) == []


def test_a_hidden_test_is_noticed(tmp_path: Path) -> None:
    names = ["tests/a/test_b.py", "tests/dist/test_c.py", "tests/a/check_d.py"]
    found = not_collected([tmp_path / n for n in names], ["dist", ".*"], ["test_*.py"], tmp_path)
    assert found == ["tests/a/check_d.py", "tests/dist/test_c.py"]


def test_ruff_reads_every_python_file() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "ruff", "check", ".", "--show-files"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    seen = {Path(line) for line in listed.stdout.splitlines()}
    assert len(seen) > 500
    assert {p for p in python_files() if not p.is_relative_to(ROOT / "reports")} - seen == set()


PARTS = ("src", "scripts", "benchmarks")
"""One call of mypy each: scripts and benchmarks have files of the same name."""


@pytest.mark.parametrize("part", PARTS)
def test_mypy_reads_every_source(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    seen = {Path(one.path).resolve() for one in create_source_list([part], Options()) if one.path}
    assert python_files(part) - seen == set()
    assert seen
    for told in (".ci/run", ".pre-commit-config.yaml", "CONTRIBUTING.md"):
        assert f"uv run mypy {part}" in (ROOT / told).read_text()
