"""The State of a model as the cache of transformers' ``generate``. Floor 8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nl.config import ConfigError
from nl.core.state import select_rows


class Group(NamedTuple):
    """Rows that have read equally many tokens, and where their State stands.

    Attributes:
        rows: their places in the batch.
        state: of these rows, in this order; None before they have read anything.
    """

    rows: tuple[int, ...]
    state: Any


class NLCache:
    """What a batch has read: rows of equal padding share a State.

    A memory writes at multiples of its period, counted from the first token that is no padding: so
    rows that begin at different places cannot share the count.
    """

    is_compileable = False

    def __init__(self, groups: Sequence[Group] = (), length: int = 0) -> None:
        self.groups, self.length = tuple(groups), length

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of the batch that have been read, padding included."""
        del layer_idx
        return self.length

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """No limit."""
        del layer_idx
        return -1

    def reorder_cache(self, beam_idx: Tensor) -> NLCache:
        """Row j goes on from row ``beam_idx[j]``."""
        self._choose(beam_idx.tolist())
        return self

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order."""
        chosen = torch.nonzero(indices).flatten() if indices.dtype == torch.bool else indices
        self._choose(chosen.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row ``repeats`` times."""
        count = sum(len(group.rows) for group in self.groups)
        self._choose([row for row in range(count) for _ in range(repeats)])

    def crop(self, max_length: int) -> None:
        """Refused: a memory does not forget single tokens."""
        raise ConfigError(
            f"crop({max_length}): the State of this model cannot be wound back; leave assisted "
            "generation out."
        )

    def reset(self) -> None:
        """Nothing read."""
        self.groups, self.length = (), 0

    def _choose(self, rows: list[int]) -> None:
        groups = []
        for group in self.groups:
            place = {row: i for i, row in enumerate(group.rows)}
            new = tuple(j for j, row in enumerate(rows) if row in place)
            if new:
                kept = [place[rows[j]] for j in new]
                state = None if group.state is None else select_rows(group.state, kept)
                groups.append(Group(new, state))
        self.groups = tuple(groups)


def spans(mask: Tensor) -> list[tuple[int, int]]:
    """First token and end of every row of a mask (B, S) of zeros and ones.

    Raises:
        ConfigError: a row with a gap, or with no token at all.
    """
    found = []
    for row, ones in enumerate(mask.bool().tolist()):
        count = sum(ones)
        first = ones.index(True) if count else 0
        if not count or not all(ones[first : first + count]):
            raise ConfigError(
                f"attention_mask: row {row} has {'a gap' if count else 'no token'}; padding may "
                "stand before and after the tokens of a row only."
            )
        found.append((first, first + count))
    return found
