"""Corpus and tokenizer to a data directory: shards of tokens and a manifest. Floor 1."""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from nl.config import ConfigError, unstructure
from nl.data.documents import (
    SCHEMA,
    Document,
    TextFile,
    read_corpus,
    read_jsonl,
    total_bytes,
    total_documents,
)
from nl.data.files import move_into, sha256_file, staging, write_atomic, write_json
from nl.data.manifest import (
    DataManifest,
    DomainInfo,
    ShardInfo,
    TokenizerInfo,
    read_manifest,
)
from nl.data.shards import VERSION, write_shard
from nl.data.tokenizer import Tokenizer, load_tokenizer

BATCH = 64
"""Documents handed to the tokenizer at once."""
SHARD_TOKENS = 1 << 25
LOG = logging.getLogger("nl.data")


def shard_corpus(
    corpus: Path, tokenizer_path: str, output: Path, *, shard_tokens: int = SHARD_TOKENS
) -> tuple[DataManifest, bool]:
    """Tokenize a corpus into ``output``, unless that is there, made from the same inputs.

    Args:
        corpus: corpus directory.
        tokenizer_path: a SentencePiece model, or ``bytes``.
        output: data directory; the model is copied into it and its splits are replaced.
        shard_tokens: a shard is closed once it holds this many tokens.

    Returns:
        The manifest and whether anything was written.

    Raises:
        ConfigError: missing or changed inputs, no write access.
    """
    if shard_tokens < 1:
        raise ConfigError(f"--shard-tokens: {shard_tokens}; must be >= 1.")
    source = read_corpus(corpus)
    tokenizer = load_tokenizer(tokenizer_path)
    inputs = {
        "corpus": sha256_file(corpus / "manifest.json"),
        "tokenizer": tokenizer.sha256,
        "shard_tokens": str(shard_tokens),
        "format": str(VERSION),
    }
    if (output / "manifest.json").is_file():
        old = read_manifest(output)
        if old.inputs == inputs and _is_whole(output, old):
            return old, False
    info = _describe(tokenizer)
    splits: dict[str, dict[str, DomainInfo]] = {}
    with staging(output) as folder:
        for split, domains in source.splits.items():
            splits[split] = {}
            for domain, texts in domains.items():
                where = Path(split) / domain
                for text in texts:
                    _check_text(corpus, text)
                paths = [corpus / text.file for text in texts]
                size = total_bytes(texts)
                stream = _tokenized(paths, tokenizer, f"{split}/{domain}", size)
                shards = _write_shards(folder, where, stream, info, shard_tokens)
                splits[split][domain] = DomainInfo(
                    shards=shards,
                    tokens=sum(s.tokens for s in shards),
                    documents=total_documents(texts),
                    bytes=size,
                    texts=tuple(_seen_from(output, corpus, text) for text in texts),
                )
        (output / "manifest.json").unlink(missing_ok=True)
        for split in splits:
            move_into(folder / split, output / split)
    _copy_model(Path(tokenizer_path), output, info)
    manifest = DataManifest(
        schema=SCHEMA, name=source.name, tokenizer=info, splits=splits, inputs=inputs
    )
    write_json(output / "manifest.json", unstructure(manifest))
    return manifest, True


def _seen_from(output: Path, corpus: Path, text: TextFile) -> TextFile:
    relative = Path(os.path.relpath(corpus / text.file, output))
    return replace(text, file=relative.as_posix())


def _describe(tokenizer: Tokenizer) -> TokenizerInfo:
    pieces = tokenizer.kind == "sentencepiece"
    return TokenizerInfo(
        path="tokenizer.model" if pieces else None,
        sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
    )


def _copy_model(model: Path, output: Path, info: TokenizerInfo) -> None:
    if info.path is None:
        return
    copy = output / info.path
    if not (copy.exists() and model.samefile(copy)):
        write_atomic(copy, model.read_bytes())


def _is_whole(output: Path, manifest: DataManifest) -> bool:
    shards = [
        shard
        for domains in manifest.splits.values()
        for domain in domains.values()
        for shard in domain.shards
    ]
    wanted = {s.file: s.sha256 for s in shards}
    if manifest.tokenizer.path is not None:
        wanted[manifest.tokenizer.path] = manifest.tokenizer.sha256
    return all((output / f).is_file() and sha256_file(output / f) == d for f, d in wanted.items())


def _check_text(corpus: Path, text: TextFile) -> None:
    path = corpus / text.file
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such file, but the corpus manifest lists it; build it again."
        )
    if sha256_file(path) != text.sha256:
        raise ConfigError(
            f"{path}: sha256 differs from the corpus manifest; build the corpus again."
        )


def _tokenized(
    paths: Sequence[Path], tokenizer: Tokenizer, label: str, size: int
) -> Iterator[list[int]]:
    """Ids of each document with EOS, with a line of progress every few seconds."""
    start = shown = time.perf_counter()
    done = 0
    stream: Iterator[Document] = itertools.chain.from_iterable(map(read_jsonl, paths))
    while batch := list(itertools.islice(stream, BATCH)):
        for ids in tokenizer.encode([d.text for d in batch]):
            yield [*ids, tokenizer.eos_id]
        done += sum(len(d.text.encode()) for d in batch)
        now = time.perf_counter()
        if now - shown > 3:
            shown, rate = now, done / (now - start)
            left = max(0.0, (size - done) / rate)
            LOG.info("%s: %.1f MB, %.1f MB/s, %.0f s left", label, done / 1e6, rate / 1e6, left)


def _write_shards(
    folder: Path, where: Path, stream: Iterator[list[int]], info: TokenizerInfo, limit: int
) -> tuple[ShardInfo, ...]:
    shards: list[ShardInfo] = []
    tokens: list[np.ndarray] = []
    ends: list[int] = []

    def close() -> None:
        name = where / f"shard_{len(shards):05d}.bin"
        flat = np.concatenate(tokens) if tokens else np.empty(0, np.uint32)
        record = write_shard(folder / name, flat, np.asarray(ends, np.uint64), info)
        shards.append(ShardInfo(**(unstructure(record) | {"file": name.as_posix()})))
        tokens.clear()
        ends.clear()

    for ids in stream:
        tokens.append(np.asarray(ids, dtype=np.uint32))
        ends.append((ends[-1] if ends else 0) + len(ids))
        if ends[-1] >= limit:
            close()
    if ends or not shards:
        close()
    return tuple(shards)
