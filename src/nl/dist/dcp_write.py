"""Writing DCP files without collectives: each rank its parts, then one process the index. Floor 4.

PyTorch's own saver plans and finishes by collectives, which a thread beside training must not use.
The files are the same: ``torch.distributed.checkpoint.load`` reads them.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.tensor import DTensor

from nl.dist.layout import INDEX, PART, PARTS
from nl.run.files import read_json, write_json

VERSION = "1.0.0"


class Piece(NamedTuple):
    """Some rows of a tensor, on the host.

    Attributes:
        name: of the tensor.
        shape: of all of it.
        begin: first row; 0 where all of it is here.
        rows: what is here.
    """

    name: str
    shape: tuple[int, ...]
    begin: int
    rows: Tensor


def piece_of(name: str, tensor: Tensor, first: bool) -> Piece | None:
    """A copy of what this rank has to write of a tensor; None: others write it.

    Args:
        name: of the tensor.
        tensor: cut by rows, or whole.
        first: whether this rank writes what every rank has whole.
    """
    tensor = tensor.detach()
    shape, begin, rows = tuple(tensor.shape), 0, tensor
    if isinstance(tensor, DTensor):
        rows, mesh = tensor.to_local(), tensor.device_mesh
        begin = mesh.get_local_rank() * -(-shape[0] // mesh.size())
        if not len(rows):
            return None
    elif not first:
        return None
    return Piece(name, shape, begin, rows.to("cpu", copy=True).contiguous())


def write_part(folder: Path, rank: int, pieces: Iterable[Piece], facts: Any) -> None:
    """Write the pieces of one rank, and what ``write_index`` has to know of them.

    Args:
        folder: shared by all ranks.
        rank: of the writer.
        pieces: with different places in their tensors on different ranks.
        facts: plain data that ``write_index`` gives back.

    Raises:
        OSError: the disk is full or refuses.
    """
    file, written = f"__{rank}_0.distcp", []
    try:
        with (folder / file).open("wb") as stream:
            for piece in pieces:
                start = stream.tell()
                torch.save(piece.rows, stream)
                written.append(
                    {
                        "name": piece.name,
                        "shape": piece.shape,
                        "begin": piece.begin,
                        "rows": tuple(piece.rows.shape),
                        "dtype": str(piece.rows.dtype).removeprefix("torch."),
                        "offset": start,
                        "length": stream.tell() - start,
                    }
                )
            stream.flush()
            os.fsync(stream.fileno())
    except RuntimeError as error:  # what torch makes of a full disk
        raise OSError(f"{folder / file}: cannot be written ({error})") from error
    write_json(folder / PART.format(rank), {"file": file, "pieces": written, "facts": facts})


def write_index(folder: Path) -> list[Any]:
    """Join what all ranks have written into ``.metadata`` (one process, after all of them).

    Returns:
        The facts of the ranks, in order; empty where no rank has written parts.
    """
    parts = sorted(folder.glob(PARTS))
    if not parts:
        return []
    tensors: dict[str, TensorStorageMetadata] = {}
    places: dict[MetadataIndex, _StorageInfo] = {}
    facts = []
    for part in parts:
        told: dict[str, Any] = read_json(part)
        facts.append(told["facts"])
        for piece in told["pieces"]:
            _note(tensors, places, told["file"], piece)
    planned = {name: (name,) for name in tensors}
    index = Metadata(dict(tensors), planned, places, None, VERSION)
    with (folder / INDEX).open("wb") as stream:
        pickle.dump(index, stream)
    for part in parts:
        part.unlink()
    return facts


def _note(
    tensors: dict[str, TensorStorageMetadata],
    places: dict[MetadataIndex, _StorageInfo],
    file: str,
    piece: dict[str, Any],
) -> None:
    name, shape = piece["name"], torch.Size(piece["shape"])
    if name not in tensors:
        properties = TensorProperties(dtype=getattr(torch, piece["dtype"]))
        tensors[name] = TensorStorageMetadata(properties, shape, [])
    offsets = torch.Size([piece["begin"], *(0 for _ in shape[1:])][: len(shape)])
    chunks = tensors[name].chunks
    places[MetadataIndex(name, offsets, len(chunks))] = _StorageInfo(
        file, piece["offset"], piece["length"]
    )
    chunks.append(ChunkStorageMetadata(offsets, torch.Size(piece["rows"])))
