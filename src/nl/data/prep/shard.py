"""Corpus and tokenizer to a data directory: shards of tokens and a manifest. Floor 1.

The unit of work is one text file of the corpus. Its shards follow from that file and the options
alone, so any number of workers, and any interruption, give the same bytes.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nl.config import ConfigError, structure, unstructure
from nl.data.documents import SCHEMA, SPLITS, UNDIVIDED, CorpusManifest, read_corpus
from nl.data.files import move_into, sha256_file, write_json
from nl.data.manifest import DataManifest, DomainInfo, TokenizerInfo, read_manifest
from nl.data.prep.command import LOG
from nl.data.prep.engine import Executor
from nl.data.prep.parts import parts_of
from nl.data.prep.replace import check_apart, check_own
from nl.data.prep.shard_part import SHARD_TOKENS, PartRecord, PartTask, ShardOptions, shard_part
from nl.data.prep.stage import LOG_NAME, Ranks, Stage, alone, forget
from nl.data.shards import VERSION, file_bytes
from nl.data.tokenizer import Tokenizer, copy_tokenizer, load_tokenizer, tokenizer_file

LEFT_OUT = "over_max_records"
DataSplits = dict[str, dict[str, DomainInfo]]


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """The work of one rank, one text file."""

    corpus: Path
    work: Path
    options: ShardOptions
    max_records: int | None

    def __call__(self, rank: int) -> dict[str, Any]:
        task = tasks_of(self.corpus, self.max_records)[rank]
        record = shard_part(task, self.options, self.work / "out")
        data: dict[str, Any] = unstructure(record)
        return data


def shard_corpus(
    corpus: Path,
    tokenizer_path: str,
    output: Path,
    *,
    shard_tokens: int = SHARD_TOKENS,
    eos_id: int = -1,
    max_records: int | None = None,
    name: str = "",
    executor: Executor | None = None,
) -> tuple[DataManifest, bool]:
    """Tokenize a corpus into ``output``, unless that is there, made from the same inputs.

    What an interrupted call with the same inputs finished is kept; undivided text becomes train.

    Args:
        corpus: corpus directory.
        tokenizer_path: a tokenizer file, or ``bytes``.
        output: data directory; the model is copied into it and its splits are replaced.
        shard_tokens: a shard is closed once it holds this many tokens; no shard holds documents
            of two files of the corpus.
        eos_id: the id after each document; -1 is the tokenizer's.
        max_records: at most this many documents per domain of a split, the first ones.
        name: name of the data (default: the corpus's).
        executor: where ranks run; one local worker needs no extra.

    Returns:
        The manifest and whether anything was written.

    Raises:
        ConfigError: missing or changed inputs, no write access, an output of something else.
    """
    source = read_corpus(corpus)
    check_apart(corpus, output)
    tokenizer = load_tokenizer(tokenizer_path)
    options = ShardOptions(
        tokenizer=tokenizer_path,
        sha256=tokenizer.sha256,
        shard_tokens=shard_tokens,
        eos_id=_eos(eos_id, tokenizer),
    )
    tasks = tasks_of(corpus, max_records)
    stage = _stage(corpus, output, options, max_records)
    inputs = dict(stage.inputs) | {k: str(v) for k, v in stage.options.items() if v is not None}
    name = name or source.name
    check_own(output, SPLITS, stage.name)
    with alone(output):
        old = read_manifest(output) if (output / "manifest.json").is_file() else None
        if old is not None and (old.inputs, old.name) == (inputs, name) and _is_whole(output, old):
            forget(stage)
            return old, False
        if not (stage.work / "final.json").is_file():
            task = ShardTask(
                corpus=corpus, work=stage.work, options=options, max_records=max_records
            )
            log = _run(stage, task, tasks, executor or Executor())
            made = {"tokenizer": unstructure(_describe(tokenizer)), "inputs": inputs, **log}
            made["splits"] = unstructure(_splits(output, source, tasks, made.pop("rows")))
            write_json(stage.work / "final.json", made)
        return _publish(stage, name, tokenizer_path), True


def _stage(corpus: Path, output: Path, options: ShardOptions, max_records: int | None) -> Stage:
    return Stage(
        name="shard",
        version=VERSION,
        output=output,
        options={
            "shard_tokens": options.shard_tokens,
            "eos_id": options.eos_id,
            "max_records": max_records,
            "format": VERSION,
        },
        inputs={"corpus": sha256_file(corpus / "manifest.json"), "tokenizer": options.sha256},
    )


def _eos(eos_id: int, tokenizer: Tokenizer) -> int:
    if not -1 <= eos_id < tokenizer.vocab_size:
        raise ConfigError(
            f"--eos-id: {eos_id}; allowed: -1 (the tokenizer's, {tokenizer.eos_id}) or an id "
            f"below the vocabulary of {tokenizer.vocab_size}."
        )
    return tokenizer.eos_id if eos_id < 0 else eos_id


def tasks_of(corpus: Path, max_records: int | None = None) -> tuple[PartTask, ...]:
    """One task per text file of the corpus, in its order; ``max_records`` cuts per domain.

    Raises:
        ConfigError: no corpus, one that is divided in part or holds no document.
    """
    if max_records is not None and max_records < 1:
        raise ConfigError(f"--max-records: {max_records}; must be >= 1.")
    path = corpus / "manifest.json"
    tasks = _tasks(corpus, max_records, path.stat().st_mtime_ns if path.is_file() else 0)
    if not any(task.take for task in tasks):
        raise ConfigError(
            f"{corpus}: holds no document; make it again, from more text or with other filters "
            "(the stage.json of a stage says what it dropped)."
        )
    return tasks


@functools.lru_cache(maxsize=4)
def _tasks(corpus: Path, max_records: int | None, stamp: int) -> tuple[PartTask, ...]:
    """Made once per process and state of the manifest: ranks look up their task here."""
    assert stamp >= 0
    numbers: dict[tuple[str, str], int] = {}
    before: dict[tuple[str, str], int] = {}
    tasks = []
    parts = parts_of(corpus)
    found = {part.split for part in parts}
    if UNDIVIDED in found and len(found) > 1:
        raise ConfigError(
            f"{corpus}: has the split {UNDIVIDED!r} beside others; divide all of it first."
        )
    for part in parts:
        domain, wanted = (part.split, part.domain), part.info.documents
        if max_records is not None:
            wanted = max(0, min(wanted, max_records - before.get(domain, 0)))
        split = "train" if part.split == UNDIVIDED else part.split
        number = numbers.get(domain, 0)
        tasks.append(PartTask(part=part, split=split, number=number, take=wanted))
        numbers[domain], before[domain] = number + 1, before.get(domain, 0) + wanted
    return tuple(tasks)


def _run(
    stage: Stage, task: ShardTask, tasks: Sequence[PartTask], executor: Executor
) -> dict[str, Any]:
    """Every rank that is not done; the records and the log."""
    start = time.perf_counter()
    if any(t.part.split == UNDIVIDED for t in tasks):
        LOG.info("shard: the corpus is not divided, so all of it becomes the split train")
    for rank in range(len(tasks)):
        if not _is_done(stage, rank):
            _record(stage, rank).unlink(missing_ok=True)
    if (executor.kind, executor.workers) == ("local", 1):
        rows = _in_process(stage, task, tasks)
    else:
        sizes = [t.part.info.bytes for t in tasks]
        rows = Ranks(executor=executor, stage=stage).run(task, len(tasks), sizes)
    documents = sum(row["documents"] for row in rows)
    counts = {
        "documents_in": sum(t.part.info.documents for t in tasks),
        "bytes_in": sum(t.part.info.bytes for t in tasks),
        "documents_out": documents,
        "bytes_out": sum(row["bytes"] for row in rows),
        "tokens_out": sum(row["tokens"] for row in rows),
        "shards": sum(len(row["shards"]) for row in rows),
    }
    dropped = counts["documents_in"] - documents
    log = {
        "stage": stage.name,
        "key": stage.key,
        "version": stage.version,
        "options": dict(stage.options),
        "inputs": dict(stage.inputs),
        "counts": counts,
        "reasons": {LEFT_OUT: dropped} if dropped else {},
        "parts": len(tasks),
        "seconds": round(time.perf_counter() - start, 3),
        "rank_seconds": round(sum(row["seconds"] for row in rows), 3),
        "workers": executor.workers,
        "executor": executor.kind,
    }
    return {"log": log, "rows": rows}


def _record(stage: Stage, rank: int) -> Path:
    return stage.work / "records" / f"{rank:05d}.json"


def _is_done(stage: Stage, rank: int) -> bool:
    """Whether a rank's record is there and its shards are as long as it says."""
    path = _record(stage, rank)
    if not path.is_file():
        return False
    for info in _read(json.loads(path.read_bytes())).shards:
        file = stage.work / "out" / info.file
        if not file.is_file() or file.stat().st_size != file_bytes(info):
            return False
    return True


def _read(row: Mapping[str, Any]) -> PartRecord:
    return structure(PartRecord, {k: v for k, v in row.items() if k != "seconds"}, "record")


def _in_process(stage: Stage, task: ShardTask, tasks: Sequence[PartTask]) -> list[dict[str, Any]]:
    """All ranks here, one after another, with a line of progress every few seconds."""
    start = shown = time.perf_counter()
    todo = [rank for rank in range(len(tasks)) if not _record(stage, rank).is_file()]
    size, done = sum(tasks[rank].part.info.bytes for rank in todo), 0
    for rank in todo:
        begin = time.perf_counter()
        row = task(rank)
        now = time.perf_counter()
        write_json(_record(stage, rank), row | {"seconds": round(now - begin, 3)})
        done += tasks[rank].part.info.bytes
        if now - shown > 3 and done:
            shown, rate = now, done / (now - start)
            left = (size - done) / rate
            LOG.info("shard: %.1f MB, %.1f MB/s, %.0f s left", done / 1e6, rate / 1e6, left)
    return [json.loads(_record(stage, rank).read_bytes()) for rank in range(len(tasks))]


def _splits(
    output: Path,
    source: CorpusManifest,
    tasks: Sequence[PartTask],
    rows: Sequence[Mapping[str, Any]],
) -> DataSplits:
    """Every domain of every split of the corpus, those without text too."""
    nothing = DomainInfo(shards=(), tokens=0, documents=0, bytes=0)
    splits = {
        "train" if split == UNDIVIDED else split: dict.fromkeys(domains, nothing)
        for split, domains in source.splits.items()
    }
    for task, record in zip(tasks, map(_read, rows), strict=True):
        relative = Path(os.path.relpath(task.part.path, output)).as_posix()
        before = splits[task.split][task.part.domain]
        splits[task.split][task.part.domain] = DomainInfo(
            shards=before.shards + record.shards,
            tokens=before.tokens + record.tokens,
            documents=before.documents + record.documents,
            bytes=before.bytes + record.bytes,
            texts=(*before.texts, replace(task.part.info, file=relative)),
        )
    return splits


def _publish(stage: Stage, name: str, tokenizer_path: str) -> DataManifest:
    """Put shards, model and manifest in place; may be cut off and done again at any point."""
    final = json.loads((stage.work / "final.json").read_bytes())
    output = stage.output
    manifest = DataManifest(
        schema=SCHEMA,
        name=name,
        tokenizer=structure(TokenizerInfo, final["tokenizer"]),
        splits=structure(DataSplits, final["splits"]),
        inputs=final["inputs"],
    )
    for file in ("manifest.json", LOG_NAME):
        (output / file).unlink(missing_ok=True)
    for split in SPLITS:
        if (stage.work / "out" / split).is_dir():
            move_into(stage.work / "out" / split, output / split)
        elif split not in manifest.splits:
            shutil.rmtree(output / split, ignore_errors=True)
    copy_tokenizer(tokenizer_path, output)
    write_json(output / LOG_NAME, final["log"])
    write_json(output / "manifest.json", unstructure(manifest))
    forget(stage)
    return manifest


def _describe(tokenizer: Tokenizer) -> TokenizerInfo:
    return TokenizerInfo(
        path=tokenizer_file(tokenizer),
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
