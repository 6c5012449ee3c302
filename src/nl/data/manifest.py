"""The manifest of a tokenized data directory: what it holds, read strictly. Floor 1."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nl.config import ConfigError, structure
from nl.data.documents import RECIPE, Document, TextFile, check_schema, read_jsonl, upgraded
from nl.data.files import read_json, sha256_file
from nl.data.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True, kw_only=True)
class TokenizerInfo:
    """The tokenizer of a data directory; ``path`` is relative to it, None means raw bytes."""

    path: str | None
    sha256: str
    vocab_size: int


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One shard file, relative to the data directory.

    ``blocks`` is the SHA-256 of the table of block digests at its end; empty for a shard of
    format version 1, which has none.
    """

    file: str
    tokens: int
    documents: int
    sha256: str
    dtype: Literal["uint16", "uint32"]
    max_id: int
    blocks: str = ""


@dataclass(frozen=True, kw_only=True)
class DomainInfo:
    """One domain of one split; ``bytes`` is the UTF-8 size of its text, without EOS.

    ``texts`` are the files that were tokenized, in the order of the shards.
    """

    shards: tuple[ShardInfo, ...]
    tokens: int
    documents: int
    bytes: int
    texts: tuple[TextFile, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DataManifest:
    """Everything in a data directory: ``splits[split][domain]``."""

    schema: int
    name: str
    tokenizer: TokenizerInfo
    splits: dict[str, dict[str, DomainInfo]]
    inputs: dict[str, str] = field(default_factory=dict)

    def domain(self, split: str, domain: str, path: Path) -> DomainInfo:
        """One domain of one split.

        Raises:
            ConfigError: naming the directory and the splits or domains that exist.
        """
        if split not in self.splits:
            raise ConfigError(f"{path}: no split {split!r}. Known: {', '.join(self.splits)}.")
        domains = self.splits[split]
        if domain not in domains:
            known = ", ".join(domains)
            raise ConfigError(f"{path}: no domain {domain!r} in split {split!r}. Known: {known}.")
        return domains[domain]


def read_manifest(path: str | Path) -> DataManifest:
    """The manifest of the data directory ``path``.

    Raises:
        ConfigError: no manifest (with the recipe that builds it), or a malformed one.
    """
    file = Path(path) / "manifest.json"
    data = read_json(file, RECIPE)
    if isinstance(data, dict) and "tokenizer" not in data and "recipe" in data:
        raise ConfigError(
            f"{path}: is a corpus of text, not a data directory of shards; make one of it with "
            f"scripts/data/shard_corpus.py --corpus {path}."
        )
    if isinstance(data, dict) and data.get("schema") == 1:
        data = upgraded(data, _with_texts)
    manifest = structure(DataManifest, data, str(file))
    check_schema(manifest.schema, file)
    return manifest


def _with_texts(domain: Any) -> Any:
    if not isinstance(domain, dict) or "text" not in domain:
        return domain
    return {k: v for k, v in domain.items() if k != "text"} | {"texts": [domain["text"]]}


def data_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer that made the shards of ``path``, its digest checked."""
    info = read_manifest(path).tokenizer
    file = "bytes" if info.path is None else str(Path(path) / info.path)
    return load_tokenizer(file, sha256=info.sha256)


def documents(
    path: str | Path, split: str, domain: str, *, verify: bool = True
) -> Iterator[Document]:
    """The raw text documents behind one domain of one split, in shard order.

    Args:
        path: data directory.
        split: ``train``, ``val`` or ``test``.
        domain: a domain of that split.
        verify: compare the SHA-256 of the text with the manifest first.

    Raises:
        ConfigError: unknown split or domain, or the text is missing or was changed.
    """
    info = read_manifest(path).domain(split, domain, Path(path))
    texts = info.texts
    if info.documents and not texts:
        raise ConfigError(f"{path}: its shards were imported; the text of {domain!r} is not here.")
    files = [Path(path) / text.file for text in texts]
    for file, text in zip(files, texts, strict=True):
        if verify and file.is_file() and sha256_file(file) != text.sha256:
            raise ConfigError(f"{file}: its sha256 is not the manifest's; build the data again.")
    return itertools.chain.from_iterable(map(read_jsonl, files))
