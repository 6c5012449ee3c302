"""Documents in one row: where a call is cut, and which labels a boundary takes away. Floor 3."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nl.config import require
from nl.core.batch import IGNORE
from nl.core.state import send

Starts = Sequence[Sequence[int]]
"""Per row, the offsets in a call of the tokens that begin a document, rising; host data."""


class Part(NamedTuple):
    """Tokens that are read at once, and the rows in which a document begins with them."""

    tokens: slice
    begins: list[int]


def check_starts(starts: Starts, rows: int, length: int) -> None:
    """Refuse offsets that are not of this call."""
    require(
        len(starts) == rows,
        f"starts: {len(starts)} entries for {rows} rows; give one list of offsets per row.",
    )
    for row, offsets in enumerate(starts):
        rising = all(a < b for a, b in itertools.pairwise(offsets))
        inside = all(0 <= offset < length for offset in offsets)
        require(
            rising and inside,
            f"starts: {list(offsets)} in row {row}; must rise and lie between 0 and {length - 1}.",
        )


def cut_call(length: int, ends: Sequence[int], starts: Starts | None) -> list[Part]:
    """Cut ``length`` tokens at ``ends`` and wherever a row begins a document.

    Rows that begin with the first token are left out: they begin before the call does.
    """
    begins: dict[int, list[int]] = {}
    for row, offsets in enumerate(starts or ()):
        for offset in offsets:
            if offset:
                begins.setdefault(offset, []).append(row)
    cuts = sorted({0, *ends, *begins, length})
    return [Part(slice(a, b), begins.get(a, [])) for a, b in itertools.pairwise(cuts)]


def first_rows(starts: Starts | None) -> list[int]:
    """Rows whose document begins with the first token of the call."""
    return [row for row, offsets in enumerate(starts or ()) if offsets and offsets[0] == 0]


def without_crossing(labels: Tensor, starts: Starts | None) -> Tensor:
    """Labels (B, T) of the tokens of a call, ``IGNORE`` where the label is of another document."""
    last = [
        (row, offset - 1)
        for row, offsets in enumerate(starts or ())
        for offset in offsets
        if offset
    ]
    if not last:
        return labels
    crossing = torch.zeros(labels.shape, dtype=torch.bool)
    row, column = zip(*last, strict=True)
    crossing[list(row), list(column)] = True
    return labels.masked_fill(send(crossing, labels.device), IGNORE)
