"""Raw text documents: JSONL on disk, grouped by split and domain in a corpus directory. Floor 1.

A corpus directory holds JSONL files (one document per line: ``id``, ``source``, ``text`` and, if
it has them, ``group`` and ``split``; plain, ``.gz`` or ``.zst``) and ``manifest.json``, which lists
the files of every split and domain in order, with counts and SHA-256 digests. Before documents are
divided, the only split is ``all``.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from nl.config import ConfigError, structure
from nl.data.files import read_json, sha256_text

SPLITS = ("train", "val", "test")
UNDIVIDED = "all"
"""The split of a corpus that was not divided yet."""
SCHEMA = 2
Files = Mapping[str, Mapping[str, "tuple[TextFile, ...]"]]
"""``files[split][domain]``."""
RECIPE = (
    "Build the standard-library corpus with: bash scripts/data/run_sample.sh; the mixture of "
    "pilot, mid and target with: bash scripts/data/run_full.sh; shard any other corpus with "
    "scripts/data/shard_corpus.py."
)
"""How a data directory of shards is built."""
CORPUS_RECIPE = (
    "Build the standard-library corpus with: bash scripts/data/run_sample.sh; the mixture of "
    "pilot, mid and target with: bash scripts/data/run_full.sh; a corpus of other text with: "
    "scripts/data/filter_corpus.py --dataset <format or hub name> --output-path <corpus>."
)
"""How a corpus of text is built."""


@dataclass(frozen=True)
class Document:
    """One text and where it came from."""

    text: str
    source: str
    group: str = ""
    """Documents of one group (the pieces of one file) share a split; empty: a group of its own."""
    split: str = ""
    """Where its source had put it; empty: its hash decides."""

    @property
    def id(self) -> str:
        """Hex SHA-256 of the text: equal texts are one document."""
        return sha256_text(self.text)


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """One JSONL file of a corpus; ``bytes`` is the UTF-8 size of the texts alone."""

    file: str
    documents: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class CorpusManifest:
    """What a corpus directory holds: ``splits[split][domain]`` are its files in order."""

    schema: int
    name: str
    recipe: dict[str, str] = field(default_factory=dict)
    splits: dict[str, dict[str, tuple[TextFile, ...]]]


def total_documents(files: Iterable[TextFile]) -> int:
    """Documents in all of ``files``."""
    return sum(file.documents for file in files)


def total_bytes(files: Iterable[TextFile]) -> int:
    """UTF-8 size of the texts in all of ``files``."""
    return sum(file.bytes for file in files)


def encode_jsonl(documents: Iterable[Document]) -> bytes:
    """The bytes of a JSONL file, the same for the same documents."""
    return "".join(map(jsonl_line, documents)).encode()


def jsonl_line(document: Document) -> str:
    """A line of a JSONL file, with its end."""
    row = {"id": document.id, "source": document.source, "text": document.text}
    if document.group:
        row["group"] = document.group
    if document.split:
        row["split"] = document.split
    return json.dumps(row, ensure_ascii=False) + "\n"


def read_jsonl(path: Path) -> Iterator[Document]:
    """Documents of one JSONL file, in order, one line in memory at a time.

    Raises:
        ConfigError: a missing file, or a line without a text, by its number.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file. {CORPUS_RECIPE}")
    number, unreadable = 0, _unreadable(path)
    try:
        with open_text(path) as file:
            for number, line in enumerate(file, 1):
                yield _document(line, path, number)
    except unreadable as error:
        raise ConfigError(
            f"{path}: not readable after line {number} ({error}); is it whole?"
        ) from error


def open_text(path: Path) -> TextIO:
    """A text file, decompressed on the way if its name ends in ``.gz`` or ``.zst``."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="\n")
    if path.suffix == ".zst":
        import zstandard

        raw = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), closefd=True)
        return io.TextIOWrapper(raw, encoding="utf-8", newline="\n")
    return path.open(encoding="utf-8", newline="\n")


def _unreadable(path: Path) -> tuple[type[Exception], ...]:
    """What reading a torn or foreign file raises."""
    errors = (OSError, EOFError, zlib.error, UnicodeDecodeError)
    if path.suffix != ".zst":
        return errors
    import zstandard

    return (*errors, zstandard.ZstdError)


def _document(line: str, path: Path, number: int) -> Document:
    try:
        row = json.loads(line)
        text = row["text"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path}, line {number}: expected a JSON object with 'text'.") from error
    if not isinstance(text, str):
        raise ConfigError(f"{path}, line {number}: 'text' is no string.")
    source = str(row.get("source", f"{path.name}:{number}"))
    more = {key: str(row.get(key, "")) for key in ("group", "split")}
    return Document(text=text, source=source, **more)


def read_corpus(corpus: Path) -> CorpusManifest:
    """The manifest of a corpus directory.

    Raises:
        ConfigError: no manifest, or one that does not say what it must.
    """
    path = corpus / "manifest.json"
    data = read_json(path, CORPUS_RECIPE)
    if isinstance(data, dict) and "tokenizer" in data:
        raise ConfigError(
            f"{corpus}: is a data directory of shards, not a corpus of text; what it was made from "
            f"is usually {corpus / 'corpus'}."
        )
    if isinstance(data, dict) and data.get("schema") == 1:
        data = upgraded(data, lambda text: [text])
    manifest = structure(CorpusManifest, data, str(path))
    check_schema(manifest.schema, path)
    return manifest


def upgraded(data: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """A manifest of schema 1, which had one file of text per domain, as one of schema 2.

    Args:
        data: the manifest.
        change: makes the entry of one domain; what is malformed is left as it is.
    """
    splits = data.get("splits")
    if not isinstance(splits, dict) or not all(isinstance(d, dict) for d in splits.values()):
        return data
    new = {split: {k: change(v) for k, v in domains.items()} for split, domains in splits.items()}
    return data | {"schema": SCHEMA, "splits": new}


def check_schema(found: int, path: Path) -> None:
    """Refuse a manifest of another schema.

    Raises:
        ConfigError: naming the file and both numbers.
    """
    if found != SCHEMA:
        raise ConfigError(f"{path}: schema {found}; this version reads schema {SCHEMA}. {RECIPE}")
