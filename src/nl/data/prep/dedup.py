"""The dedup stage: exact duplicates, then near-duplicates, over all domains. Floor 1.

Four steps, each resumable: signatures of every part; equal keys in ranges that fit into memory;
which documents go; one output part per input part without them. Of duplicates the first in corpus
order stays.
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nl.config import ConfigError
from nl.data.documents import read_corpus, total_documents
from nl.data.files import sha256_file
from nl.data.prep.dedup_join import REASONS, decide, equal_pairs, places
from nl.data.prep.dedup_signatures import (
    Ints,
    MinHash,
    band_keys,
    save_array,
    shingles,
    text_key,
    write_tables,
)
from nl.data.prep.engine import Executor
from nl.data.prep.parts import PartWriter, Tally, part_record, parts_of
from nl.data.prep.replace import check_apart
from nl.data.prep.stage import DROPPED, Ranks, Record, Stage, alone, counted, run_stage

VERSION = 1
"""Raise it when other documents go."""
RANGE_ROWS = 1_000_000
"""Rows of a range of keys, on average: what a rank of the join holds in memory."""


@dataclass(frozen=True, kw_only=True)
class DedupOptions:
    """Which duplicates go."""

    exact: bool = True
    """Drop texts that are equal to an earlier one, in any domain."""
    near: bool = True
    """Drop texts that are nearly equal to an earlier one (MinHash)."""
    ngram: int = 5
    """Words of a shingle."""
    bands: int = 14
    """Bands of the signature; a pair of similarity s is found with 1 - (1 - s^rows)^bands."""
    rows: int = 8
    """Minima per band."""
    seed: int = 1
    """Seed of the hash functions."""
    pairs: bool = False
    """Also list what goes, and for whose sake, below dropped/."""

    def __post_init__(self) -> None:
        checks = (
            (self.exact or self.near, "exact", "off", "on, or --near"),
            (1 <= self.ngram <= 100, "ngram", self.ngram, "1 to 100"),
            (1 <= self.bands <= 1000, "bands", self.bands, "1 to 1000"),
            (1 <= self.rows <= 1000, "rows", self.rows, "1 to 1000"),
            (self.seed >= 0, "seed", self.seed, ">= 0"),
        )
        for good, name, value, allowed in checks:
            if not good:
                raise ConfigError(f"--{name}: {value}; allowed: {allowed}.")

    @property
    def tables(self) -> int:
        """Tables of keys: one of texts, one for every band."""
        return 1 + (self.bands if self.near else 0)


@dataclass(frozen=True, kw_only=True)
class SignTask:
    """One rank: the tables of one part."""

    corpus: Path
    work: Path
    options: DedupOptions

    def __call__(self, rank: int) -> dict[str, Any]:
        part, options = parts_of(self.corpus)[rank], self.options
        tables: list[list[tuple[int, int, int]]] = [[] for _ in range(options.tables)]
        sizes = []
        minhash = MinHash(options.ngram, options.bands, options.rows, options.seed)
        for number, document in enumerate(part.documents()):
            sizes.append(len(document.text.encode()))
            if options.exact:
                tables[0].append((*text_key(document.text), number))
            if not options.near:
                continue
            found = shingles(document.text, options.ngram)
            if len(found):
                for table, key in zip(tables[1:], band_keys(minhash.signature(found)), strict=True):
                    table.append((*key, number))
        lengths = write_tables(keys_of(self.work, rank), tables)
        save_array(self.work / "sizes" / f"{rank:05d}.npy", np.array(sizes, np.uint64))
        return {"lengths": lengths}


@dataclass(frozen=True, kw_only=True)
class JoinTask:
    """One rank: equal keys of one range of one table, of several one after another if small."""

    work: Path
    parts: int
    ranges: int
    units: range
    """Ranges of all tables."""
    together: int
    """Units of a rank."""

    def __call__(self, rank: int) -> dict[str, Any]:
        files, found = _signed(self.work, self.parts), 0
        for unit in self.units[rank * self.together : (rank + 1) * self.together]:
            table, number = divmod(unit, self.ranges)
            pairs = equal_pairs(files, table, number, self.ranges)
            save_array(pairs_of(self.work, unit), pairs)
            found += len(pairs)
        return {"pairs": found}


@dataclass(frozen=True, kw_only=True)
class DecideTask:
    """The only rank: from pairs to what goes."""

    work: Path
    tables: int
    ranges: int

    def __call__(self, rank: int) -> dict[str, Any]:
        def load(table: int) -> Iterator[Ints]:
            for number in range(self.ranges):
                yield np.load(pairs_of(self.work, table * self.ranges + number))

        exact = np.concatenate(list(load(0)))
        near = (piece for table in range(1, self.tables) for piece in load(table))
        rows = decide(exact, near)
        save_array(self.work / "drops.npy", rows)
        return {"dropped": len(rows)}


@dataclass(frozen=True, kw_only=True)
class ApplyTask:
    """One rank: one part without what goes."""

    corpus: Path
    work: Path
    pairs: bool

    def __call__(self, rank: int) -> dict[str, Any]:
        parts = parts_of(self.corpus)
        part, tally, reasons = parts[rank], Tally(), Counter[str]()
        drops = {int(place): (int(kept), int(why)) for place, kept, why in _drops(self.work, rank)}
        rows = []
        with PartWriter(self.work, part.info.file) as out:
            for number, document in enumerate(part.documents()):
                size = len(document.text.encode())
                tally.read(size)
                found = drops.get(number)
                if found is None:
                    tally.kept(out.write(document))
                    continue
                kept, why = found
                reasons[REASONS[why]] += 1
                what = {"reason": REASONS[why], "source": document.source, "id": document.id}
                here = {"file": part.info.file, "line": number + 1}
                there = {"file": parts[kept >> 32].info.file, "line": (kept & 0xFFFFFFFF) + 1}
                rows.append({**what, "place": here, "kept": there})
        if self.pairs:
            with PartWriter(self.work, f"{DROPPED}/{part.info.file}") as listed:
                for row in rows:
                    listed.write_line(json.dumps(row) + "\n", 0)
        assert out.info is not None
        return part_record(tally, reasons, part.domain, [(part.split, out.info)])


def keys_of(work: Path, rank: int) -> Path:
    """Where the tables of a part lie."""
    return work / "keys" / f"{rank:05d}.bin"


def pairs_of(work: Path, unit: int) -> Path:
    """Where the pairs of one range of one table lie."""
    return work / "pairs" / f"{unit:05d}.npy"


@functools.lru_cache(maxsize=1)
def _signed(work: Path, parts: int) -> list[tuple[Path, Sequence[int]]]:
    """Tables of every part and their lengths, read once per process."""
    records = work / "sign" / "records"
    return [
        (keys_of(work, n), json.loads((records / f"{n:05d}.json").read_bytes())["lengths"])
        for n in range(parts)
    ]


def _drops(work: Path, part: int) -> Ints:
    """Rows (number in the part, place of what stays, reason) of what goes from one part."""
    rows = np.load(work / "drops.npy", mmap_mode="r")
    bounds = places(part, np.array([0], np.uint32))[0], places(part + 1, np.zeros(1, np.uint32))[0]
    first, last = np.searchsorted(rows[:, 0], np.array(bounds))
    own = np.array(rows[first:last])
    own[:, 0] &= np.uint64(0xFFFFFFFF)
    return own


def dedup_corpus(
    corpus: Path, output: Path, options: DedupOptions, executor: Executor
) -> tuple[dict[str, Any], bool]:
    """Write a corpus without its duplicates: the same domains and files.

    Returns:
        The log (``stage.json``) and whether anything was done.

    Raises:
        ConfigError: no corpus, a changed part, no write access, an output that is the corpus
            or something else's.
    """
    manifest = read_corpus(corpus)
    check_apart(corpus, output)
    stage = dedup_stage(corpus, output, options)

    def body(ranks: Ranks) -> list[dict[str, Any]]:
        parts = parts_of(corpus)
        find(corpus, options, ranks)
        task = ApplyTask(corpus=corpus.resolve(), work=stage.work, pairs=options.pairs)
        return ranks.run(task, len(parts), [part.info.bytes for part in parts], "apply")

    return run_stage(
        stage,
        body,
        executor,
        name=manifest.name,
        recipe=manifest.recipe,
        splits=tuple(manifest.splits),
    )


def dedup_stage(corpus: Path, output: Path, options: DedupOptions) -> Stage:
    """What decides the output of ``dedup_corpus``."""
    return Stage(
        name="dedup",
        version=VERSION,
        output=output,
        options=asdict(options),
        inputs={"corpus": sha256_file(corpus / "manifest.json")},
    )


def find(corpus: Path, options: DedupOptions, ranks: Ranks) -> None:
    """Signatures, pairs and decisions: everything before a part is written."""
    parts, work = parts_of(corpus), ranks.stage.work
    tables, documents = options.tables, total_documents(part.info for part in parts)
    ranges = max(1, math.ceil(documents / RANGE_ROWS))
    together = max(1, RANGE_ROWS // max(1, documents))
    units = range(tables * ranges)
    sign = SignTask(corpus=corpus.resolve(), work=work, options=options)
    ranks.run(sign, len(parts), [part.info.bytes for part in parts], "sign")
    join = JoinTask(work=work, parts=len(parts), ranges=ranges, units=units, together=together)
    ranks.run(join, math.ceil(len(units) / together), (), "join")
    ranks.run(DecideTask(work=work, tables=tables, ranges=ranges), 1, (), "decide")


def dry_run(
    corpus: Path, output: Path, options: DedupOptions, executor: Executor
) -> dict[str, Any]:
    """What ``dedup_corpus`` would do: a log with counts and reasons; no corpus is written.

    Signatures and decisions stay in the working directory, from where the real run goes on.
    """
    parts = parts_of(corpus)
    stage = dedup_stage(corpus, output, options)
    with alone(output):
        find(corpus, options, Ranks(executor=executor, stage=stage))
    records: list[Record] = []
    for rank, part in enumerate(parts):
        sizes, drops = np.load(stage.work / "sizes" / f"{rank:05d}.npy"), _drops(stage.work, rank)
        counts = Tally(len(sizes), int(sizes.sum()), len(sizes) - len(drops))
        counts.bytes_out = counts.bytes_in - int(sizes[drops[:, 0]].sum())
        reasons = {REASONS[k]: n for k, n in Counter(drops[:, 2].tolist()).items()}
        records.append({"domain": part.domain, "counts": asdict(counts), "reasons": reasons})
    return counted(records)
