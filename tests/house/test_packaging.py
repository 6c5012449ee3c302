"""Pins and package: requirements.lock is what uv resolves, hashed, without hosts."""

from __future__ import annotations

import importlib.util
import re
import shutil
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements.lock"


def lock_check() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "lock_check", ROOT / "scripts" / "checks" / "lock_check.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def unpinned(text: str) -> list[str]:
    """Requirements without an exact version or without a hash, and lines that name a host."""
    blocks = re.split(r"\n(?=\S)", text.strip())
    bad = [
        b.splitlines()[0]
        for b in blocks
        if not re.match(r"[a-z0-9._-]+==\S+", b) or "--hash=sha256:" not in b
    ]
    return bad + [line for line in text.splitlines() if "://" in line]


def test_lock_is_pinned_hashed_and_names_no_host() -> None:
    assert unpinned(LOCK.read_text()) == []


def test_pin_check_finds_planted_violations() -> None:
    good = "numpy==2.0 \\\n    --hash=sha256:00\n    # via nl"
    bad = "torch>=2 \\\n    --hash=sha256:00\nrich==13.0\n--index-url https://x.y"
    assert unpinned(good) == []
    found = ["torch>=2 \\", "rich==13.0", "--index-url https://x.y", "--index-url https://x.y"]
    assert unpinned(f"{good}\n{bad}") == found


def direct_dependencies() -> set[str]:
    """Names that pyproject.toml asks for, extras and development tools included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [
        *project["project"]["dependencies"],
        *(r for part in project["project"]["optional-dependencies"].values() for r in part),
        *project["dependency-groups"]["dev"],
    ]
    names = {re.match(r"[A-Za-z0-9._-]+", r)[0].lower() for r in wanted}  # type: ignore[index]
    return names - {"nl"}


def pins(text: str) -> dict[str, set[str]]:
    """Name -> versions of every pinned requirement (one per Python version where they differ)."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9._-]+)==(\S+)", text, flags=re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not on PATH")
@pytest.mark.skipif(not (ROOT / "uv.lock").is_file(), reason="no uv.lock: not set up with uv")
def test_lock_agrees_with_uv() -> None:
    # A registry that learns of an old release late moves indirect pins: the lock job of CI
    # compares those, to the digest; here they must be the same packages.
    committed, resolved = pins(LOCK.read_text()), pins(lock_check().export(ROOT))
    assert committed.keys() == resolved.keys()
    direct = direct_dependencies()
    assert {n: v for n, v in committed.items() if n in direct} == {
        n: v for n, v in resolved.items() if n in direct
    }


def test_a_stale_lock_is_noticed() -> None:
    text = LOCK.read_text()
    assert lock_check().difference(text, text) == []
    assert lock_check().difference(text, text.replace("numpy==", "numpy==0", 1)) != []
    assert pins(text)["numpy"] != pins(text.replace("numpy==", "numpy==0", 1))["numpy"]


def test_every_direct_dependency_is_in_the_lock() -> None:
    assert direct_dependencies() - pins(LOCK.read_text()).keys() == set()


def test_the_wheel_carries_configs_and_templates() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["src/nl"]
    assert wheel["force-include"] == {"configs": "nl/configs"}
    templates = ROOT / "src" / "nl" / "report" / "templates"
    pages = {"run.html.j2", "tables.html.j2", "macros.html.j2", "dashboard.html.j2"}
    pages |= {"dashboard.css", "dashboard.js", "run.js"}
    assert {p.name for p in templates.iterdir()} == pages | {"page.css", "page.js"}
