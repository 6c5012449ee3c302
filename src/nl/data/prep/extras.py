"""Packages of the optional extras: imported where they are needed, or one line. Floor 1."""

from __future__ import annotations

import importlib
from typing import Any

from nl.config import ConfigError


def needed(package: str, extra: str) -> Any:
    """Import ``package``, which the extra ``extra`` brings.

    Raises:
        ConfigError: it is not installed; the line says how to install it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"{package.partition('.')[0]}: not installed; install it with: uv sync --extra {extra}"
        ) from error
