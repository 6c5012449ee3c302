"""A model as a Hugging Face directory: config.json, model.safetensors. Floor 4.

No package is needed to write or read it.

``nl.hf`` has the classes that read it in transformers. The two small Python files let
``trust_remote_code`` find them where ``nl`` is installed but not imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nl.config import ConfigError, unstructure
from nl.config.run import RunConfig
from nl.dist.export import TOKENIZERS, digest
from nl.dist.serial import load_tensors, plain_name, save_tensors
from nl.run.files import fsync_dir, fsync_file

MODEL_TYPE = "nl"
PREFIX = "model."
"""Where the language model is inside the class of ``nl.hf``."""
ARCHITECTURE = "NLForCausalLM"
REMOTE = {
    "configuration_nl.py": "from nl.hf import NLConfig\n\n__all__ = ['NLConfig']\n",
    "modeling_nl.py": f"from nl.hf import {ARCHITECTURE}\n\n__all__ = ['{ARCHITECTURE}']\n",
}
AUTO_MAP = {
    "AutoConfig": "configuration_nl.NLConfig",
    "AutoModelForCausalLM": f"modeling_nl.{ARCHITECTURE}",
}


def is_hf_folder(path: Path) -> bool:
    """Whether ``path`` is a directory with a config.json of a model of ``nl``."""
    try:
        found = json.loads((path / "config.json").read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("model_type") == MODEL_TYPE


def hf_config(run: RunConfig, sha256: str, tokens: Mapping[str, int]) -> dict[str, Any]:
    """The contents of config.json.

    Args:
        run: the configuration that builds the model.
        sha256: of its tensors.
        tokens: ``bos_token_id`` and so on, where they are known.
    """
    model: Any = run.model
    limit = {"max_position_embeddings": model.max_positions}
    return {
        "architectures": [ARCHITECTURE],
        "auto_map": AUTO_MAP,
        "model_type": MODEL_TYPE,
        "vocab_size": model.vocab_size,
        "hidden_size": model.dim,
        "num_hidden_layers": model.layers,
        "dtype": "float32",
        "tie_word_embeddings": False,
        **(limit if model.positions == "learned" else {}),
        "write": True,
        "nl_config": unstructure(run),
        "nl_sha256": sha256,
        **tokens,
    }


def check_language(run: RunConfig) -> None:
    """Refuse a model that is no language model.

    Raises:
        ConfigError: naming its kind.
    """
    if run.model.kind != "language":
        raise ConfigError(
            f"model: {run.model.kind}; a Hugging Face directory holds a model=language."
        )


def write_hf_folder(
    model: Mapping[str, Tensor],
    run: RunConfig,
    folder: Path,
    tokens: Mapping[str, int] | None = None,
    tokenizers: Iterable[str] = (),
) -> None:
    """Write ``folder``, which must not hold a model yet.

    Args:
        model: state_dict of the language model.
        run: the configuration that builds it.
        folder: the directory; made if it is not there.
        tokens: ids of special tokens for config.json.
        tokenizers: SHA-256 of the tokenizer it was trained with, where that is known.

    Raises:
        ConfigError: the model is no language model.
    """
    check_language(run)
    named = {plain_name(k): t for k, t in model.items()}
    config = hf_config(run, digest(named), tokens or {})
    config[f"nl_{TOKENIZERS}"] = list(tokenizers)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".tmp-model.safetensors"
    try:
        save_tensors(temporary, {PREFIX + k: t for k, t in named.items()}, {"format": "pt"})
        fsync_file(temporary)
        for name, text in REMOTE.items():
            (folder / name).write_text(text)
        generation = {**(tokens or {}), "_from_model_config": True}
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
        temporary.replace(folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    finally:
        temporary.unlink(missing_ok=True)
    fsync_dir(folder)


def read_hf_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration (plain data) and model tensors of a directory of ``nl`` or transformers.

    Raises:
        ConfigError: something is missing, or the tensors are not those of the digest.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text())
    inner = config.get("nl_config")
    if not isinstance(inner, dict):
        raise ConfigError(f"{path}: nl_config is missing; export the model again.")
    named = read_tensors(folder)
    strange = [name for name in named if not name.startswith(PREFIX)]
    if strange:
        raise ConfigError(f"{folder}: {strange[0]} is no tensor of a model of nl.")
    named = {name.removeprefix(PREFIX): tensor for name, tensor in named.items()}
    wanted = config.get("nl_sha256")
    if wanted is not None and digest(named) != wanted:
        raise ConfigError(
            f"{folder}: the tensors are not those of nl_sha256 in config.json. If they were "
            "trained on purpose, take that line out."
        )
    return inner, named


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a Hugging Face directory, in one file or several.

    Raises:
        ConfigError: no safetensors there, or an index that names something else.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return load_tensors(single)[0]
    if not index.is_file():
        pickled = any(folder.glob("*.bin"))
        raise ConfigError(
            f"{folder}: neither model.safetensors nor {index.name} is there."
            + (" Pickles (.bin) are not read: save it again as safetensors." if pickled else "")
        )
    try:
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ConfigError(f"{index}: not an index of safetensors files ({error}).") from error
    named: dict[str, Tensor] = {}
    for name in files:
        if Path(str(name)).name != name or not str(name).endswith(".safetensors"):
            raise ConfigError(f"{index}: names {name!r}, which is no file beside it.")
        named |= load_tensors(folder / str(name))[0]
    return named
