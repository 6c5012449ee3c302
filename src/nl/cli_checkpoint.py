"""``nl checkpoint``: verify, list and convert saved steps. Floor 8."""

from __future__ import annotations

import argparse
import json
import shutil
import uuid
from pathlib import Path
from typing import Any

from nl.config import ConfigError
from nl.run.directory import RunDir
from nl.run.discover import checkpoints, is_checkpoint, step_of
from nl.run.files import RunError, fsync_dir, read_json, writable_folder
from nl.run.manifest import MANIFEST, verify, write_manifest

_HELD = {
    "single": ("model.safetensors", "optim.safetensors", "optim.json"),
    "dcp": (".metadata", "optim.json"),
}


def run(options: argparse.Namespace) -> int:
    """The chosen action; 2 where a checkpoint is damaged."""
    if options.action == "convert":
        return convert(Path(options.path), Path(options.target), options.to)
    facts = [describe(folder) for folder in found(Path(options.path))]
    damaged = 0
    if options.action == "verify":
        for row in facts:
            row["complaint"] = complaint(Path(row["path"]))
        damaged = sum(row["complaint"] is not None for row in facts)
    if options.json:
        print(json.dumps(facts, indent=2))
    else:
        for row in facts:
            print(line(row))
    return 2 if damaged else 0


def found(path: Path) -> list[Path]:
    """The checkpoints of a run, or the one that is named.

    Raises:
        ConfigError: there is none.
    """
    if not path.is_dir():
        raise ConfigError(f"{path}: no such directory; give a run or a checkpoint.")
    if step_of(path) is not None or is_checkpoint(path):
        return [path]
    if not RunDir.holds_run(path):
        raise ConfigError(f"{path}: neither a run nor a checkpoint directory.")
    folders = checkpoints(path)
    if not folders:
        raise ConfigError(f"{path}: has no checkpoint yet.")
    return folders


def describe(folder: Path) -> dict[str, Any]:
    """What a checkpoint is, by its small files; None for what they do not say."""
    facts: dict[str, Any] = {"path": str(folder), "format": format_of(folder)}
    try:
        trainer = read_json(folder / "trainer.json")
    except RunError:
        trainer = {}
    trainer = trainer if isinstance(trainer, dict) else {}
    facts |= {"step": step_of(folder), "world": trainer.get("world")}
    facts["tokens"] = trainer.get("tokens")
    facts["bytes"] = sum(p.stat().st_size for p in folder.iterdir() if p.is_file())
    facts["marks"] = [
        name
        for name in ("latest", "best")
        if (folder.parent / name).is_file()
        and (folder.parent / name).read_text().strip() == folder.name
    ]
    return facts


def format_of(folder: Path) -> str | None:
    """``single`` or ``dcp`` by the files that are there; None: neither is whole."""
    for name, files in _HELD.items():
        if all((folder / file).is_file() for file in files):
            return name
    return None


def line(row: dict[str, Any]) -> str:
    """A row for people to read."""
    size = f"{row['bytes'] / 2**20:.1f} MiB"
    ranks = "?" if row["world"] is None else str(row["world"])
    text = (
        f"{Path(row['path']).name}  {row['format'] or 'incomplete':10}  ranks {ranks}  "
        f"tokens {row['tokens'] if row['tokens'] is not None else '?'}  {size}"
    )
    text += "".join(f"  {mark}" for mark in row["marks"])
    if "complaint" in row:
        text += "  ok" if row["complaint"] is None else f"\n  damaged: {row['complaint']}"
    return text


def complaint(folder: Path) -> str | None:
    """What is wrong with a checkpoint: digests first, then whether its parts fit together."""
    from nl.dist.checkpoint import trainer_facts
    from nl.dist.saved import read_saved

    try:
        verify(folder)
        trainer_facts(folder)
        saved = read_saved(folder)
    except (RunError, ConfigError) as error:
        return str(error)
    strange = sorted(saved.slots.keys() - set(saved.optimizer.names))
    if strange:
        return f"{folder / 'optim.json'}: does not know {', '.join(strange[:5])}."
    return None


def convert(source: Path, target: Path, wanted: str) -> int:
    """Write ``source`` as ``target`` in the format ``wanted``, whole or not at all.

    Raises:
        ConfigError: damaged, there already, or the target's name is of another step.
    """
    from nl.dist.checkpoint import reading, trainer_facts
    from nl.dist.saved import read_saved, write_dcp, write_plain

    if not is_checkpoint(source):
        raise ConfigError(f"{source}: not a checkpoint; give <run>/checkpoints/step_<n>.")
    if target.exists():
        raise ConfigError(f"{target}: exists already; choose another place.")
    if step_of(target) != step_of(source):
        raise ConfigError(f"{target}: has to be called {source.name}, as training looks for it.")
    writable_folder(target.parent, "target")
    scratch = target.with_name(f".tmp-{target.name}-{uuid.uuid4().hex[:8]}")
    try:
        scratch.mkdir(parents=True)
        with reading(source):
            trainer_facts(source)
            write = write_plain if wanted == "single" else write_dcp
            write(scratch, read_saved(source))
            for path in source.iterdir():
                if path.name.startswith("state") or path.name in ("trainer.json", "config.yaml"):
                    shutil.copyfile(path, scratch / path.name)
        write_manifest(scratch)
        scratch.rename(target)
        fsync_dir(target.parent)
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written ({error}).") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"{target}: {wanted}, {len(read_json(target / MANIFEST)['files'])} files")
    return 0
