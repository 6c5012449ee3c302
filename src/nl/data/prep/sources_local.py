"""Local files of a source: paths, patterns, and the split they belong to. Floor 1."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from nl.config import ConfigError
from nl.data.prep.sources_files import FORMATS, LocalFile, format_of
from nl.data.prep.sources_spec import EVERY, Source

LOG = logging.getLogger("nl.data")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
SIDE = ("dataset_info.json", "state.json", "dataset_dict.json", "manifest.json", "stage.json")
"""Files that describe a directory of data."""
ORDER = ("train", "validation", "test")
"""Where a split is looked for when another one may stand in."""
WORD = re.compile(r"[A-Za-z]+")


def find_local(paths: Sequence[str], split: str, source: Source) -> tuple[LocalFile, ...] | None:
    """The files of a source in order of name; None where a hub data set has no local mirror.

    Raises:
        ConfigError: local files were asked for and are not there, or not of this split.
    """
    forced = source.dataset if source.dataset in FORMATS else None
    found = [file for path in paths for file in _below(path, forced)]
    if found:
        return _of_split(found, split, source)
    if forced is not None:
        raise ConfigError(
            f"{source.name}: no {forced} files at {', '.join(paths)} "
            "(data_files, --data-files: a file, a directory or a pattern)."
        )
    return None


def _below(path: str, forced: str | None) -> list[LocalFile]:
    """Files of one file name, directory or pattern."""
    if Path(path).is_file():
        return _named([Path(path)], Path(path).parent, forced)
    if Path(path).is_dir():
        root = Path(path)
        inside = [p for p in root.rglob("*") if p.is_file() and _is_data(p, root)]
        return _named(inside, root, forced)
    fixed = Path(path)
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    matches = [Path(p) for p in glob.glob(path, recursive=True)]  # noqa: PTH207 - any base
    return _named([p for p in matches if p.is_file()], fixed, forced)


def _is_data(path: Path, root: Path) -> bool:
    """Whether a file in a directory is meant: not hidden, of a known ending."""
    parts = path.relative_to(root).parts
    return not any(p.startswith((".", "_")) for p in parts) and format_of(path) is not None


def _named(paths: list[Path], root: Path, forced: str | None) -> list[LocalFile]:
    """With their formats: the one asked for, or the one that the name says.

    Where several files are found, those of another format than the one asked for are left out, and
    so are texts (a README) beside rows and the JSON that describes a directory.
    """
    kinds = {path: format_of(path) for path in paths if path.name not in SIDE}
    if len(kinds) > 1:
        rows = {kind for kind in kinds.values() if kind not in ("text", None)}
        wanted = {forced} if forced in kinds.values() else rows if forced is None and rows else None
        kept = {p: kind for p, kind in kinds.items() if wanted is None or kind in wanted}
        if len(kept) < len(kinds):
            LOG.info("%s: %d files of other formats left out", root, len(kinds) - len(kept))
        kinds = kept
    return [
        LocalFile(path, path.relative_to(root).as_posix(), forced or kinds[path] or "text")
        for path in sorted(kinds)
    ]


def split_in(name: str) -> str | None:
    """The split that a file's name (path) tells, if it does: ``data/train-00000.parquet``."""
    words = [w.lower() for w in WORD.findall(name)]
    return next((SPLIT_NAMES[w] for w in words if w in SPLIT_NAMES), None)


def _of_split(files: list[LocalFile], split: str, source: Source) -> tuple[LocalFile, ...]:
    """Files of one split where every file's name tells its split; else all of them."""
    marks = {file: split_in(file.name) for file in files}
    if split == EVERY:
        unsaid = [file.name for file, mark in marks.items() if mark is None]
        if unsaid:
            raise ConfigError(
                f"{source.name}: split: all, but {unsaid[0]} does not say its split; name files or "
                "folders train, validation and test, or set split to one."
            )
        return tuple(files)
    known = {mark for mark in marks.values() if mark is not None}
    if len(files) == 1 or None in marks.values():
        return tuple(files)
    wanted = SPLIT_NAMES.get(split, split)
    chosen = choose_split(wanted, sorted(known), source)
    return tuple(file for file in files if marks[file] == chosen)


def choose_split(wanted: str, known: Sequence[str], source: Source) -> str:
    """The split to read.

    Raises:
        ConfigError: it does not exist and no other may stand in.
    """
    if wanted in known:
        return wanted
    order = (*ORDER, *known) if source.split_fallback == "any" else (source.split_fallback,)
    instead = next((s for s in order if s in known), None)
    if instead is not None:
        LOG.warning("%s: no split %r; reading %r instead", source.name, wanted, instead)
        return instead
    raise ConfigError(
        f"{source.name}: {source.dataset} has no split {wanted!r}. Known: {', '.join(known)}. "
        "Name one of them (split, --split), or set split_fallback to one, or to any."
    )
