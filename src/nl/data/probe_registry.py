"""Probes by name, and the sizes that each comes in. Floor 1."""

from __future__ import annotations

from pathlib import Path

import yaml

from nl.config import ConfigError, table
from nl.config.hydra import config_dir
from nl.config.registry import unknown
from nl.data.probe import ProbeConfig

PRESETS = ("smoke", "small", "paper")
"""Seconds on a CPU; a laptop or one GPU; published sizes, shipped as configurations only."""
PLACE = "experiment/probes"


def probes() -> dict[str, type[ProbeConfig]]:
    """Every registered probe by kind."""
    return {k: cls for k, cls in table("stream").items() if issubclass(cls, ProbeConfig)}


def presets() -> dict[str, tuple[str, tuple[str, ...]]]:
    """By task: the kind of its stream, and the presets that have a file of it."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for preset in PRESETS:
        for path in sorted((config_dir() / PLACE / preset).glob("*.yaml")):
            kind, before = found.get(path.stem, (kind_in(path), ()))
            found[path.stem] = (kind, (*before, preset))
    return found


def kind_in(path: Path) -> str:
    """The stream that an experiment chooses.

    Raises:
        ConfigError: it chooses none.
    """
    for entry in yaml.safe_load(path.read_text())["defaults"]:
        if isinstance(entry, dict) and "override /stream" in entry:
            return str(entry["override /stream"])
    raise ConfigError(f"{path}: its defaults choose no stream; add 'override /stream: <kind>'.")


def task(name: str) -> tuple[str, tuple[str, ...]]:
    """The kind behind a task and its presets; a kind without a file of its name has none.

    Raises:
        ConfigError: no such task; the nearest one is named.
    """
    known = presets()
    if name in known:
        return known[name]
    if name in probes():
        return name, ()
    raise ConfigError(unknown("probe", name, {*known, *probes()}))
