"""Windows of seq_len + 1 tokens over mapped shards, gathered a batch at a time. Floor 1."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.stride_tricks import as_strided
from torch import Tensor

from nl.config import ConfigError
from nl.core.batch import IGNORE
from nl.data.manifest import DataManifest, read_manifest
from nl.data.order import Ints
from nl.data.shards import Verify, open_shard

LOG = logging.getLogger("nl.data")
_SAID: set[str] = set()
TOKENS_AT_ONCE = 1 << 18
"""Tokens fetched together: what a call costs is shared by small batches; 1 MiB of rows."""
ROWS_PER_SHARD = 64
"""From here on one indexed copy per shard beats one copy per row."""


def readable(
    manifest: DataManifest, split: str, seq_len: int, names: Sequence[str] = ()
) -> tuple[str, ...]:
    """The domains of a split (or those of ``names``) without the ones that hold no window.

    What is left out is said once per process. A name that the split does not have stays, so that
    opening it says so.
    """
    domains, kept = manifest.splits.get(split, {}), []
    for name in names or domains:
        shards = domains[name].shards if name in domains else None
        if shards is None or any(shard.tokens > seq_len for shard in shards):
            kept.append(name)
            continue
        text = (
            f"{manifest.name}: split {split!r} of domain {name!r} is left out, "
            f"no shard of it holds stream.seq_len + 1 = {seq_len + 1} tokens"
        )
        if text not in _SAID:
            _SAID.add(text)
            LOG.warning(text)
    return tuple(kept)


class TokenWindows:
    """Windows of one split; callable as the fetch function of a stream.

    Documents follow each other, EOS between them; window ``i`` of a shard starts at token
    ``i * seq_len``, so every token but a shard's first is a target once. The tail of a shard that
    does not fill a window is left out. Without ``domains`` all that hold a window are read; one
    that is named has to hold one. With ``apart`` the last token of a document has no target.

    Attributes:
        names: domains, the sources of the stream.
        sizes: windows of each.
        digest: 12 hex digits over the shards read, in order.
        rows_at_once: windows that are worth fetching together.
    """

    apart = False

    def __init__(self, path: str, split: str, domains: Sequence[str], seq_len: int, verify: Verify):
        root = Path(path)
        manifest = read_manifest(root)
        every = list(manifest.splits.get(split, {}))
        self.names = list(domains or readable(manifest, split, seq_len) or every)
        self.seq_len = seq_len
        self.rows_at_once = max(1, TOKENS_AT_ONCE // seq_len)
        self.sizes: list[int] = []
        self._views: list[npt.NDArray[Any]] = []
        self._ends: list[npt.NDArray[np.uint64]] = []
        for name in self.names:
            info = manifest.domain(split, name, root)
            shards = [open_shard(root, s, manifest.tokenizer, verify) for s in info.shards]
            kept = [shard for shard in shards if shard.tokens.size > seq_len]
            views = [_windows(shard.tokens, seq_len) for shard in kept]
            if not views:
                raise ConfigError(
                    f"{root}: split {split!r}, domain {name!r} holds {info.tokens} tokens in "
                    f"{len(shards)} shards, not one window of stream.seq_len + 1 = {seq_len + 1}; "
                    "lower stream.seq_len or leave the domain out (stream.domains)."
                )
            self.sizes.append(sum(len(view) for view in views))
            self._views += views
            self._ends += [shard.ends for shard in kept]
        nothing = np.empty(0, np.int64)
        self._newest = (nothing, nothing, nothing)  # as ``starts`` is asked about the same windows
        self._first = np.cumsum([0, *(len(view) for view in self._views)])
        self._source = np.cumsum([0, *self.sizes])
        self.digest = _digest(manifest, split, self.names)

    def __call__(self, source: Ints, index: Ints) -> tuple[Tensor, Tensor]:
        """Inputs and targets, both (B, seq_len) int32, target t = input t + 1."""
        shard, window = self._places(source, index)
        rows = np.empty((index.size, self.seq_len + 1), dtype=np.int32)
        if len(self._views) * ROWS_PER_SHARD <= index.size:
            for number, view in enumerate(self._views):
                mine = np.flatnonzero(shard == number) if len(self._views) > 1 else slice(None)
                rows[mine] = view[window[mine]]
        else:
            pairs = zip(shard.tolist(), window.tolist(), strict=True)
            np.concatenate(
                [self._views[s][w] for s, w in pairs], out=rows.reshape(-1), casting="unsafe"
            )
        both = torch.from_numpy(rows)
        if not self.apart:
            return both[:, :-1], both[:, 1:]
        targets = rows[:, 1:].copy()
        row, offset = self._found(shard, window)
        self._newest = (index, row, offset)
        last = offset > 0
        targets[row[last], offset[last] - 1] = IGNORE
        return both[:, :-1], torch.from_numpy(targets)

    def _places(self, source: Ints, index: Ints) -> tuple[Ints, Ints]:
        """Shard of each window and its number there."""
        number = self._source[source] + index
        shard = np.searchsorted(self._first, number, side="right") - 1
        return shard, number - self._first[shard]

    def _found(self, shard: Ints, window: Ints) -> tuple[Ints, Ints]:
        """Where documents begin: (row, offset 0 to seq_len, the last target's too), sorted.

        The first token of a shard begins a document.
        """
        rows, offsets = [], []
        for number in sorted(set(shard.tolist())):
            mine = np.flatnonzero(shard == number)
            first, ends = window[mine] * self.seq_len, self._ends[number]
            low = np.searchsorted(ends, first.astype(np.uint64))  # as ends: no copy of them
            high = np.searchsorted(ends, (first + self.seq_len + 1).astype(np.uint64))
            count = high - low
            row = np.repeat(np.arange(mine.size), count)
            place = np.arange(row.size) + np.repeat(low - np.cumsum(count) + count, count)
            begins = np.flatnonzero(first == 0)
            rows += [mine[begins], mine[row]]
            offsets += [np.zeros_like(begins), ends[place].astype(np.int64) - first[row]]
        row, offset = np.concatenate(rows), np.concatenate(offsets)
        order = np.argsort(row, kind="stable")
        return row[order], offset[order]

    def starts(self, source: Ints, index: Ints) -> tuple[tuple[int, ...], ...]:
        """Per window the offsets of inputs that begin a document."""
        known, row, offset = self._newest
        if known is not index:
            row, offset = self._found(*self._places(source, index))
        row, offset = row[offset < self.seq_len], offset[offset < self.seq_len]
        cuts = np.searchsorted(row, np.arange(index.size + 1)).tolist()
        flat = offset.tolist()
        return tuple(tuple(flat[a:b]) for a, b in itertools.pairwise(cuts))


def _windows(tokens: npt.NDArray[Any], seq_len: int) -> npt.NDArray[Any]:
    step = tokens.strides[0]
    shape = ((tokens.size - 1) // seq_len, seq_len + 1)
    return as_strided(tokens, shape=shape, strides=(step * seq_len, step), writeable=False)


def _digest(manifest: DataManifest, split: str, names: Sequence[str]) -> str:
    text = "".join(s.sha256 for name in names for s in manifest.splits[split][name].shards)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
