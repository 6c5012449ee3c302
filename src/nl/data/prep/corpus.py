"""Write a corpus directory: no exact duplicates, hashed into splits, with digests. Floor 1."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nl.config import unstructure
from nl.data.documents import (
    SCHEMA,
    SPLITS,
    CorpusManifest,
    Document,
    TextFile,
    encode_jsonl,
)
from nl.data.files import move_into, sha256_file, staging, write_json

PERCENT = {"train": 80, "val": 10, "test": 10}


@dataclass(frozen=True)
class Work:
    """Documents that belong together (the pieces of one file) and share a split."""

    documents: tuple[Document, ...]

    @property
    def key(self) -> str:
        """Hex SHA-256 of all its text: decides the split and the order under a size limit."""
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(document.text.encode())
        return digest.hexdigest()

    @property
    def bytes(self) -> int:
        """UTF-8 size of its text."""
        return sum(len(d.text.encode()) for d in self.documents)


def split_of(key: str) -> str:
    """The split of a hex digest: 80 % train, 10 % val, 10 % test."""
    place = int(key[:16], 16) % 100
    for name in SPLITS[:-1]:
        if place < PERCENT[name]:
            return name
        place -= PERCENT[name]
    return SPLITS[-1]


def distinct(works: Iterable[Work], seen: set[str]) -> list[Work]:
    """The works without documents whose text came before; ``seen`` grows by what is kept."""
    kept = []
    for work in works:
        fresh = []
        for document in work.documents:
            if document.id not in seen:
                seen.add(document.id)
                fresh.append(document)
        if fresh:
            kept.append(Work(tuple(fresh)))
    return kept


def limited(works: Sequence[Work], limit_bytes: int) -> list[Work]:
    """At most ``limit_bytes`` of text: the works of lowest key, in their original order."""
    chosen, size = set(), 0
    for key, number in sorted((work.key, i) for i, work in enumerate(works)):
        size += works[number].bytes
        if size > limit_bytes:
            break
        chosen.add(key)
    return [work for work in works if work.key in chosen]


def write_corpus(
    output: Path,
    name: str,
    domains: Mapping[str, Sequence[Work]],
    *,
    limit_bytes: int,
    recipe: Mapping[str, str],
) -> CorpusManifest:
    """Write ``<output>/<split>/<domain>.jsonl`` and the manifest, whole or not at all.

    Args:
        output: corpus directory; its splits are replaced.
        name: name of the corpus.
        domains: works per domain; a text that occurs twice stays where it came first.
        limit_bytes: UTF-8 bytes of text per domain.
        recipe: what made it, for the manifest.

    Returns:
        The manifest.
    """
    seen: set[str] = set()
    splits: dict[str, dict[str, tuple[TextFile, ...]]] = {split: {} for split in SPLITS}
    with staging(output) as folder:
        for domain, works in domains.items():
            rows: dict[str, list[Document]] = {split: [] for split in SPLITS}
            for work in limited(distinct(works, seen), limit_bytes):
                rows[split_of(work.key)].extend(work.documents)
            for split in SPLITS:
                file = folder / split / f"{domain}.jsonl"
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(encode_jsonl(rows[split]))
                text = TextFile(
                    file=f"{split}/{domain}.jsonl",
                    documents=len(rows[split]),
                    bytes=sum(len(d.text.encode()) for d in rows[split]),
                    sha256=sha256_file(file),
                )
                splits[split][domain] = (text,)
        manifest = CorpusManifest(schema=SCHEMA, name=name, recipe=dict(recipe), splits=splits)
        (output / "manifest.json").unlink(missing_ok=True)
        for split in SPLITS:
            move_into(folder / split, output / split)
    write_json(output / "manifest.json", unstructure(manifest))
    return manifest
