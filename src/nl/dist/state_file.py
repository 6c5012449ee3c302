"""A State as one file: safetensors with its skeleton, digest checked, no pickle. Floor 4."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nl.config import ConfigError, writing
from nl.core.state import flatten, to, unflatten
from nl.dist.serial import load_tensors, save_tensors
from nl.run.files import fsync_dir, fsync_file

FORMAT = "nl-state-1"


class SavedState(NamedTuple):
    """What a state file holds: the State and plain facts about where it comes from."""

    state: Any
    facts: dict[str, Any]


def save_state(path: str | Path, state: Any, facts: Mapping[str, Any] | None = None) -> Path:
    """Write a State; the file is either whole or as it was before.

    Args:
        path: file ending in ``.safetensors``; its folder is made.
        state: any State; tensors of any device.
        facts: JSON data beside it.

    Raises:
        ConfigError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path}: a state file ends in .safetensors; choose such a name.")
    named, skeleton = flatten(state)
    named = {name: tensor.to("cpu") for name, tensor in named.items()}
    plain = {"skeleton": skeleton, "facts": dict(facts or {})}
    text = json.dumps(plain, sort_keys=True)
    metadata = {"format": FORMAT, "state": text, "digest": _digest(named, text)}
    temporary = path.with_name(f".tmp-{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(temporary, named, metadata)
            fsync_file(temporary)
            temporary.replace(path)
            fsync_dir(path.parent)
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):
            temporary.unlink()
    return path


def read_state(path: str | Path, device: torch.device | str = "cpu") -> SavedState:
    """The State and facts of a file that ``save_state`` wrote.

    Raises:
        ConfigError: missing, damaged, or no state file.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; write one with nl stream --save.")
    named, metadata = load_tensors(path)
    if metadata.get("format") != FORMAT:
        raise ConfigError(f"{path}: not a state file; give one that nl stream --save wrote.")
    text = metadata.get("state", "")
    if _digest(named, text) != metadata.get("digest"):
        raise ConfigError(f"{path}: its digest does not match (the file was changed or damaged).")
    plain = json.loads(text)
    try:
        state = unflatten(named, plain["skeleton"])
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}; it was written by another version.") from error
    return SavedState(to(state, device), plain["facts"])


def load_state(path: str | Path, device: torch.device | str = "cpu") -> Any:
    """The State of a file that ``save_state`` wrote. Raises: see ``read_state``."""
    return read_state(path, device).state


def _digest(named: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 over names, types, shapes and bytes of the tensors, and over the text."""
    found = hashlib.sha256(text.encode())
    for name in sorted(named):
        tensor = named[name].contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
