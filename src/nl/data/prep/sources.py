"""Where documents come from: local files, the Hugging Face hub, this Python, a generator. Floor 1.

``units`` cuts a source into pieces that can be read apart from each other (files, shards of a hub
data set); ``read_unit`` reads one of them and counts what it could not use.
"""

from __future__ import annotations

import logging
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from nl.config import ConfigError
from nl.data.documents import Document
from nl.data.prep import stdlib, synthetic
from nl.data.prep.sources_files import LocalFile, Record, Wanted, by_heading, of_row, records
from nl.data.prep.sources_hub import Hub, find_hub
from nl.data.prep.sources_labels import label_names, name_of
from nl.data.prep.sources_local import find_local, split_in
from nl.data.prep.sources_spec import EVERY, GENERATED, Source

LOG = logging.getLogger("nl.data")
UNIT_BYTES = 1 << 28
"""Small files are read together up to this many bytes on disk; a larger file is a unit."""
VERSIONS = (platform.python_version(), stdlib.VERSION, synthetic.VERSION)
"""What generated documents depend on besides their options."""


@dataclass
class Tally:
    """What became of the records of a source: ``read`` = documents + sum of ``reasons``."""

    read: int = 0
    documents: int = 0
    bytes: int = 0
    """UTF-8 size of the documents."""
    reasons: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    """Place of the first record of every reason."""
    columns: tuple[str, ...] = ()
    """Columns of the last record that had no text."""
    labels: Counter[str] = field(default_factory=Counter)
    """Rows of every label, those that were not wanted too."""

    def add(self, other: Tally) -> None:
        """Add what another unit of the same source counted."""
        self.read += other.read
        self.documents += other.documents
        self.bytes += other.bytes
        self.reasons.update(other.reasons)
        self.labels.update(other.labels)
        self.first = other.first | self.first
        self.columns = self.columns or other.columns

    def add_bad(self, record: Record) -> None:
        """Count a record that cannot be used; the first of a reason is logged by its place."""
        if record.reason not in self.first:
            self.first[record.reason] = record.place
            LOG.warning("%s: left out (%s)", record.place, record.reason)
        self.read += 1
        self.reasons[record.reason] += 1
        self.columns = record.columns or self.columns

    def leave_out(self, record: Record, label: str | None) -> None:
        """Count a row of another label, or of none."""
        if label is None:
            self.add_bad(Record(record.place, None, "no_label"))
            return
        self.read += 1
        self.reasons["other_label"] += 1
        self.labels[label] += 1


@dataclass(frozen=True)
class Unit:
    """A piece of a source that is read by one task: files, a hub shard or a generator."""

    origin: tuple[LocalFile, ...] | Hub | str
    number: int = 0
    count: int = 1

    @property
    def bytes(self) -> int:
        """Size on disk; 0 where it is not known."""
        return sum(f.bytes for f in self.origin) if isinstance(self.origin, tuple) else 0

    def identity(self) -> Any:
        """Plain data that changes when the input does: names, sizes and times of files."""
        if not isinstance(self.origin, tuple):
            if isinstance(self.origin, str):
                return [self.origin, *VERSIONS]
            return [self.origin.identity(), self.number, self.count]
        rows = [(f, f.path.stat()) for f in self.origin]
        return [[f.name, f.format, s.st_size, s.st_mtime_ns] for f, s in rows]


def units(source: Source, unit_bytes: int = UNIT_BYTES) -> tuple[Unit, ...]:
    """The units of a source; with a limit, or where order matters, there is one.

    Raises:
        ConfigError: nothing is there; the line says what was looked for and where.
    """
    if source.dataset in GENERATED:
        return (Unit(f"{source.dataset}:{source.subset or ''}"),)
    found = find_local(source.paths, source.split, source)
    if found is not None:
        whole = source.limited
        groups = [found] if whole else _grouped(found, unit_bytes)
        return tuple(Unit(group, i, len(groups)) for i, group in enumerate(groups))
    whole = source.limited or source.sample_by == "heading"
    counts = [(hub, 1 if whole else hub.shards) for hub in find_hub(source)]
    return tuple(Unit(hub, i, count) for hub, count in counts for i in range(count))


def _grouped(files: Sequence[LocalFile], limit: int) -> list[tuple[LocalFile, ...]]:
    groups: list[list[LocalFile]] = []
    size = 0
    for file in files:
        if not groups or size + file.bytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(file)
        size += file.bytes
    return [tuple(group) for group in groups]


def read_unit(source: Source, unit: Unit, tally: Tally | None = None) -> Iterator[Document]:
    """Documents of one unit in order.

    Args:
        source: what the unit is of.
        unit: what to read.
        tally: counts every record as it passes; what it counted before is skipped.

    Raises:
        ConfigError: a file that ends too early.
    """
    tally = Tally() if tally is None else tally
    most = float("inf") if source.max_mb is None else source.max_mb * 1e6
    wanted, names = source.wanted, label_names(source, unit.origin)
    stream = islice(_records(source, unit), tally.read, None)
    while source.max_records is None or tally.documents < source.max_records:
        if (record := next(stream, None)) is None:
            break
        size = _size(record)
        if size is None:
            broken = record.text is not None
            tally.add_bad(Record(record.place, None, "broken_utf8") if broken else record)
            continue
        if wanted is not None:
            label = name_of(record.label, names)
            if label != wanted:
                tally.leave_out(record, label)
                continue
        if tally.bytes + size > most:
            break
        if wanted is not None:
            tally.labels[wanted] += 1
        tally.read += 1
        tally.documents += 1
        tally.bytes += size
        yield Document(str(record.text), record.place, record.group, record.split)


def read_source(source: Source, tally: Tally | None = None) -> Iterator[Document]:
    """All documents of a source, unit after unit.

    Raises:
        ConfigError: see ``units`` and ``read_unit``, or no record at all could be used.
    """
    total = Tally() if tally is None else tally
    for unit in units(source):
        own = Tally()
        yield from read_unit(source, unit, own)
        total.add(own)
    check_any(source, total)


def check_any(source: Source, tally: Tally) -> None:
    """Refuse a source of which no record could be used.

    Raises:
        ConfigError: naming the reasons and the columns that exist.
    """
    if tally.documents:
        return
    if not tally.read:
        where = ", ".join(source.paths) or source.dataset
        raise ConfigError(f"{source.name}: no records at all in {where}; are its files empty?")
    if tally.labels:
        known = ", ".join(f"{label} ({n:,})" for label, n in sorted(tally.labels.items()))
        raise ConfigError(
            f"{source.name}: label: {source.wanted!r} in column {source.label_column!r}; none of "
            f"{tally.read:,} rows has it. Known: {known}."
        )
    reasons = ", ".join(f"{reason}: {n:,}" for reason, n in sorted(tally.reasons.items()))
    first = next(iter(tally.first.values()))
    columns = f" Columns that exist: {', '.join(tally.columns)}." if tally.columns else ""
    raise ConfigError(
        f"{source.name}: none of {tally.read:,} records has a text in column "
        f"{source.text_column!r} ({reasons}; the first is {first}).{columns} "
        "Set text_column (--text-column) or the format (--dataset)."
    )


def home_split(name: str) -> str:
    """The split of this house that a file's or a hub's name says; empty where it says none."""
    found = split_in(name)
    return "val" if found == "validation" else found or ""


def _size(record: Record) -> int | None:
    """UTF-8 size of the text; None if there is none, or it has half of a surrogate pair."""
    try:
        return None if record.text is None else len(record.text.encode())
    except UnicodeEncodeError:
        return None


def _records(source: Source, unit: Unit) -> Iterator[Record]:
    if isinstance(unit.origin, str):
        yield from _generated(source)
        return
    wanted = Wanted(source.text_column, source.sample_by, source.label_column)
    if isinstance(unit.origin, tuple):
        rows = (
            replace(record, split=home_split(file.name)) if source.split == EVERY else record
            for file in unit.origin
            for record in records(file, wanted)
        )
        lines = any(file.format not in ("text", "wikitext") for file in unit.origin)
    else:
        hub = unit.origin
        rows = (
            replace(record, split=home_split(hub.split)) if source.split == EVERY else record
            for i, row in enumerate(hub.rows(unit.number, unit.count))
            for record in [of_row(row, wanted, f"{hub.dataset}:{unit.number}:{i}")]
        )
        lines = True
    yield from by_heading(rows) if lines and source.sample_by == "heading" else rows


def _generated(source: Source) -> Iterator[Record]:
    if source.dataset == "stdlib":
        limit = None if source.max_mb is None else int(source.max_mb * 1e6)
        made = stdlib.stdlib_documents(source.subset or "", limit)
    else:
        made = synthetic.synthetic_documents(source.name, source.subset or "0")
    for document in made:
        yield Record(document.source, document.text, group=document.group)
