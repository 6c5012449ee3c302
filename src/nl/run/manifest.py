"""Digests of a directory's files: no tensor format detects a flipped bit, so we do. Floor 0."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from nl.run.files import RunError, fsync_dir, fsync_file, read_json, write_json

MANIFEST = "manifest.json"
SCHEMA = 1


def sha256(path: Path) -> str:
    """Hex digest of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path) -> None:
    """Fsync every file of ``folder``, then write ``manifest.json`` over them, last."""
    files: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        fsync_file(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    fsync_dir(folder)
    write_json(folder / MANIFEST, {"schema": SCHEMA, "files": files})


def verify(folder: Path) -> None:
    """Check every file that the manifest lists: name, size, digest.

    Raises:
        RunError: naming the first file that is missing, cut, changed or not a plain file.
    """
    manifest = read_json(folder / MANIFEST)
    if not (folder / MANIFEST).read_bytes().endswith(b"\n"):
        raise RunError(f"{folder / MANIFEST}: does not end with a line end; truncated?")
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not files:
        raise RunError(f"{folder / MANIFEST}: lists no files; the checkpoint is unusable.")
    if manifest.get("schema") != SCHEMA:
        raise RunError(
            f"{folder / MANIFEST}: schema {manifest.get('schema')!r}; this version reads {SCHEMA}."
        )
    for name, facts in files.items():
        _verify_file(folder / name, name, facts)


def _verify_file(path: Path, name: str, facts: Any) -> None:
    if Path(name).name != name or name in (".", ".."):
        raise RunError(f"{path.parent / MANIFEST}: {name!r} is not a plain file name.")
    if path.is_symlink() or not path.is_file():
        raise RunError(f"{path}: missing; the checkpoint is unusable.")
    if not isinstance(facts, dict) or path.stat().st_size != facts.get("bytes"):
        want = facts.get("bytes") if isinstance(facts, dict) else None
        raise RunError(f"{path}: {path.stat().st_size} bytes, manifest says {want}; truncated?")
    if sha256(path) != facts.get("sha256"):
        raise RunError(f"{path}: sha256 differs from the manifest; the file was changed.")
