"""Where a run came from: code, versions, command line; no host names, no home paths. Floor 0."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "nl",
    "torch",
    "numpy",
    "hydra-core",
    "omegaconf",
    "safetensors",
    "sentencepiece",
    "lm-eval",
    "deepspeed",
    "wandb",
)


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide numbers."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git(*args: str) -> str | None:
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *args],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def git() -> dict[str, Any]:
    """Commit, whether the tree differs from it, and a digest of the difference."""
    sha = _git("rev-parse", "HEAD")
    if sha is None:
        return {"sha": None, "dirty": None, "diff_sha256": None}
    diff = _git("diff", "HEAD") or ""
    digest = hashlib.sha256(diff.encode()).hexdigest() if diff else None
    return {"sha": sha.strip(), "dirty": bool(diff), "diff_sha256": digest}


def provenance() -> dict[str, Any]:
    """All facts, as plain data for ``meta.json``."""
    return {
        "git": git(),
        "versions": versions(),
        "python": platform.python_version(),
        "platform": {
            "system": platform.system(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
        },
        "argv": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }
