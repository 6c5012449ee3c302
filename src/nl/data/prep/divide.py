"""The divide stage: documents go to train, val and test by a hash of their group. Floor 1.

A document's split depends on its group (or, without one, on its text) and the shares alone, so it
stays where it is when documents are added, and pieces of one file stay together; one that came with
a split keeps it. Then held-out
documents that one of train contains or nearly equals go: MinHash misses some, this search none.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nl.config import ConfigError, require
from nl.data.documents import SPLITS, UNDIVIDED, Document, TextFile, read_corpus, read_jsonl
from nl.data.files import sha256_file, sha256_text
from nl.data.prep.dedup_leak import NGRAM, Index
from nl.data.prep.dedup_signatures import Ints, save_array, shingles
from nl.data.prep.engine import Executor
from nl.data.prep.parts import PartWriter, Tally, part_record, parts_of
from nl.data.prep.replace import check_apart
from nl.data.prep.stage import Ranks, Record, Stage, run_stage

VERSION = 3
"""Raise it when a document goes elsewhere."""
CHUNK_BYTES = 16_000_000
"""Held-out text that is compared at once: decides the memory of a rank."""
TOGETHER = 1000
"""Documents of train that are compared with a chunk at once."""
HELD_OUT = SPLITS[1:]


@dataclass(frozen=True, kw_only=True)
class DivideOptions:
    """Shares of the held-out splits, and how far they are kept from train."""

    val: float = 0.1
    """Share of groups that goes to val."""
    test: float = 0.1
    """Share of groups that goes to test."""
    apart: float = 0.8
    """Held-out documents go of which one document of train has this share (of 5-word shingles),
    or all; 0: they stay. Time grows with train times held-out text; memory does not."""

    def __post_init__(self) -> None:
        for name in ("val", "test"):
            share = getattr(self, name)
            if not 0 <= share < 1:
                raise ConfigError(f"--{name}: {share}; allowed: >= 0 and < 1.")
        if self.val + self.test >= 1:
            raise ConfigError(f"--val: {self.val} and --test: {self.test}; together below 1.")
        if not 0 <= self.apart <= 1:
            raise ConfigError(f"--apart: {self.apart}; allowed: 0 to 1.")


def split_of(document: Document, options: DivideOptions) -> str:
    """The split of a document: that of its source, if it came with one, else by its hash.

    Raising the share of val moves nothing out of test.

    Raises:
        ConfigError: a split that there is not.
    """
    if document.split:
        known = document.split in SPLITS
        require(known, f"{document.source}: split {document.split!r}; train, val and test are.")
        return document.split
    key = sha256_text("group:" + document.group) if document.group else document.id
    place = int(key[:16], 16) / 2**64
    if place < options.test:
        return "test"
    return "val" if place < options.test + options.val else "train"


@dataclass(frozen=True, kw_only=True)
class DivideTask:
    """One rank: one part in, a part for every split that gets something."""

    corpus: Path
    work: Path
    options: DivideOptions

    def __call__(self, rank: int) -> dict[str, Any]:
        part, tally = parts_of(self.corpus)[rank], Tally()
        name = part.info.file.partition("/")[2]
        writers: dict[str, PartWriter] = {}
        with contextlib.ExitStack() as open_files:
            for document in part.documents():
                split = split_of(document, self.options)
                if split not in writers:
                    writer = PartWriter(
                        first_place(self.work, split, self.options), f"{split}/{name}"
                    )
                    writers[split] = open_files.enter_context(writer)
                size = writers[split].write(document)
                tally.read(size)
                tally.kept(size)
        files = [(split, writers[split].info) for split in SPLITS if split in writers]
        return part_record(tally, {}, part.domain, [(s, info) for s, info in files if info])


def first_place(work: Path, split: str, options: DivideOptions) -> Path:
    """Where a split is written first: held-out ones aside, if they are looked through."""
    return work / "held" if options.apart and split in HELD_OUT else work


def files_of(records: Sequence[Record], splits: Sequence[str]) -> list[Mapping[str, Any]]:
    """Files of some splits in the order of the ranks."""
    return [f for record in records for f in record["files"] if f["split"] in splits]


def chunks_of(records: Sequence[Record]) -> list[list[str]]:
    """Held-out files, in runs of at most ``CHUNK_BYTES`` of text or of one file."""
    chunks: list[list[str]] = []
    size = CHUNK_BYTES
    for file in files_of(records, HELD_OUT):
        if size + file["bytes"] > CHUNK_BYTES:
            chunks.append([])
            size = 0
        chunks[-1].append(file["file"])
        size += file["bytes"]
    return chunks


@functools.lru_cache(maxsize=1)
def read_records(work: Path) -> list[Record]:
    """What the ranks of the first step wrote, read once per process after it ended."""
    return [json.loads(p.read_bytes()) for p in sorted((work / "divide/records").glob("*.json"))]


@dataclass(frozen=True, kw_only=True)
class IndexTask:
    """One rank: the shingles of one chunk of held-out text."""

    work: Path

    def __call__(self, rank: int) -> dict[str, Any]:
        files = chunks_of(read_records(self.work))[rank]
        found = [d for file in files for d in read_jsonl(self.work / "held/out" / file)]
        index = Index.of(found)
        for name, array in asdict(index).items():
            save_array(self.work / "chunks" / f"{rank:05d}.{name}.npy", array)
        save_array(self.work / "chunks" / f"{rank:05d}.texts.npy", texts_of(found))
        return {"documents": len(found)}


def texts_of(documents: Sequence[Document]) -> Ints:
    """64 bits of the digest of each text."""
    return np.array([int(document.id[:16], 16) for document in documents], np.uint64)


@dataclass(frozen=True, kw_only=True)
class CompareTask:
    """One rank: one file of train against all held-out text; which documents of it go."""

    work: Path
    apart: float

    def __call__(self, rank: int) -> dict[str, Any]:
        records = read_records(self.work)
        file = files_of(records, SPLITS[:1])[rank]["file"]
        documents = list(read_jsonl(self.work / "out" / file))
        texts, found = texts_of(documents), [shingles(d.text, NGRAM) for d in documents]
        gone = []
        for chunk in range(len(chunks_of(records))):
            stem = self.work / "chunks" / f"{chunk:05d}"
            index = Index(*(np.load(f"{stem}.{n}.npy", "r") for n in ("keys", "owners", "sizes")))
            near = np.isin(np.load(f"{stem}.texts.npy"), texts)
            for start in range(0, len(found), TOGETHER):
                near |= index.covered(found[start : start + TOGETHER]) >= self.apart
            gone.append(np.flatnonzero(near).tolist())
        return {"gone": gone}


@dataclass(frozen=True, kw_only=True)
class ClearTask:
    """One rank: the held-out files of one part without what is too near to train."""

    work: Path

    def __call__(self, rank: int) -> dict[str, Any]:
        records = read_records(self.work)
        record, gone = records[rank], near_train(self.work)
        tally = Tally(**record["counts"])
        files: list[tuple[str, TextFile]] = []
        for row in record["files"]:
            if row["split"] not in HELD_OUT:
                info = {k: v for k, v in row.items() if k not in ("split", "domain")}
                files.append((row["split"], TextFile(**info)))
                continue
            with PartWriter(self.work, row["file"]) as out:
                for number, document in enumerate(read_jsonl(self.work / "held/out" / row["file"])):
                    if number not in gone[row["file"]]:
                        out.write(document)
            assert out.info is not None
            tally.documents_out -= row["documents"] - out.info.documents
            tally.bytes_out -= row["bytes"] - out.info.bytes
            files.append((row["split"], out.info))
        lost = tally.documents_in - tally.documents_out
        return part_record(tally, {"near_train": lost} if lost else {}, record["domain"], files)


@functools.lru_cache(maxsize=1)
def near_train(work: Path) -> dict[str, set[int]]:
    """By held-out file, the numbers of the documents that some file of train is too near to."""
    records = read_records(work)
    chunks = chunks_of(records)
    counts = {f["file"]: f["documents"] for f in files_of(records, HELD_OUT)}
    gone: dict[str, set[int]] = {file: set() for file in counts}
    for path in (work / "compare/records").glob("*.json"):
        for chunk, numbers in zip(chunks, json.loads(path.read_bytes())["gone"], strict=True):
            starts = np.cumsum([0, *(counts[file] for file in chunk)])
            for number in numbers:
                place = int(np.searchsorted(starts, number, "right")) - 1
                gone[chunk[place]].add(number - int(starts[place]))
    return gone


def divide_corpus(
    corpus: Path, output: Path, options: DivideOptions, executor: Executor
) -> tuple[dict[str, Any], bool]:
    """Write an undivided corpus as one with train, val and test.

    Returns:
        The log (``stage.json``) and whether anything was done.

    Raises:
        ConfigError: no corpus, one that is divided, a changed part, no write access, an
            output that is the corpus or something else's.
    """
    manifest = read_corpus(corpus)
    check_apart(corpus, output)
    if set(manifest.splits) != {UNDIVIDED}:
        raise ConfigError(f"{corpus}: has splits {', '.join(manifest.splits)}; it is divided.")
    stage = Stage(
        name="divide",
        version=VERSION,
        output=output,
        options=asdict(options),
        inputs={"corpus": sha256_file(corpus / "manifest.json")},
    )
    task = DivideTask(corpus=corpus.resolve(), work=stage.work, options=options)

    def body(ranks: Ranks) -> list[dict[str, Any]]:
        parts = parts_of(corpus)
        sizes = [part.info.bytes for part in parts]
        records = ranks.run(task, len(parts), sizes, "divide")
        return _cleared(records, options, ranks) if options.apart else records

    return run_stage(
        stage, body, executor, name=manifest.name, recipe=manifest.recipe, splits=SPLITS
    )


def _cleared(
    records: list[dict[str, Any]], options: DivideOptions, ranks: Ranks
) -> list[dict[str, Any]]:
    """Records of the parts, after what is too near to train has gone from held-out files."""
    work, train = ranks.stage.work, files_of(records, SPLITS[:1])
    ranks.run(IndexTask(work=work), len(chunks_of(records)), (), "index")
    compare = CompareTask(work=work, apart=options.apart)
    ranks.run(compare, len(train), [file["bytes"] for file in train], "compare")
    return ranks.run(ClearTask(work=work), len(records), (), "clear")
