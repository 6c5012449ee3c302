"""Local files of text, record by record; a bad record is named, not fatal. Floor 1.

Nothing here holds more than one record (text), one batch of rows (parquet, arrow) or one JSON array
in memory. A file that ends too early is an error, a record that cannot be read is not.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from nl.config import ConfigError
from nl.data.prep.extras import needed

MAX_RECORD = 1 << 28
"""Bytes of one line of JSON or text; a longer one is counted and skipped."""
ROWS = 256
"""Rows of a columnar file that are in memory at once."""
BLOCK = 1 << 20
FORMATS = ("json", "parquet", "arrow", "text", "wikitext")
SUFFIXES = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".tokens": "wikitext",
    ".raw": "wikitext",
}
PACKED = (".gz", ".zst")
HEADING = re.compile(r" = [^=\s].* = ?\n?")
"""A heading of the first level in WikiText; deeper ones have more signs."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a source; ``text`` is None where ``reason`` says why it cannot be used."""

    place: str
    text: str | None
    reason: str = ""
    columns: tuple[str, ...] = ()
    group: str = ""
    label: Any = None
    split: str = ""


@dataclass(frozen=True)
class LocalFile:
    """One file of a source: ``name`` is its path below what was asked for."""

    path: Path
    name: str
    format: str

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return self.path.stat().st_size


def format_of(path: Path) -> str | None:
    """The format that a name's ending says, compressed or not."""
    return SUFFIXES.get(inner_suffix(path))


def inner_suffix(path: Path) -> str:
    """The ending of a name without the compression's: ``.json`` of ``a.json.gz``."""
    plain = path.with_suffix("") if path.suffix in PACKED else path
    return plain.suffix.lower()


class Wanted(NamedTuple):
    """What is read of a row: the columns of its text and, if any, of its label."""

    text: str
    sample_by: str = "line"
    label: str | None = None


def records(file: LocalFile, wanted: Wanted) -> Iterator[Record]:
    """The records of one file in order.

    Args:
        file: what to read.
        wanted: the columns (keys) that hold text and label; for text, what one document is:
            ``line``, ``paragraph``, ``document`` or ``heading`` (WikiText).

    Raises:
        ConfigError: the file ends too early, is of another format, or a package is missing.
    """
    number = 0
    try:
        for record in _READERS[file.format](file, wanted):
            number += 1
            yield record
    except ConfigError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ConfigError(
            f"{file.path}: not readable as {file.format} after record {number} ({error}); "
            "mend the file or take it out of the source."
        ) from error


def by_heading(lines: Iterator[Record]) -> Iterator[Record]:
    """Lines of WikiText joined to articles; each begins at a heading of the first level."""
    article: list[str] = []
    place = ""
    for line in lines:
        if line.text is None:
            yield line
            continue
        if HEADING.fullmatch(line.text) and article:
            yield from _joined(article, place)
            article = []
        if not article:
            place = line.place
        article.append(line.text if line.text.endswith("\n") else line.text + "\n")
    yield from _joined(article, place)


def _joined(lines: list[str], place: str) -> Iterator[Record]:
    text = "".join(lines).strip("\n")
    if text.strip():
        yield Record(place, text)


def _text(file: LocalFile, wanted: Wanted) -> Iterator[Record]:
    sample_by = wanted.sample_by
    with open_binary(file.path) as raw:
        if raw.peek(3)[:3] == codecs.BOM_UTF8:
            raw.read(3)
        if sample_by == "document":
            yield decoded(raw.read(), file.name)
            return
        lines = (decoded(line, f"{file.name}:{n}") for n, line in numbered_lines(raw))
        if sample_by == "heading":
            yield from by_heading(lines)
        elif sample_by == "paragraph":
            yield from _paragraphs(lines)
        else:
            yield from (Record(r.place, r.text and r.text.rstrip("\r\n"), r.reason) for r in lines)


def _wikitext(file: LocalFile, wanted: Wanted) -> Iterator[Record]:
    return _text(file, wanted._replace(sample_by="heading"))


def _paragraphs(lines: Iterator[Record]) -> Iterator[Record]:
    block: list[str] = []
    place = ""
    for line in lines:
        if line.text is None:
            yield line
        elif line.text.strip():
            place = place if block else line.place
            block.append(line.text)
        else:
            yield from _joined(block, place)
            block = []
    yield from _joined(block, place)


def _json(file: LocalFile, wanted: Wanted) -> Iterator[Record]:
    with open_binary(file.path) as raw:
        first = raw.peek(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
        if first == b"[" and inner_suffix(file.path) == ".json":
            for number, row in enumerate(json.load(raw), 1):
                yield of_row(row, wanted, f"{file.name}:{number}")
            return
        for number, line in numbered_lines(raw):
            place = f"{file.name}:{number}"
            if line is not None and not line.strip():
                continue
            record = decoded(line, place)
            if record.text is None:
                yield record
                continue
            try:
                row = json.loads(record.text.removeprefix("\ufeff"))
            except (ValueError, RecursionError):
                yield Record(place, None, "not_json")
                continue
            yield of_row(row, wanted, place)


def _parquet(file: LocalFile, wanted: Wanted) -> Iterator[Record]:
    pq = needed("pyarrow.parquet", "data")
    # Row group by row group with a small buffer: read at one go, memory grows with the file.
    with pq.ParquetFile(file.path, buffer_size=BLOCK, pre_buffer=False) as table:
        names = tuple(table.schema_arrow.names)
        columns = [column for column in (wanted.text, wanted.label) if column is not None]
        if not set(columns) <= set(names):
            for number in range(table.metadata.num_rows):
                yield Record(f"{file.name}:{number + 1}", None, "no_column", names)
            return
        options = {"batch_size": ROWS, "columns": columns, "use_threads": False}
        batches = (
            tuple(batch.column(column) for column in columns)
            for group in range(table.num_row_groups)
            for batch in table.iter_batches(row_groups=[group], **options)
        )
        yield from _columnar(batches, file.name)


def _arrow(file: LocalFile, wanted: Wanted) -> Iterator[Record]:
    pa = needed("pyarrow", "data")
    with pa.memory_map(str(file.path)) as raw:
        if raw.read(6) == b"ARROW1":
            table = pa.ipc.open_file(raw)
            batches = (table.get_batch(i) for i in range(table.num_record_batches))
        else:
            raw.seek(0)
            table = pa.ipc.open_stream(raw)
            batches = iter(table)
        names = tuple(table.schema.names)
        columns = [column for column in (wanted.text, wanted.label) if column is not None]
        if not set(columns) <= set(names):
            rows = sum(batch.num_rows for batch in batches)
            for number in range(rows):
                yield Record(f"{file.name}:{number + 1}", None, "no_column", names)
            return
        checked = (tuple(_checked(pa, batch.column(c)) for c in columns) for batch in batches)
        yield from _columnar(checked, file.name)


def _checked(pa: Any, column: Any) -> Any:
    """The column, its offsets inside its buffers; Arrow itself would read on past their end.

    Raises:
        pyarrow.ArrowInvalid: a damaged file.
    """
    kinds = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
    # As bytes, because texts that are not UTF-8 are counted one by one.
    plain = column.view(kinds[column.type]) if column.type in kinds else column
    plain.validate(full=True)
    return column


def _columnar(batches: Iterator[tuple[Any, ...]], name: str) -> Iterator[Record]:
    """Batches of one or two columns: texts and, if asked for, labels."""
    number = 0
    for batch in batches:
        for start in range(0, len(batch[0]), ROWS):
            values = [_values(column.slice(start, ROWS)) for column in batch]
            labels = values[1] if values[1:] else [None] * len(values[0])
            for value, label in zip(values[0], labels, strict=True):
                number += 1
                place = f"{name}:{number}"
                if isinstance(value, str):
                    yield Record(place, value, label=label)
                else:
                    broken = isinstance(value, UnicodeDecodeError)
                    yield Record(place, None, "broken_utf8" if broken else "not_a_string")


def _values(column: Any) -> list[Any]:
    """Python values; a string that is not UTF-8 is the error that it raised."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        values: list[Any] = []
        for cell in column:
            try:
                values.append(cell.as_py())
            except UnicodeDecodeError as error:
                values.append(error)
        return values


_READERS: dict[str, Callable[[LocalFile, Wanted], Iterator[Record]]] = {
    "json": _json,
    "parquet": _parquet,
    "arrow": _arrow,
    "text": _text,
    "wikitext": _wikitext,
}


def of_row(row: Any, wanted: Wanted, place: str) -> Record:
    """The record of one row: its text and label, or why there is none."""
    if not isinstance(row, dict):
        return Record(place, None, "no_object")
    if wanted.text not in row or (wanted.label is not None and wanted.label not in row):
        return Record(place, None, "no_column", tuple(map(str, row)))
    if not isinstance(row[wanted.text], str):
        return Record(place, None, "not_a_string", tuple(map(str, row)))
    return Record(place, row[wanted.text], label=row.get(wanted.label))


def decoded(line: bytes | None, place: str) -> Record:
    """A line as text; None stands for one that was too long to be read."""
    if line is None:
        return Record(place, None, "record_too_long")
    try:
        return Record(place, line.decode())
    except UnicodeDecodeError:
        return Record(place, None, "broken_utf8")


def numbered_lines(raw: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Lines with their numbers, from 1; one of more than ``MAX_RECORD`` bytes is None."""
    number = 0
    while line := raw.readline(MAX_RECORD):
        number += 1
        if len(line) < MAX_RECORD or line.endswith(b"\n"):
            yield number, line
            continue
        while rest := raw.readline(BLOCK):
            if rest.endswith(b"\n"):
                break
        yield number, None


def open_binary(path: Path) -> Any:
    """The bytes of a file, decompressed on the way if its name ends in ``.gz`` or ``.zst``."""
    if path.suffix == ".gz":
        return io.BufferedReader(gzip.open(path, "rb"), BLOCK)
    if path.suffix == ".zst":
        return io.BufferedReader(ZstdReader(path), BLOCK)
    return path.open("rb", buffering=BLOCK)


class ZstdReader(io.RawIOBase):
    """A ``.zst`` file of any number of frames; unlike zstandard's own, it refuses half a frame."""

    def __init__(self, path: Path) -> None:
        self._zstd = needed("zstandard", "data")
        self._file = path.open("rb")
        self._frame: Any = None
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer``; 0 at the end."""
        while not self._ready:
            data = (self._frame.unused_data if self._frame and self._frame.eof else b"") or (
                self._file.read(BLOCK // 8)
            )
            if not data:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("the last frame is not whole")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = self._zstd.ZstdDecompressor().decompressobj()
            try:
                self._ready = self._frame.decompress(data)
            except self._zstd.ZstdError as error:
                raise EOFError(str(error)) from error
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()
