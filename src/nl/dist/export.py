"""The portable export: one safetensors file that knows its configuration. Floor 4."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nl.config import ConfigError, unstructure
from nl.config.run import RunConfig
from nl.dist.serial import load_tensors, plain_name, save_tensors
from nl.run.files import fsync_dir, fsync_file

FORMAT = "nl"
TOKENIZERS = "tokenizers"
"""Key of the SHA-256 of the tokenizer whose ids the model knows; several where it has two forms."""


def digest(named: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes of tensors, in order of name."""
    total = hashlib.sha256()
    for name in sorted(named):
        tensor = named[name].detach().to("cpu").contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def export(
    model: Mapping[str, Tensor], run: RunConfig, path: Path, tokenizers: Iterable[str] = ()
) -> None:
    """Write model weights and configuration to ``path`` (.safetensors), whole or not at all.

    Args:
        model: its state_dict.
        run: the configuration that builds it.
        path: the file.
        tokenizers: SHA-256 of the tokenizer it was trained with, where that is known.

    Raises:
        ConfigError: ``path`` does not end in .safetensors.
    """
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path}: an export is a .safetensors file.")
    named = {plain_name(k): t for k, t in model.items()}
    facts = {
        "format": FORMAT,
        "nl_config": json.dumps(unstructure(run)),
        "sha256": digest(named),
        TOKENIZERS: " ".join(tokenizers),
    }
    temporary = path.with_name(f".tmp-{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        save_tensors(temporary, named, facts)
        fsync_file(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_dir(path.parent)


def load_export(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration (plain data) and model tensors of an exported file.

    Raises:
        ConfigError: not such a file, or its contents do not match its digest.
    """
    named, facts = load_tensors(path)
    if facts.get("format") != FORMAT or "nl_config" not in facts:
        raise ConfigError(f"{path}: not an export of nl (its metadata has no nl_config).")
    if digest(named) != facts.get("sha256"):
        raise ConfigError(f"{path}: sha256 differs from the recorded one; the file was changed.")
    try:
        config = json.loads(facts["nl_config"])
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: nl_config is not valid JSON ({error}).") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: nl_config is not a mapping.")
    return config, named
