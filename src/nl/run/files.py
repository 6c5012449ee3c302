"""Files that are either whole or absent: write beside, fsync, rename. Floor 0."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 64 * 2**20
PROBE = 4096
"""Bytes that a folder must take to count as writable."""


class RunError(ValueError):
    """A run directory or one of its files cannot be used; the text says which and what to do."""


def fsync_dir(folder: Path) -> None:
    """Make renames and new names in ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_file(path: Path) -> None:
    """Make the contents of ``path`` durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def finite(data: Any) -> Any:
    """Plain data with None for NaN and infinity, which JSON does not have, and text for keys."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {str(key): finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return data


def write_atomic(path: Path, data: str | bytes, *, durable: bool = True) -> None:
    """Replace ``path`` by ``data`` in one step: readers see the old or the new file, never a part.

    Args:
        path: file to write; its directory exists.
        data: text (UTF-8) or bytes.
        durable: also survive a power cut (two fsyncs); switch it off for heartbeats.
    """
    raw = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".tmp-{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as file:
            file.write(raw)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    if durable:
        fsync_dir(path.parent)


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write ``value`` as indented JSON, atomically; non-finite numbers are a programming error."""
    text = json.dumps(value, indent=1, allow_nan=False)
    write_atomic(path, text + "\n", durable=durable)


def read_json(path: Path) -> Any:
    """Read one JSON file.

    Raises:
        RunError: missing, larger than 64 MiB, or not JSON; the message names the file.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise RunError(f"{path}: larger than {MAX_JSON_BYTES} bytes; not a file of a run.")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"{path}: not valid JSON ({error}).") from error


def writable_folder(path: Path, name: str) -> None:
    """Check, leaving nothing behind, that ``path`` is or can become a writable directory.

    Raises:
        RunError: naming ``name`` (the dotted key), the path and what stands in the way.
    """
    folder = path.absolute()
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
    except OSError as error:  # a name that no file system takes
        raise RunError(f"{name}: {path}; {error.strerror}. Choose another place.") from error
    if not folder.is_dir():
        raise RunError(f"{name}: {path}; {folder} is not a directory. Choose another place.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RunError(f"{name}: {path}; no permission to write in {folder}. Choose another place.")
    try:  # a disk that is full, or a file system that takes no files, says so only when written to
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(PROBE))
            file.flush()
    except OSError as error:
        raise RunError(
            f"{name}: {path}; {folder} takes no files ({error.strerror}). Choose another place."
        ) from error
