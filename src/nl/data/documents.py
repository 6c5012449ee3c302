"""Raw text documents: JSONL on disk, grouped by split and domain in a corpus directory. Floor 1.

A corpus directory holds ``<split>/<domain>.jsonl`` (one document per line: ``id``, ``source``,
``text``) and ``manifest.json`` with counts and SHA-256 digests.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nl.config import ConfigError, structure
from nl.data.files import read_json, sha256_text

SPLITS = ("train", "val", "test")
RECIPE = (
    "Build the standard-library corpus with: bash scripts/data/run_sample.sh; "
    "shard any other corpus with scripts/data/shard_corpus.py."
)


@dataclass(frozen=True)
class Document:
    """One text and where it came from."""

    text: str
    source: str

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
    """What a corpus directory holds: ``splits[split][domain]``."""

    schema: int
    name: str
    recipe: dict[str, str] = field(default_factory=dict)
    splits: dict[str, dict[str, TextFile]]


def encode_jsonl(documents: Iterable[Document]) -> bytes:
    """The bytes of a JSONL file, the same for the same documents."""
    rows = ({"id": d.id, "source": d.source, "text": d.text} for d in documents)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def read_jsonl(path: Path) -> Iterator[Document]:
    """Documents of one JSONL file, in order, one line in memory at a time.

    Raises:
        ConfigError: a missing file, or a line without a text, by its number.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file. {RECIPE}")
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                text = row["text"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ConfigError(
                    f"{path}, line {number}: expected a JSON object with 'text'."
                ) from error
            if not isinstance(text, str):
                raise ConfigError(f"{path}, line {number}: 'text' is no string.")
            yield Document(text=text, source=str(row.get("source", f"{path.name}:{number}")))


def read_corpus(corpus: Path) -> CorpusManifest:
    """The manifest of a corpus directory.

    Raises:
        ConfigError: no manifest, or one that does not say what it must.
    """
    path = corpus / "manifest.json"
    manifest = structure(CorpusManifest, read_json(path, RECIPE), str(path))
    if manifest.schema != 1:
        raise ConfigError(f"{path}: schema {manifest.schema}; this version reads schema 1.")
    return manifest
