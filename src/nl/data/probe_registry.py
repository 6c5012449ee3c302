"""Probes by name, and the sizes that each comes in. Floor 1."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nl.config import ConfigError, structure, table
from nl.config.groups import StreamConfig
from nl.config.hydra import config_dir
from nl.config.registry import unknown
from nl.data.probe import ProbeConfig

PRESETS = ("smoke", "small", "medium", "paper")
"""Seconds on a CPU, to see that it runs; 480 runs of the core suite in an hour of one core; a
laptop or one GPU; published sizes, shipped as configurations only."""
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


@functools.cache
def kind_in(path: Path) -> str:
    """The stream that an experiment chooses.

    Raises:
        ConfigError: it chooses none.
    """
    for entry in yaml.safe_load(path.read_text())["defaults"]:
        if isinstance(entry, dict) and "override /stream" in entry:
            return str(entry["override /stream"])
    raise ConfigError(f"{path}: its defaults choose no stream; add 'override /stream: <kind>'.")


def load(name: str, preset: str, changes: Mapping[str, Any] | None = None) -> ProbeConfig:
    """A task as a preset has it; a kind without a file has its defaults.

    Args:
        name: of the task.
        preset: one of ``PRESETS``.
        changes: fields of the stream.

    Raises:
        ConfigError: no such task, preset or field.
    """
    kind, sizes = task(name)
    if preset not in PRESETS:
        raise ConfigError(unknown("--preset", preset, PRESETS))
    fields: dict[str, Any] = {}
    if preset in sizes:
        place = config_dir() / PLACE
        for path in (place / f"{preset}.yaml", place / preset / f"{name}.yaml"):
            fields |= yaml.safe_load(path.read_text()).get("stream", {})
    plain = {key: 0 if value == "${seed}" else value for key, value in fields.items()}
    found = structure(StreamConfig, {"kind": kind, **plain, **(changes or {})}, name)
    assert isinstance(found, ProbeConfig)
    return found


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
