"""What the files of a sharded checkpoint are called. Floor 4."""

from __future__ import annotations

from pathlib import Path

INDEX = ".metadata"
"""Says which file holds which part of which tensor."""
PART, PARTS = "part_{:05d}.json", "part_*.json"
"""What a rank has written; gone once the index is there."""


def is_sharded(folder: Path) -> bool:
    """Whether model and optimizer of a checkpoint are DCP files."""
    return (folder / INDEX).is_file()
