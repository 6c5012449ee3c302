"""One text file of a corpus to its shards: a pure function of file, options and place. Floor 1."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nl.config import ConfigError
from nl.data.documents import Document
from nl.data.manifest import ShardInfo, TokenizerInfo
from nl.data.prep.parts import Part
from nl.data.shards import DTYPES, dtype_for, write_shard
from nl.data.tokenizer import SPACE_MARK, Tokenizer, load_tokenizer

BATCH = 64
"""Documents handed to the tokenizer at once,"""
BATCH_CHARACTERS = 1 << 20
"""or fewer, once they have this many characters together."""
SHARD_TOKENS = 1 << 25
Ids = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """What decides the bytes of a shard, with the text."""

    tokenizer: str
    sha256: str
    shard_tokens: int = SHARD_TOKENS
    eos_id: int

    def __post_init__(self) -> None:
        if self.shard_tokens < 1:
            raise ConfigError(f"--shard-tokens: {self.shard_tokens}; must be >= 1.")


@dataclass(frozen=True, kw_only=True)
class PartTask:
    """One text file of a corpus, number ``number`` of its domain."""

    part: Part
    split: str
    """Split of the data that its tokens go to."""
    number: int
    take: int
    """So many of its documents are wanted, the first ones."""

    @property
    def where(self) -> str:
        return f"{self.split}/{self.part.domain}"


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """What became of one text file; ``file`` of a shard is relative to the data directory."""

    shards: tuple[ShardInfo, ...]
    tokens: int
    documents: int
    bytes: int


def shard_part(task: PartTask, options: ShardOptions, folder: Path) -> PartRecord:
    """Write ``<folder>/<split>/<domain>/shard_<number>[_<more>].bin``.

    In memory: one shard, one batch of documents, and the longest document.

    Raises:
        ConfigError: the text is missing, changed or no text; a tokenizer that is not the one the
            options name.
    """
    path = Path(task.part.path)
    tokenizer = load_tokenizer(options.tokenizer, sha256=options.sha256)
    info = TokenizerInfo(path=None, sha256=options.sha256, vocab_size=tokenizer.vocab_size)
    shards: list[ShardInfo] = []
    size = 0
    writer = ShardWriter(info, options.eos_id)

    def close() -> None:
        more = f"_{len(shards):03d}" if shards else ""
        name = f"{task.where}/shard_{task.number:05d}{more}.bin"
        shards.append(replace(writer.write(folder / name), file=name))

    for batch in _batches(itertools.islice(task.part.documents(), task.take)):
        size += _bytes_of(batch, path)
        for ids in encode_arrays(tokenizer, batch):
            writer.add(ids)
            if writer.tokens >= options.shard_tokens:
                close()
    if writer.tokens:
        close()
    return PartRecord(
        shards=tuple(shards),
        tokens=sum(s.tokens for s in shards),
        documents=sum(s.documents for s in shards),
        bytes=size,
    )


def _batches(documents: Iterator[Document]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for document in documents:
        batch.append(document.text)
        size += len(document.text)
        if len(batch) == BATCH or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _bytes_of(batch: Sequence[str], path: Path) -> int:
    try:
        return sum(len(text.encode()) for text in batch)
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{path}: a document holds half of a surrogate pair ({error.object[error.start]!a}), "
            "which no encoding of text can; filter the corpus with scripts/data/filter_corpus.py."
        ) from error


def encode_arrays(tokenizer: Tokenizer, texts: list[str]) -> Iterator[Ids]:
    """``tokenizer.encode(texts)`` as arrays, without a Python integer per token where possible."""
    if tokenizer.kind == "bytes":
        yield from (np.frombuffer(text.encode(), np.uint8) for text in texts)
        return
    direct = getattr(getattr(tokenizer, "processor", None), "encode_as_numpy", None)
    if direct is None or any(SPACE_MARK in text for text in texts):
        yield from (np.asarray(ids, np.int64) for ids in tokenizer.encode(texts))
    else:
        yield from direct(texts, num_threads=1)


class ShardWriter:
    """Collects documents of ids, two or four bytes each, and writes them as one shard."""

    def __init__(self, tokenizer: TokenizerInfo, eos_id: int) -> None:
        self.tokenizer = tokenizer
        self.dtype = DTYPES[dtype_for(tokenizer.vocab_size)]
        self.eos_id = eos_id
        self._parts: list[Ids] = []
        self._ends: list[int] = []

    @property
    def tokens(self) -> int:
        """Tokens that wait to be written."""
        return self._ends[-1] if self._ends else 0

    def add(self, ids: Ids, eos: bool = True) -> None:
        """One document; ``eos``: its EOS is not among the ids and is added.

        Raises:
            ConfigError: an id outside the vocabulary.
        """
        if ids.size and not (ids.min() >= 0 and ids.max() < self.tokenizer.vocab_size):
            bad = ids[(ids < 0) | (ids >= self.tokenizer.vocab_size)][0]
            raise ConfigError(
                f"token id {bad} is outside the vocabulary of {self.tokenizer.vocab_size}."
            )
        self._parts.append(ids.astype(self.dtype))
        if eos:
            self._parts.append(np.asarray([self.eos_id], self.dtype))
        self._ends.append(self.tokens + ids.size + eos)

    def write(self, path: Path) -> ShardInfo:
        """Write what waits and begin anew; see ``write_shard``."""
        tokens = np.concatenate(self._parts) if self._parts else np.empty(0, self.dtype)
        ends = np.asarray(self._ends, np.uint64)
        self._parts, self._ends = [], []
        return write_shard(path, tokens, ends, self.tokenizer)
