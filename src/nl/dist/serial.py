"""Values to tensors plus JSON and back, without pickle. Floor 4."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from nl.config import ConfigError

OBJECTIVE = "objective."
"""Prefix of parameters that an objective owns beside its model."""
TIED = "nl_tied"


def plain_name(name: str) -> str:
    """A state_dict key without the prefixes of wrappers (torch.compile, DDP)."""
    return ".".join(part for part in name.split(".") if part not in ("_orig_mod", "module"))


def model_tensors(objective: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An objective's state_dict with the model's tensors under their plain names.

    ``model.x`` becomes ``x``; what the objective owns itself is kept as ``objective.x``.
    """
    named = {}
    for key, tensor in objective.items():
        name = plain_name(key)
        inside = name.startswith("model.")
        named[name.removeprefix("model.") if inside else OBJECTIVE + name] = tensor
    return named


def objective_name(name: str) -> str:
    """The inverse of ``model_tensors`` for one name."""
    return name.removeprefix(OBJECTIVE) if name.startswith(OBJECTIVE) else f"model.{name}"


def host_tensors(named: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Copies on the host that nothing else changes; what is one and the same is copied once.

    Returns:
        (name -> copy, name of a tied tensor -> the name it is stored under).
    """
    stored: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in named.items():
        identity = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and identity in seen:
            tied[name] = seen[identity]
            continue
        seen[identity] = name
        stored[name] = tensor.detach().to("cpu", copy=True).contiguous()
    return stored, tied


def write_tensors(
    path: Path,
    stored: dict[str, Tensor],
    tied: Mapping[str, str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write what ``host_tensors`` returned as a safetensors file.

    Raises:
        OSError: the disk is full or refuses.
    """
    facts = dict(metadata or {}) | ({TIED: json.dumps(tied)} if tied else {})
    path.touch()
    mode = path.stat().st_mode  # safetensors leaves a file that nobody else may read
    try:
        safetensors.torch.save_file(stored, path, metadata=facts or None)
    except safetensors.SafetensorError as error:
        raise OSError(f"{path}: cannot be written ({error})") from error
    path.chmod(mode)


def save_tensors(
    path: Path, named: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a safetensors file; tensors that are one and the same are stored once.

    Raises:
        OSError: the disk is full or refuses.
    """
    write_tensors(path, *host_tensors(named), metadata)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (tied names filled in) and metadata of a safetensors file.

    The tensors lie in memory as those of a run that was never interrupted do: aligned.

    Raises:
        ConfigError: missing, truncated or not a safetensors file.
    """
    named: dict[str, Tensor] = {}
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            for name in file.keys():  # noqa: SIM118 - not a mapping
                # In the file a tensor may begin at any byte; sums over it then round otherwise.
                named[name] = file.get_tensor(name).clone()
        tied = json.loads(metadata.pop(TIED, "{}"))
    except (OSError, safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a readable safetensors file ({error}).") from error
    for name, source in tied.items():
        if source not in named:
            raise ConfigError(f"{path}: {name} is tied to {source}, which is not in the file.")
        named[name] = named[source]
    return named, metadata


def read_metadata(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file, no tensor being read.

    Raises:
        ConfigError: missing, truncated or not a safetensors file.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{path}: not a readable safetensors file ({error}).") from error


def pack(value: Any, named: dict[str, Tensor], path: str = "") -> Any:
    """A JSON skeleton of nested dicts, lists, tuples and scalars; tensors go to ``named``.

    Raises:
        TypeError: a value of another type (the message says where).
    """
    if isinstance(value, Tensor):
        named[path] = value
        return {"tensor": path}
    if isinstance(value, Mapping):
        pairs = [[key, pack(v, named, f"{path}.{key}")] for key, v in value.items()]
        if any(not isinstance(key, (str, int)) for key, _ in pairs):
            raise TypeError(f"{path}: keys must be str or int")
        return {"dict": pairs}
    if isinstance(value, (list, tuple)):
        items = [pack(v, named, f"{path}.{i}") for i, v in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise TypeError(f"{path}: cannot store {type(value).__name__} without pickle")


def unpack(skeleton: Any, named: Mapping[str, Tensor]) -> Any:
    """Rebuild what ``pack`` took apart."""
    if "tensor" in skeleton:
        return named[skeleton["tensor"]]
    if "dict" in skeleton:
        return {key: unpack(item, named) for key, item in skeleton["dict"]}
    if "list" in skeleton:
        return [unpack(item, named) for item in skeleton["list"]]
    if "tuple" in skeleton:
        return tuple(unpack(item, named) for item in skeleton["tuple"])
    return skeleton["value"]


def rng_tensors() -> dict[str, Tensor]:
    """The state of the global generators of torch (CPU and CUDA), NumPy and Python."""
    version, words, gauss = random.getstate()
    legacy = np.random.get_state(legacy=False)
    assert isinstance(legacy, dict)
    inner = legacy["state"]
    named = {
        "rng.torch": torch.get_rng_state(),
        "rng.python": torch.tensor([version, *words], dtype=torch.int64),
        "rng.python_gauss": _optional(gauss),
        "rng.numpy": torch.tensor([*inner["key"].tolist(), inner["pos"]], dtype=torch.int64),
        "rng.numpy_gauss": _optional(legacy["gauss"] if legacy["has_gauss"] else None),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        named["rng.cuda"] = torch.cuda.get_rng_state()
    return named


def _optional(value: float | None) -> Tensor:
    return torch.tensor([] if value is None else [value], dtype=torch.float64)


def restore_rng(named: Mapping[str, Tensor]) -> None:
    """Set the global generators to what ``rng_tensors`` returned."""
    torch.set_rng_state(named["rng.torch"])
    version, *words = named["rng.python"].tolist()
    gauss = named["rng.python_gauss"].tolist()
    random.setstate((version, tuple(words), gauss[0] if gauss else None))
    *key, position = named["rng.numpy"].tolist()
    gauss = named["rng.numpy_gauss"].tolist()
    np.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": {"key": np.array(key, dtype=np.uint32), "pos": position},
            "has_gauss": len(gauss),
            "gauss": gauss[0] if gauss else 0.0,
        }
    )
    if "rng.cuda" in named and torch.cuda.is_available():
        torch.cuda.set_rng_state(named["rng.cuda"])
