"""Pages under docs that a command writes. Floor 8."""

from __future__ import annotations

from pathlib import Path

from nl.config import ConfigError
from nl.config.hydra import config_dir
from nl.run.files import write_atomic


def docs_folder() -> Path:
    """Where the pages of the checkout lie.

    Raises:
        ConfigError: this is an installed package without docs.
    """
    folder = config_dir().parent / "docs"
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; --write-docs works in a checkout only.")
    return folder


def write_page(name: str, text: str) -> Path:
    """Write ``docs/<name>``."""
    path = docs_folder() / name
    write_atomic(path, text)
    return path
