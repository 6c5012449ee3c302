"""Sharded tensors in a checkpoint: PyTorch's DCP files under our manifest. Floor 4.

Every rank writes what it holds into ``__<rank>_0.distcp``; ``.metadata`` says which file holds
which part of which tensor, so any number of ranks, or one process alone, can read them. PyTorch
reads that file with a bare pickle; here nothing but the types of such a file is ever built.
``nl.dist.dcp_write`` writes both.
"""

from __future__ import annotations

import contextlib
import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from nl.config import ConfigError
from nl.dist.layout import INDEX

LARGEST_INDEX = 1 << 30
"""Bytes: a larger index is refused unread."""
_META = "torch.distributed.checkpoint.metadata"
ALLOWED = {
    (_META, "Metadata"),
    (_META, "MetadataIndex"),
    (_META, "StorageMeta"),
    (_META, "TensorStorageMetadata"),
    (_META, "ChunkStorageMetadata"),
    (_META, "TensorProperties"),
    (_META, "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
}
"""What an index may be made of, besides ``torch`` dtypes and plain values."""


class Entry(NamedTuple):
    """Shape and dtype of a stored tensor."""

    shape: torch.Size
    dtype: torch.dtype


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """A type of the allow-list, or a refusal; nothing is imported for a name."""
        if (module, name) in ALLOWED or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint")


def read_index(folder: Path) -> Metadata:
    """The index of a checkpoint's tensors.

    Raises:
        ConfigError: unreadable, of other types than an index has, or naming files elsewhere.
    """
    path = folder / INDEX
    try:
        if path.stat().st_size > LARGEST_INDEX:
            raise ConfigError(f"{path}: larger than {LARGEST_INDEX} bytes; not an index of nl.")
        with path.open("rb") as file:
            found = _Unpickler(file).load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: refused: {error}; nothing in it was run.") from error
    except (ImportError, IndexError, KeyError, OSError, RuntimeError) as error:
        raise ConfigError(f"{path}: not readable ({error}).") from error
    entries = getattr(found, "state_dict_metadata", None)
    files = getattr(found, "storage_data", None)
    if not isinstance(found, Metadata) or not isinstance(entries, dict):
        raise ConfigError(f"{path}: not an index of tensors.")
    if not all(isinstance(entry, TensorStorageMetadata) for entry in entries.values()):
        raise ConfigError(f"{path}: holds more than tensors; such entries are never read.")
    if not isinstance(files, dict) or not all(_inside(info, folder) for info in files.values()):
        raise ConfigError(f"{path}: names files that are not in {folder}.")
    return found


def _inside(info: Any, folder: Path) -> bool:
    name = getattr(info, "relative_path", None)
    if not isinstance(name, str) or Path(name).name != name:
        return False
    # Transformed streams name the code that reads them: never written, never followed.
    return not getattr(info, "transform_descriptors", None) and (folder / name).is_file()


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index, through the allow-list."""
        found = read_index(Path(self.path))
        found.storage_meta = StorageMeta(load_id=self.load_id)
        return found


def read_sharded(folder: Path, into: dict[str, Tensor]) -> None:
    """Fill tensors in place, each rank its own part (not collective).

    Raises:
        ConfigError: a tensor is missing, has another shape, or a file cannot be read.
    """
    stored = entries(folder)
    for name, tensor in into.items():
        if name not in stored or stored[name].shape != tensor.shape:
            held = tuple(stored[name].shape) if name in stored else "nothing"
            raise ConfigError(
                f"{folder}: {name} is {held}, wanted {tuple(tensor.shape)}; made for another model."
            )
    if not into:
        return
    try:
        with _quiet():
            load(dict(into), storage_reader=_Reader(str(folder)), no_dist=True)
    except CheckpointException as error:
        raise ConfigError(f"{folder}: {_causes(error)}") from error


def entries(folder: Path) -> dict[str, Entry]:
    """Shape and dtype of every stored tensor by name."""
    found: Mapping[str, Any] = read_index(folder).state_dict_metadata
    return {name: Entry(e.size, e.properties.dtype) for name, e in found.items()}


def read_all(folder: Path, prefix: str) -> dict[str, Tensor]:
    """Whole tensors on the host whose names begin with ``prefix``, which is cut off."""
    found = {
        name: torch.empty(entry.shape, dtype=entry.dtype)
        for name, entry in entries(folder).items()
        if name.startswith(prefix)
    }
    read_sharded(folder, found)
    return {name.removeprefix(prefix): tensor for name, tensor in found.items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the remark that one process reads or writes alone: that is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _causes(error: CheckpointException) -> str:
    return "; ".join(f"rank {rank}: {cause[0]}" for rank, cause in error.failures.items())
