"""Windows of seq_len + 1 tokens over mapped shards, gathered a batch at a time. Floor 1."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
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
from nl.data.shards import Shard, Verify, open_shard

LOG = logging.getLogger("nl.data")
_SAID: set[str] = set()


class WindowSource:
    """All windows of one domain of one split.

    Documents follow each other, EOS between them; window ``i`` of a shard starts at token
    ``i * seq_len``, so every token but a shard's first is a target once. The tail of a shard that
    does not fill a window is left out.
    """

    def __init__(self, shards: Sequence[Shard], seq_len: int) -> None:
        shards = [shard for shard in shards if shard.tokens.size > seq_len]
        self.seq_len = seq_len
        self._views = [_windows(shard.tokens, seq_len) for shard in shards]
        self._ends = [shard.ends for shard in shards]
        self._starts = np.cumsum([0, *(len(v) for v in self._views)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def gather(self, index: Ints, out: npt.NDArray[np.int32]) -> None:
        """Copy windows ``index`` (B,) into ``out`` (B, seq_len + 1)."""
        if len(self._views) == 1:
            out[:] = self._views[0][index]
            return
        shard = np.searchsorted(self._starts, index, side="right") - 1
        for number in np.unique(shard):
            mine = shard == number
            out[mine] = self._views[number][index[mine] - self._starts[number]]

    def boundaries(self, index: int) -> list[int]:
        """Where documents begin in window ``index``: offsets 0 to seq_len, the last target's too.

        The first token of a shard begins a document.
        """
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        first = (index - int(self._starts[shard])) * self.seq_len
        ends = self._ends[shard]
        span = np.asarray([first, first + self.seq_len + 1], np.uint64)  # as ends: no copy of them
        low, high = np.searchsorted(ends, span)
        found = [int(end) - first for end in ends[low:high]]
        return [0, *found] if first == 0 and found[:1] != [0] else found


def _windows(tokens: npt.NDArray[Any], seq_len: int) -> npt.NDArray[Any]:
    step = tokens.strides[0]
    shape = ((tokens.size - 1) // seq_len, seq_len + 1)
    return as_strided(tokens, shape=shape, strides=(step * seq_len, step), writeable=False)


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
    """Sources of one split with their names; callable as the fetch function of a stream.

    Without ``domains`` all that hold a window are read; one that is named has to hold one. With
    ``apart`` the last token of a document has no target.
    """

    apart = False

    def __init__(self, path: str, split: str, domains: Sequence[str], seq_len: int, verify: Verify):
        root = Path(path)
        manifest = read_manifest(root)
        every = list(manifest.splits.get(split, {}))
        self.names = list(domains or readable(manifest, split, seq_len) or every)
        self.seq_len = seq_len
        self.sources: list[WindowSource] = []
        for name in self.names:
            info = manifest.domain(split, name, root)
            shards = [open_shard(root, s, manifest.tokenizer, verify) for s in info.shards]
            source = WindowSource(shards, seq_len)
            if not len(source):
                raise ConfigError(
                    f"{root}: split {split!r}, domain {name!r} holds {info.tokens} tokens in "
                    f"{len(shards)} shards, not one window of stream.seq_len + 1 = {seq_len + 1}; "
                    "lower stream.seq_len or leave the domain out (stream.domains)."
                )
            self.sources.append(source)
        self.digest = _digest(manifest, split, self.names)

    @property
    def sizes(self) -> list[int]:
        """Windows per source."""
        return [len(source) for source in self.sources]

    def __call__(self, source: Ints, index: Ints) -> tuple[Tensor, Tensor]:
        """Inputs and targets, both (B, seq_len) int32, target t = input t + 1."""
        rows = np.empty((index.size, self.seq_len + 1), dtype=np.int32)
        if len(self.sources) == 1:
            self.sources[0].gather(index, rows)
        else:
            for number in np.unique(source):
                mine = np.flatnonzero(source == number)
                part = np.empty((mine.size, self.seq_len + 1), dtype=np.int32)
                self.sources[number].gather(index[mine], part)
                rows[mine] = part
        if self.apart:
            return self._apart(rows, source, index)
        both = torch.from_numpy(rows)
        return both[:, :-1], both[:, 1:]

    def _apart(
        self, rows: npt.NDArray[np.int32], source: Ints, index: Ints
    ) -> tuple[Tensor, Tensor]:
        targets = rows[:, 1:].copy()
        for row, found in enumerate(self._boundaries(source, index)):
            targets[row, [at - 1 for at in found if at]] = IGNORE
        return torch.from_numpy(rows[:, :-1]), torch.from_numpy(targets)

    def _boundaries(self, source: Ints, index: Ints) -> Iterator[list[int]]:
        for number, window in zip(source.tolist(), index.tolist(), strict=True):
            yield self.sources[number].boundaries(window)

    def starts(self, source: Ints, index: Ints) -> tuple[tuple[int, ...], ...]:
        """Per window the offsets of inputs that begin a document."""
        return tuple(
            tuple(at for at in found if at < self.seq_len)
            for found in self._boundaries(source, index)
        )


def _digest(manifest: DataManifest, split: str, names: Sequence[str]) -> str:
    """12 hex digits over the shards read, in order."""
    text = "".join(s.sha256 for name in names for s in manifest.splits[split][name].shards)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
