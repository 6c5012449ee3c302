"""stream=recall: associative recall, the test of whether a memory is one. Floor 1.

A row shows P pairs, then asks for the value of every key once, in an order of its own:

    k_1 v_1 ... k_P v_P   k_s(1) v_s(1) ... k_s(P) v_s(P)

Keys are distinct ids below K, values are ids K .. 2K - 1 and may repeat. Only the P values of the
second part are scored. Nothing is learned by heart: every row binds its keys anew, and guessing
scores 1 / K. Source: multi-query associative recall (Zoology, arXiv 2312.04927), queries in a row.

``mqar`` is the probe of it, with an oracle and disjoint splits. This stream stays as it is: rows
and identity of finished studies are its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nl.config import ConfigError, register, require
from nl.config.groups import StreamConfig
from nl.core.batch import IGNORE
from nl.core.seeds import SeedBook
from nl.data.order import Ints
from nl.data.stream import Fetch, RowStream, own_rows, stream_of


@register("stream", "recall")
@dataclass(frozen=True, kw_only=True)
class RecallConfig(StreamConfig):
    """P pairs of a key and a value, then every key again. Inputs and targets (B, 4P - 1)."""

    pairs: int = 8
    """P, the pairs to hold."""
    keys: int = 64
    """K, the ids that keys are drawn from; as many others are values."""
    val_size: int = 1024
    """Validation rows."""
    batch_size: int = 32
    """Rows per micro-batch, over all ranks."""

    def __post_init__(self) -> None:
        for name in ("pairs", "batch_size", "val_size"):
            value = getattr(self, name)
            require(value >= 1, f"{name}: {value}; must be >= 1.")
        require(
            self.keys >= self.pairs,
            f"keys: {self.keys}; {self.pairs} pairs need as many different keys, raise keys.",
        )

    def splits(self) -> tuple[str, ...]:
        """``train`` and ``val``."""
        return ("train", "val")

    def vocab_size(self) -> int | None:
        """Keys and values."""
        return 2 * self.keys

    def build(self, split: str, *, seed: int, rank: int, world: int) -> RowStream:
        """``train`` is endless; ``val`` is drawn from a seed of its own and goes once through."""
        if split not in self.splits():
            raise ConfigError(f"split {split!r} of recall: use train or val.")
        fetch = self._fetch(SeedBook(seed).seed("recall", split))
        size = 0 if split == "train" else self.val_size
        place = (seed, rank, world)
        return own_rows(self, split, fetch, size=size, place=place, scored=self.pairs)

    def _fetch(self, key: int) -> Fetch:
        asked = 2 * self.pairs

        def fetch(source: Ints, index: Ints) -> tuple[Tensor, Tensor]:
            del source
            rows = np.stack([recall_row(self.pairs, self.keys, key, i) for i in index.tolist()])
            tokens = torch.from_numpy(rows)
            targets = torch.full_like(tokens[:, 1:], IGNORE)
            targets[:, asked::2] = tokens[:, asked + 1 :: 2]
            return tokens[:, :-1], targets

        return fetch


def recall_row(pairs: int, keys: int, key: int, index: int) -> Ints:
    """Row ``index`` of the rows drawn with ``key``: (4 * pairs,) token ids."""
    rng = stream_of(key, index)
    shown = rng.permutation(keys)[:pairs]
    both = np.stack([shown, rng.integers(keys, 2 * keys, pairs)], axis=1)
    return np.concatenate([both, both[rng.permutation(pairs)]]).reshape(-1)
