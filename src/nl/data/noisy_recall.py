"""stream=noisy_recall: facts in noise, asked for at any distance: does a memory hold them? Floor 1.

A row is noise in which P facts "key value" stand anywhere; behind each of them its key comes once
more, near or far, followed by its value:

    n n k_1 v_1 n n n n k_2 v_2 n k_1 v_1 n ... n k_2 v_2 n

Keys are distinct ids below K, values are ids K .. 2K - 1 and may repeat, noise is drawn from N ids
of its own. Only the value of the second time is scored; guessing scores 1 / K. What a window of
attention cannot see has to be carried by a memory. With one fact, asked for at the end, this is the
passkey test. Source: noisy in-context recall (MAD, arXiv 2403.17844), distances drawn as in
multi-query associative recall (Zoology, arXiv 2312.04927).

``mad_noisy_recall`` is the probe of it, with an oracle and disjoint splits. This stream stays as it
is: rows and identity of finished studies are its own.
"""

from __future__ import annotations

import itertools
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


@register("stream", "noisy_recall")
@dataclass(frozen=True, kw_only=True)
class NoisyRecallConfig(StreamConfig):
    """P facts in noise, each asked for once. Inputs and targets (B, seq_len)."""

    seq_len: int = 256
    """Tokens per row."""
    pairs: int = 4
    """P, the facts of a row."""
    keys: int = 64
    """K, the ids that keys are drawn from; as many others are values."""
    noise: int = 64
    """N, the ids that noise is drawn from."""
    near: float = 0.5
    """Share of questions whose distance is drawn evenly in its logarithm; the others stand
    anywhere behind their fact."""
    val_size: int = 1024
    """Validation rows."""
    batch_size: int = 16
    """Rows per micro-batch, over all ranks."""

    def __post_init__(self) -> None:
        for name in ("pairs", "noise", "batch_size", "val_size"):
            value = getattr(self, name)
            require(value >= 1, f"{name}: {value}; must be >= 1.")
        require(
            self.keys >= self.pairs,
            f"keys: {self.keys}; {self.pairs} facts need as many different keys, raise keys.",
        )
        require(0 <= self.near <= 1, f"near: {self.near}; must be from 0 to 1.")
        least = 4 * self.pairs - 1
        require(
            self.seq_len >= least,
            f"seq_len: {self.seq_len}; {self.pairs} facts and their questions take {least} tokens.",
        )

    def splits(self) -> tuple[str, ...]:
        """``train`` and ``val``."""
        return ("train", "val")

    def vocab_size(self) -> int | None:
        """Keys, values and noise."""
        return 2 * self.keys + self.noise

    def build(self, split: str, *, seed: int, rank: int, world: int) -> RowStream:
        """``train`` is endless; ``val`` is drawn from a seed of its own and goes once through."""
        if split not in self.splits():
            raise ConfigError(f"split {split!r} of noisy_recall: use train or val.")
        fetch = self._fetch(SeedBook(seed).seed("noisy_recall", split))
        size = 0 if split == "train" else self.val_size
        place = (seed, rank, world)
        return own_rows(self, split, fetch, size=size, place=place, scored=self.pairs)

    def _fetch(self, key: int) -> Fetch:
        def fetch(source: Ints, index: Ints) -> tuple[Tensor, Tensor]:
            del source
            rows = [self.row(key, i) for i in index.tolist()]
            tokens = torch.from_numpy(np.stack([row for row, _ in rows]))
            targets = torch.full_like(tokens[:, 1:], IGNORE)
            asked = torch.from_numpy(np.stack([places for _, places in rows]))
            targets.scatter_(1, asked, tokens[:, 1:].gather(1, asked))
            return tokens[:, :-1], targets

        return fetch

    def row(self, key: int, index: int) -> tuple[Ints, Ints]:
        """Row ``index`` of the rows drawn with ``key``.

        Returns:
            (seq_len + 1,) token ids, and (P,) positions of the keys that are asked for.
        """
        rng = stream_of(key, index)
        facts = self._facts(rng)
        pieces = self.seq_len + 1 - 2 * self.pairs  # each noise, a fact or a question
        told = np.sort(rng.permutation(pieces - self.pairs)[: self.pairs])
        asked = self._asked(rng, told, pieces)
        pairs = np.full(pieces, -1)
        pairs[told], pairs[asked] = np.arange(self.pairs), np.arange(self.pairs)
        sizes = np.where(pairs < 0, 1, 2)
        starts = np.cumsum(sizes) - sizes
        tokens = rng.integers(2 * self.keys, 2 * self.keys + self.noise, self.seq_len + 1)
        for places in (told, asked):
            tokens[starts[places]], tokens[starts[places] + 1] = facts[:, 0], facts[:, 1]
        return tokens, starts[asked]

    def _asked(self, rng: np.random.Generator, told: Ints, pieces: int) -> Ints:
        """The piece at which each fact is asked for: the free one nearest to what was drawn."""
        taken = set(told.tolist())
        found = []
        for place in told.tolist():
            room, share = pieces - 1 - place, rng.random()
            near = rng.random() < self.near
            wanted = place + (int(room**share) if near else 1 + int(share * room))
            free = itertools.chain(range(wanted, pieces), range(wanted, place, -1))
            found.append(next(piece for piece in free if piece not in taken))
            taken.add(found[-1])
        return np.asarray(found)

    def question(self, key: int, index: int, length: int, depth: float) -> tuple[Ints, int]:
        """A row for measuring: one key is asked for, its fact stands at a known depth.

        Args:
            key: of the drawn rows.
            index: of the sample, which has a random stream of its own.
            length: tokens read before the answer.
            depth: 0 to 1, share of the body before the fact; met to within one token.

        Returns:
            (length,) token ids that end with the asked key, and the value.
        """
        require(
            length > 2 * self.pairs,
            f"lengths: {length}; {self.pairs} facts and a question take {2 * self.pairs + 1}.",
        )
        require(0 <= depth <= 1, f"depths: {depth}; must be from 0 to 1.")
        rng = stream_of(key, index)
        facts = self._facts(rng)
        body = self._body(rng, facts[1:], length - 3)
        at = round(depth * len(body))
        if 0 < at < len(body) and body[at - 1] < self.keys:  # between a key and its value
            at += 1
        asked, value = facts[0]
        return np.concatenate([body[:at], facts[0], body[at:], [asked]]), int(value)

    def _facts(self, rng: np.random.Generator) -> Ints:
        """(P, 2) keys and values."""
        keys = rng.permutation(self.keys)[: self.pairs]
        return np.stack([keys, rng.integers(self.keys, 2 * self.keys, self.pairs)], axis=1)

    def _body(self, rng: np.random.Generator, facts: Ints, length: int) -> Ints:
        """(length,) noise with the facts in it, every arrangement equally likely."""
        body = rng.integers(2 * self.keys, 2 * self.keys + self.noise, length)
        count = len(facts)
        if count:
            places = np.sort(rng.permutation(length - count)[:count]) + np.arange(count)
            body[places], body[places + 1] = facts[:, 0], facts[:, 1]
        return body


def look_up(tokens: Ints, keys: int) -> int:
    """The value that followed the last token where it stood before: what a perfect memory says.

    Raises:
        ValueError: the last token is no key, or was not told.
    """
    told = np.flatnonzero(tokens[:-1] == tokens[-1])
    if tokens[-1] >= keys or not len(told):
        raise ValueError(f"the row ends with {tokens[-1]}, no key that stands before it")
    return int(tokens[told[-1] + 1])
