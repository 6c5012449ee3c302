"""What a benchmark ran on, for its JSON. Floor 8."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

from nl.run.provenance import git, versions

FLAGS = ("avx", "fma", "amx", "sve", "neon", "asimd", "f16c")


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Vector instruction sets of the first processor; empty where the system does not say."""
    if not path.is_file():
        return []
    for line in path.read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return sorted(word for word in value.split() if word.startswith(FLAGS))
    return []


def machine(threads: int, device: str) -> dict[str, Any]:
    """Commit, versions, processor and clock, as plain data."""
    return {
        "git": git(),
        "versions": versions(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu_flags": cpu_flags(),
        "threads": threads,
        "device": device,
        "clock": "wall" if device == "cuda" else "process",
    }
