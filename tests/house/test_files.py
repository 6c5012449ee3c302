"""Tracked files: sizes, names, no registry host, no path of one machine."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CAP = 500_000
BANNED_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}
# Spelled apart so that this file does not match itself.
HOSTS = ("pypi" + ".org", "python" + "hosted.org", "download.pytorch" + ".org", "anaconda" + ".org")
MACHINE = re.compile(r"(?<![\w./-])/" + r"(?:work|root|home|Users)/\w")
BINARY = {".png", ".jpg", ".pt", ".model", ".bin", ".npy", ".safetensors"}


def tracked(root: Path) -> list[Path]:
    """Files under version control, or all files where there is no repository."""
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return [p for p in root.rglob("*") if p.is_file()]
    return [p for name in done.stdout.split("\0") if name and (p := root / name).is_file()]


def file_violations(root: Path, paths: Iterable[Path]) -> list[str]:
    found = []
    for path in sorted(paths):
        local = path.relative_to(root)
        if path.stat().st_size > CAP:
            found.append(f"{local}: {path.stat().st_size} bytes > {CAP}")
        stems = {Path(part).stem for part in local.parts}
        found += [f"{local}: {name!r} says nothing; name the noun" for name in stems & BANNED_NAMES]
        if path.suffix not in BINARY:
            found += text_violations(str(local), path.read_text(errors="replace"))
    return found


def text_violations(local: str, text: str) -> list[str]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        found += [f"{local}:{number} names {host}" for host in HOSTS if host in line]
        if match := MACHINE.search(line):
            found.append(f"{local}:{number} names a path of one machine ({match.group()}...)")
    return found


def ascii_violations(root: Path, paths: Iterable[Path]) -> list[str]:
    return [
        f"{p.relative_to(root)} is not ASCII"
        for p in sorted(paths)
        if p.suffix in {".py", ".md", ".yaml", ".toml", ".sh"} and not p.read_bytes().isascii()
    ]


def test_tracked_files() -> None:
    assert file_violations(ROOT, tracked(ROOT)) == []


def test_sources_are_ascii() -> None:
    assert ascii_violations(ROOT, tracked(ROOT)) == []


def test_file_check_finds_planted_violations(tmp_path: Path) -> None:
    (tmp_path / "big.txt").write_text("x" * (CAP + 1))
    (tmp_path / "utils.py").write_text("")
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "a.py").write_text("DATA = '/" + "root/data'\n")
    (tmp_path / "pins.txt").write_text("--index-url https://" + HOSTS[0] + "/simple\n")
    (tmp_path / "fine.py").write_text("URL = 'https://x.y/" + "work/z'; a = b/" + "work/c\n")
    assert file_violations(tmp_path, [p for p in tmp_path.rglob("*") if p.is_file()]) == [
        f"big.txt: {CAP + 1} bytes > {CAP}",
        "common/a.py: 'common' says nothing; name the noun",
        "common/a.py:1 names a path of one machine (/" + "root/d...)",
        f"pins.txt:1 names {HOSTS[0]}",
        "utils.py: 'utils' says nothing; name the noun",
    ]


def test_ascii_check_finds_a_planted_violation(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("na\u00efve\n", encoding="utf-8")
    assert ascii_violations(tmp_path, [tmp_path / "a.md"]) == ["a.md is not ASCII"]
