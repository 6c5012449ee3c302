"""Labels of rows: names of those that are numbers, and which rows a source wants. Floor 1."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nl.config import ConfigError
from nl.data.prep.extras import needed
from nl.data.prep.sources_files import LocalFile
from nl.data.prep.sources_hub import Hub
from nl.data.prep.sources_spec import Source

INFO = "dataset_info.json"
HF_KEY = b"huggingface"
"""Key of a table's metadata under which ``datasets`` keeps what its columns mean."""


def label_names(source: Source, origin: Any) -> tuple[str, ...]:
    """Names of the numbered labels of one unit of a source, from 0; empty where nothing says.

    They are, first found first taken: those of the source, of the hub's data set, of the table's
    own metadata, of a ``dataset_info.json`` beside the file.

    Raises:
        ConfigError: a file that cannot be read.
    """
    if source.label_names or source.label_column is None:
        return tuple(name.strip() for name in source.label_names)
    found: Sequence[Any] = ()
    if isinstance(origin, Hub):
        found = origin.class_names(source.label_column)
    elif isinstance(origin, tuple):
        found = next((n for n in (_of_file(f, source.label_column) for f in origin) if n), ())
    return tuple(str(name).strip() for name in found)


def name_of(label: Any, names: Sequence[str]) -> str | None:
    """A label as a name without blanks around it; None for what is no label."""
    if isinstance(label, str):
        return label.strip() or None
    if isinstance(label, bool) or not isinstance(label, int):
        return None
    return names[label] if 0 <= label < len(names) else str(label)


def _of_file(file: LocalFile, column: str) -> Sequence[Any]:
    info: Any = None
    try:
        if file.format == "parquet":
            meta = needed("pyarrow.parquet", "data").read_schema(file.path).metadata or {}
            info = json.loads(meta[HF_KEY])["info"] if HF_KEY in meta else None
        side = Path(file.path).with_name(INFO)
        if info is None and side.is_file():
            info = json.loads(side.read_bytes())
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{file.path}: cannot say what its labels mean ({error}).") from error
    features = info.get("features", {}) if isinstance(info, dict) else {}
    row = features.get(column, {}) if isinstance(features, dict) else {}
    names = row.get("names", ()) if isinstance(row, dict) else ()
    if isinstance(names, dict):  # {"0": "cs.CV", ...}, as the cards of the hub have it
        names = [names[key] for key in sorted(names, key=int)]
    return names if isinstance(names, list) else ()
