"""Compare requirements.lock with what uv resolves from pyproject.toml, or write it.

Example: python scripts/checks/lock_check.py --write
"""

import argparse
import difflib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAME = "requirements.lock"
EXPORT = (
    "uv export --frozen --all-extras --all-groups --no-emit-project --no-header --quiet"
    " --format requirements.txt"
)


def export(root: Path) -> str:
    """The pinned, hashed requirements of the checkout's uv.lock, every extra and group in it."""
    done = subprocess.run(EXPORT.split(), cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: uv export failed: {done.stderr.strip()}")
    return done.stdout


def relock(root: Path) -> str:
    """The same after resolving from nothing in a temporary copy (asks the package registry)."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(root / name, copy / name)
        subprocess.run(["uv", "lock", "--quiet"], cwd=copy, check=True)
        return export(copy)


def difference(committed: str, exported: str) -> list[str]:
    """A unified diff; empty where both agree."""
    before, after = committed.splitlines(), exported.splitlines()
    return list(difflib.unified_diff(before, after, NAME, "exported", n=0, lineterm=""))


def main() -> int:
    """Compare or write; 1 if the files differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"write {NAME}")
    parser.add_argument("--relock", action="store_true", help="resolve anew, not from uv.lock")
    args = parser.parse_args()
    exported = relock(ROOT) if args.relock else export(ROOT)
    path = ROOT / NAME
    if args.write:
        path.write_text(exported)
        print(f"{path.name}: {exported.count('--hash=')} digests written")
        return 0
    changes = difference(path.read_text() if path.is_file() else "", exported)
    if changes:
        print("\n".join(changes[:40]))
        print(f"{NAME} is stale: run python scripts/checks/lock_check.py --write")
        return 1
    print(f"{NAME} agrees")
    return 0


if __name__ == "__main__":
    sys.exit(main())
