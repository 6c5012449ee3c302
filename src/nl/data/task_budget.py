"""Whether the data of stream=tasks is enough to read and to score its tasks. Floor 1."""

from __future__ import annotations

from typing import Any

from nl.config import ConfigError
from nl.data.manifest import read_manifest
from nl.data.tasks import TaskPlan, TaskStreamConfig


def check_budget(stream: Any) -> None:
    """Refuse tasks that together need more windows of a domain than it has, ``passes`` times.

    Raises:
        ConfigError: with what is needed, what there is and the ``passes`` that would do.
    """
    if not isinstance(stream, TaskStreamConfig):
        return
    names = list(dict.fromkeys(name for task in stream.table for name in task.domains))
    train, size = read_manifest(stream.path).splits["train"], stream.seq_len
    found = [sum((shard.tokens - 1) // size for shard in train[name].shards) for name in names]
    if not all(found):
        return  # opening it says so
    needed = TaskPlan(stream, names, found, seed=0).per_cycle.tolist()
    for name, windows, have in zip(names, needed, found, strict=True):
        if windows > stream.passes * have:
            key = "tokens" if stream.tokens else "steps"
            again = "" if stream.passes == 1 else f", or {stream.passes * have} in all passes"
            raise ConfigError(
                f"stream.{key}: {getattr(stream, key)}; the tasks together read {windows} windows "
                f"of domain {name!r}, which has {have}{again}: lower it, take fewer tasks "
                f"(stream.tasks), or let text come again with stream.passes={-(-windows // have)}."
            )


def check_held_out(stream: Any, split: str, key: str) -> None:
    """Refuse tasks of whose held-out text no window can be made: they could not be scored.

    Args:
        stream: a stream; those that are not of tasks pass.
        split: val or test.
        key: what reads it.

    Raises:
        ConfigError: naming the first such task, its domain, and the longest row that would do.
    """
    if not isinstance(stream, TaskStreamConfig):
        return
    manifest, size = read_manifest(stream.path), stream.seq_len
    for task in stream.distinct:
        for name in task.domains:
            domain = manifest.splits.get(split, {}).get(name)
            shards = () if domain is None else domain.shards
            most = max((shard.tokens for shard in shards), default=0)
            if most > size:
                continue
            raise ConfigError(
                f"stream.seq_len: {size}; {key} scores {task.name} on split {split!r} of domain "
                f"{name!r}, which has no window of {size} + 1 tokens there ({len(shards)} shards, "
                f"the longest of {most} tokens): "
                + (f"set stream.seq_len={most - 1} or less, " if most > 1 else "")
                + "hold out more text of it (held_out of scripts/data/process_mixture.py), or "
                "leave the domain out (stream.domains)."
            )
