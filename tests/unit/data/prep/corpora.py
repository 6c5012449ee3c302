"""Small corpora of several parts for tests of the stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nl.config import unstructure
from nl.data.documents import SCHEMA, UNDIVIDED, CorpusManifest, Document, TextFile, encode_jsonl
from nl.data.files import sha256_file, sha256_text, write_json


def write_parts(root: Path, domains: Mapping[str, Sequence[Document]], per_part: int = 10) -> Path:
    """A corpus of the split ``all`` with ``per_part`` documents in a file."""
    listed: dict[str, tuple[TextFile, ...]] = {}
    for domain, documents in domains.items():
        files = []
        for number, start in enumerate(range(0, len(documents), per_part)):
            some = documents[start : start + per_part]
            name = f"{UNDIVIDED}/{domain}/part_{number:05d}.jsonl"
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(encode_jsonl(some))
            size = sum(len(d.text.encode()) for d in some)
            digest = sha256_file(root / name)
            files.append(TextFile(file=name, documents=len(some), bytes=size, sha256=digest))
        listed[domain] = tuple(files)
    manifest = CorpusManifest(schema=SCHEMA, name="small", splits={UNDIVIDED: listed})
    write_json(root / "manifest.json", unstructure(manifest))
    return root


def numbered(domain: str, count: int) -> list[Document]:
    """Documents of 1 to 9 lines of 40 hex digits, no two alike."""
    return [
        Document(
            "\n".join(sha256_text(f"{domain} {n} {i}")[:40] for i in range(1 + n % 9)),
            f"{domain}:{n}",
        )
        for n in range(count)
    ]


def contents(root: Path) -> dict[str, bytes]:
    """Every file of a finished stage that must not depend on how it was run."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in ("stage.json", ".lock")
    }
