"""One split of a data set of the hub as JSON lines, in its own columns. Floor 1."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from nl.config import ConfigError
from nl.data.files import write_atomic
from nl.data.prep.extras import needed


def save_split(
    dataset: str, subset: str | None, split: str, path: Path, columns: Sequence[str] = ()
) -> int:
    """Write ``split`` of ``dataset`` to ``path``; the number of its rows.

    Args:
        dataset: identifier on the hub.
        subset: its configuration; None: the only one.
        split: which rows.
        path: the file to write.
        columns: that the data set has to have.

    Raises:
        ConfigError: it cannot be reached, does not exist, or has other columns.
    """
    datasets = needed("datasets", "data")
    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        rows = datasets.load_dataset(dataset, subset, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{dataset}: split {split} is neither cached nor reachable ({reason}); run this on a "
            f"machine with a network and copy {path.name} to {path.parent}."
        ) from error
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        has = ", ".join(rows.column_names)
        raise ConfigError(f"{dataset}: has no column {missing[0]!r}, only {has}; it has changed.")
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(path, "".join(lines).encode())
    return len(rows)
