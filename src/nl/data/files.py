"""Files that are whole or absent: digests and atomic replacement. Floor 1."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nl.config import ConfigError, writing

BLOCK = 1 << 20


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in 1 MiB blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sha256_text(text: str) -> str:
    """Hex SHA-256 of the UTF-8 bytes of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def check_writable(path: Path | None) -> None:
    """Complain before the work, not after it, that a file cannot be written; None: no file.

    Raises:
        ConfigError: something else has that name, or its directory cannot be written.
    """
    if path is None:
        return
    _check_regular(path)
    with staging(path.parent):
        pass


def _check_regular(path: Path) -> None:
    """Refuse what must not be replaced by a file: directories, devices, pipes."""
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path}: is no regular file; choose another name.")


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Replace ``path`` by ``data`` in one step: readers see the old file or the new one.

    Raises:
        ConfigError: the directory cannot be written, or the name is that of no regular file.
    """
    _check_regular(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise


def write_json(path: Path, data: Any) -> None:
    """Write plain data as indented JSON, atomically."""
    write_atomic(path, (json.dumps(data, indent=2, sort_keys=False) + "\n").encode())


def read_json(path: Path, recipe: str) -> Any:
    """Read a JSON file; ``recipe`` says how a missing one is built.

    Raises:
        ConfigError: missing, unreadable or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        place = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise ConfigError(f"{path}: no such file{place}. {recipe}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not readable JSON ({error}). {recipe}") from error


@contextlib.contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """A scratch directory inside ``parent`` (same file system), removed on the way out.

    Raises:
        ConfigError: ``parent`` cannot be written.
    """
    with writing(parent):
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".tmp-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move_into(source: Path, target: Path) -> None:
    """Put the directory ``source`` where ``target`` is, dropping what was there."""
    if target.exists():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)
