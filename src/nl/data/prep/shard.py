"""Corpus and tokenizer to a data directory: shards of tokens and a manifest. Floor 1.

The unit of work is one text file of the corpus. Its shards follow from that file and the options
alone, so any number of workers, and any interruption, give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nl.config import ConfigError, structure, unstructure
from nl.data.documents import (
    SCHEMA,
    UNDIVIDED,
    CorpusManifest,
    read_corpus,
)
from nl.data.files import move_into, sha256_file, write_atomic, write_json
from nl.data.manifest import (
    DataManifest,
    DomainInfo,
    TokenizerInfo,
    read_manifest,
)
from nl.data.prep.shard_part import SHARD_TOKENS, PartRecord, PartTask, ShardOptions, shard_part
from nl.data.shards import VERSION, file_bytes
from nl.data.tokenizer import Tokenizer, load_tokenizer

LOG = logging.getLogger("nl.data")


@dataclass(frozen=True)
class Place:
    """Where one sharding works: ``<output>/.shard-<key>`` until all of it is done."""

    output: Path
    key: str

    @property
    def work(self) -> Path:
        return self.output / f".shard-{self.key}"

    def shards(self, split: str = "") -> Path:
        return self.work / "shards" / split

    def record(self, task: PartTask) -> Path:
        return self.work / "records" / task.where / f"part_{task.number:05d}.json"


def shard_corpus(
    corpus: Path,
    tokenizer_path: str,
    output: Path,
    *,
    shard_tokens: int = SHARD_TOKENS,
    eos_id: int = -1,
    max_records: int | None = None,
    name: str = "",
) -> tuple[DataManifest, bool]:
    """Tokenize a corpus into ``output``, unless that is there, made from the same inputs.

    What an interrupted call with the same inputs finished is kept. An undivided corpus becomes
    the split ``train``.

    Args:
        corpus: corpus directory.
        tokenizer_path: a tokenizer file, or ``bytes``.
        output: data directory; the model is copied into it and its splits are replaced.
        shard_tokens: a shard is closed once it holds this many tokens; no shard holds documents
            of two files of the corpus.
        eos_id: the id after each document; -1 is the tokenizer's.
        max_records: at most this many documents per domain of a split, the first ones.
        name: name of the data (default: the corpus's).

    Returns:
        The manifest and whether anything was written.

    Raises:
        ConfigError: missing or changed inputs, no write access.
    """
    source = read_corpus(corpus)
    tokenizer = load_tokenizer(tokenizer_path)
    options = ShardOptions(
        tokenizer=tokenizer_path,
        sha256=tokenizer.sha256,
        shard_tokens=shard_tokens,
        eos_id=_eos(eos_id, tokenizer),
    )
    tasks = list(part_tasks(corpus, source, max_records))
    inputs = _inputs(corpus, options, eos_id, max_records)
    name = name or source.name
    old = read_manifest(output) if (output / "manifest.json").is_file() else None
    if old is not None and (old.inputs, old.name) == (inputs, name) and _is_whole(output, old):
        return old, False
    place = Place(output, hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:12])
    _run(tasks, options, place)
    manifest = DataManifest(
        schema=SCHEMA,
        name=name,
        tokenizer=_describe(tokenizer),
        splits=_collect(place, tasks, _split_names(source)),
        inputs=inputs,
    )
    _install(place, manifest, old, Path(tokenizer_path))
    return manifest, True


def _inputs(
    corpus: Path, options: ShardOptions, eos_id: int, max_records: int | None
) -> dict[str, str]:
    """What the manifest says it was made from; the same again means nothing to do."""
    found = {
        "corpus": sha256_file(corpus / "manifest.json"),
        "tokenizer": options.sha256,
        "shard_tokens": str(options.shard_tokens),
        "format": str(VERSION),
    }
    found |= {} if eos_id < 0 else {"eos_id": str(eos_id)}
    return found | ({} if max_records is None else {"max_records": str(max_records)})


def _eos(eos_id: int, tokenizer: Tokenizer) -> int:
    if not -1 <= eos_id < tokenizer.vocab_size:
        raise ConfigError(
            f"--eos-id: {eos_id}; allowed: -1 (the tokenizer's, {tokenizer.eos_id}) or an id "
            f"below the vocabulary of {tokenizer.vocab_size}."
        )
    return tokenizer.eos_id if eos_id < 0 else eos_id


def _split_names(source: CorpusManifest) -> dict[str, str]:
    """Split of the corpus to split of the data."""
    if UNDIVIDED not in source.splits:
        return {split: split for split in source.splits}
    if len(source.splits) > 1:
        raise ConfigError(
            f"corpus {source.name!r}: has split {UNDIVIDED!r} and others; divide all of it first."
        )
    LOG.info("%s: the corpus is not divided, so all of it becomes the split train", source.name)
    return {UNDIVIDED: "train"}


def part_tasks(
    corpus: Path, source: CorpusManifest, max_records: int | None = None
) -> Iterator[PartTask]:
    """One task per text file of the corpus, in its order; ``max_records`` cuts per domain."""
    if max_records is not None and max_records < 1:
        raise ConfigError(f"--max-records: {max_records}; must be >= 1.")
    names = _split_names(source)
    for split, domains in source.splits.items():
        for domain, texts in domains.items():
            left = max_records
            for number, text in enumerate(texts):
                take = text.documents if left is None else min(left, text.documents)
                left = None if left is None else left - take
                yield PartTask(
                    path=str(corpus / text.file),
                    text=text,
                    split=names[split],
                    domain=domain,
                    number=number,
                    take=take,
                )


def _run(tasks: Sequence[PartTask], options: ShardOptions, place: Place) -> None:
    """Every task whose record is not there yet, with a line of progress every few seconds."""
    start = shown = time.perf_counter()
    todo = [task for task in tasks if not is_done(place, task)]
    size, done = sum(task.text.bytes for task in todo), 0
    if len(todo) < len(tasks):
        LOG.info("sharding: %d of %d files were done before", len(tasks) - len(todo), len(tasks))
    for task in todo:
        record = shard_part(task, options, place.shards())
        write_json(place.record(task), unstructure(record))
        done += task.text.bytes
        now = time.perf_counter()
        if now - shown > 3 and done:
            shown, rate = now, done / (now - start)
            left = (size - done) / rate
            LOG.info("sharding: %.1f MB, %.1f MB/s, %.0f s left", done / 1e6, rate / 1e6, left)


def is_done(place: Place, task: PartTask) -> bool:
    """Whether a task's record is there and its shards are as long as it says.

    A shard may have moved into the data directory already; there it must have its digest, as
    shards of another call lie there under the same names.
    """
    path = place.record(task)
    if not path.is_file():
        return False
    for info in structure(PartRecord, json.loads(path.read_bytes()), str(path)).shards:
        here, there = place.shards() / info.file, place.output / info.file
        if here.is_file() and here.stat().st_size == file_bytes(info):
            continue
        if not there.is_file() or sha256_file(there) != info.sha256:
            return False
    return True


def _collect(
    place: Place, tasks: Sequence[PartTask], names: dict[str, str]
) -> dict[str, dict[str, DomainInfo]]:
    splits: dict[str, dict[str, DomainInfo]] = {split: {} for split in names.values()}
    for task in tasks:
        path = place.record(task)
        record = structure(PartRecord, json.loads(path.read_bytes()), str(path))
        text = replace(task.text, file=os.path.relpath(task.path, place.output))
        before = splits[task.split].get(task.domain) or DomainInfo(
            shards=(), tokens=0, documents=0, bytes=0
        )
        splits[task.split][task.domain] = DomainInfo(
            shards=before.shards + record.shards,
            tokens=before.tokens + record.tokens,
            documents=before.documents + record.documents,
            bytes=before.bytes + record.bytes,
            texts=(*before.texts, replace(text, file=Path(text.file).as_posix())),
        )
    return splits


def _install(place: Place, manifest: DataManifest, old: DataManifest | None, model: Path) -> None:
    """Put splits, model and manifest in place; a call that dies in here is taken up again."""
    output = place.output
    (output / "manifest.json").unlink(missing_ok=True)
    for split in manifest.splits:
        if place.shards(split).is_dir():
            move_into(place.shards(split), output / split)
    for split in (old.splits if old else {}).keys() - manifest.splits.keys():
        shutil.rmtree(output / split, ignore_errors=True)
    if manifest.tokenizer.path is not None:
        copy = output / manifest.tokenizer.path
        if not (copy.exists() and model.samefile(copy)):
            write_atomic(copy, model.read_bytes())
    write_json(output / "manifest.json", unstructure(manifest))
    for folder in output.glob(".shard-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _describe(tokenizer: Tokenizer) -> TokenizerInfo:
    pieces = tokenizer.kind == "sentencepiece"
    return TokenizerInfo(
        path="tokenizer.model" if pieces else None,
        sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
    )


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
