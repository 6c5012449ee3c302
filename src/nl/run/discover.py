"""Find runs and checkpoints on disk by what they hold, not by what they are called. Floor 0."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from nl.run.directory import RunDir
from nl.run.files import RunError, read_json
from nl.run.manifest import MANIFEST, verify

_STEP = re.compile(r"step_(\d{6,})")


def step_of(folder: Path) -> int | None:
    """The step of a checkpoint directory name, None for any other name."""
    found = _STEP.fullmatch(folder.name)
    return int(found[1]) if found else None


def checkpoints(run: Path) -> list[Path]:
    """Checkpoint directories of a run, oldest first (not yet verified)."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if step_of(p) is not None and p.is_dir()]
    return sorted(found, key=lambda p: step_of(p) or 0)


def newest_valid(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files match their digests.

    Returns:
        (folder or None, one complaint per newer checkpoint that was refused).
    """
    complaints: list[str] = []
    for folder in reversed(checkpoints(run)):
        try:
            verify(folder)
        except RunError as error:
            complaints.append(str(error))
            continue
        return folder, complaints
    return None, complaints


def run_of(checkpoint: Path) -> Path | None:
    """The run directory that a checkpoint directory belongs to, None if it stands alone."""
    folder = checkpoint.resolve()
    run = folder.parent.parent
    inside = folder.parent.name == "checkpoints" and RunDir.holds_run(run)
    return run if inside else None


def is_checkpoint(path: Path) -> bool:
    """Whether ``path`` looks like a checkpoint directory."""
    held = ("model.safetensors", ".metadata")  # whole, or in DCP files
    return (path / MANIFEST).is_file() and any((path / name).is_file() for name in held)


def _walk(root: Path) -> Iterator[Path]:
    for folder, names, _ in os.walk(root):
        if RunDir.holds_run(Path(folder)):
            names.clear()
            yield Path(folder)
        else:
            names[:] = sorted(n for n in names if not n.startswith("."))


def find_runs(root: Path) -> list[RunDir]:
    """All run directories at or below ``root``, oldest first."""
    runs = [RunDir(path) for path in _walk(root)]
    return sorted(runs, key=lambda run: (_started(run), str(run.path)))


def _started(run: RunDir) -> float:
    try:
        meta = read_json(run.meta)
    except RunError:
        return 0.0
    started = meta.get("started") if isinstance(meta, dict) else None
    return float(started) if isinstance(started, (int, float)) else 0.0


Rehash = Callable[[Path], str | None]
"""``config.yaml`` -> the hash it has with today's keys; None where it cannot be read."""


def newest_run(root: Path, config_hash: str, rehash: Rehash) -> RunDir | None:
    """The newest run of this configuration hash at or below ``root``."""
    return next((run for run in reversed(find_runs(root)) if is_of(run, config_hash, rehash)), None)


def is_of(run: RunDir, config_hash: str, rehash: Rehash) -> bool:
    """Whether a run is of the configuration with this hash.

    It may have been made before a key existed: then its ``config.yaml`` says, read with today's.
    """
    return written_hash(run) == config_hash or rehash(run.config) == config_hash


def written_hash(run: RunDir) -> str | None:
    """The hash that a run was begun with."""
    try:
        meta = read_json(run.meta)
    except RunError:
        return None
    return meta.get("config_hash") if isinstance(meta, dict) else None
