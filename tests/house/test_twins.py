"""Every fast operation has its naive twin beside it, and a test that names it."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUFFIX = "_reference"


def functions(path: Path) -> list[str]:
    """Names of the public functions of a module."""
    return [
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    ]


def twin_violations(ops: Path, tests: str) -> list[str]:
    found = []
    for path in sorted(ops.glob("*.py")):
        known = functions(path)
        twins = [name for name in known if name.endswith(SUFFIX)]
        if known and not twins:
            found.append(f"{path.name}: no <operation>{SUFFIX}")
        for twin in twins:
            fast = twin.removesuffix(SUFFIX)
            if fast not in known:
                found.append(f"{path.name}: {twin} has no {fast}")
            if twin not in tests:
                found.append(f"{path.name}: no test names {twin}")
    return found


def all_tests() -> str:
    return "\n".join(
        p.read_text() for p in (ROOT / "tests").rglob("test_*.py") if p.parent.name != "house"
    )


def test_every_operation_has_a_tested_twin() -> None:
    assert twin_violations(ROOT / "src" / "nl" / "ops", all_tests()) == []


def test_twin_check_finds_planted_violations(tmp_path: Path) -> None:
    (tmp_path / "alone.py").write_text("def scan(x): ...\n")
    (tmp_path / "lost.py").write_text("def scan_reference(x): ...\n")
    (tmp_path / "fine.py").write_text("def g(x): ...\ndef g_reference(x): ...\ndef h(): ...\n")
    assert twin_violations(tmp_path, "scan_reference") == [
        "alone.py: no <operation>_reference",
        "fine.py: no test names g_reference",
        "lost.py: scan_reference has no scan",
    ]
