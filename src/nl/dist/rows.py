"""A State carried at one world size as that of another: rows go where the data goes. Floor 4.

A rank reads an equal, contiguous share of the rows of every batch, and holds the State of those
rows. The files of all old ranks are therefore one State, cut by rows, and can be cut anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nl.config import ConfigError, require
from nl.core.state import map_tensors, tensors, unflatten
from nl.dist.serial import load_tensors


def read_rows(folder: Path, file: Callable[[int], str], *, old: int, rank: int, world: int) -> Any:
    """This rank's rows of a State that ``old`` ranks saved; None where none was carried.

    Args:
        folder: the checkpoint.
        file: name of a rank's file.
        old: ranks that saved.
        rank: of this process.
        world: ranks now.

    Raises:
        ConfigError: the rows cannot be shared by ``world`` ranks, or the files are not of one
            State.
    """
    first, skeleton = _read(folder / file(0))
    if not tensors(first):
        return first
    rows = len(tensors(first)[0])
    total = rows * old
    require(
        total % world == 0,
        f"{folder}: carries the State of {total} rows, which {world} processes cannot share; "
        f"resume with a divisor of {total}, or train with train.carry=false.",
    )
    begin, end = (share * total // world for share in (rank, rank + 1))
    parts = []
    for owner in range(begin // rows, -(-end // rows)):
        state, own = _read(folder / file(owner)) if owner else (first, skeleton)
        found = {len(t) for t in tensors(state)}
        if own != skeleton or found != {rows}:
            raise ConfigError(f"{folder / file(owner)}: not of one State with {file(0)}.")
        here = slice(max(begin - owner * rows, 0), min(end - owner * rows, rows))
        parts.append(map_tensors(itemgetter(here), state))
    columns = zip(*(tensors(part) for part in parts), strict=True)
    joined = iter([torch.cat(column) for column in columns])
    return map_tensors(lambda _: next(joined), parts[0])


def _read(path: Path) -> tuple[Any, Any]:
    named, metadata = load_tensors(path)
    skeleton = json.loads(metadata["skeleton"])
    kept: dict[str, Tensor] = {n: t for n, t in named.items() if not n.startswith("rng.")}
    return unflatten(kept, skeleton), skeleton
