"""Parts: the files of a corpus as units of work, and the writer of one output part. Floor 1."""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from nl.config import ConfigError, writing
from nl.data.documents import Document, TextFile, jsonl_line, read_corpus, read_jsonl
from nl.data.files import sha256_file


@dataclass(frozen=True, kw_only=True)
class Part:
    """One file of a corpus."""

    split: str
    domain: str
    path: str
    """Where it lies."""
    info: TextFile

    def documents(self) -> Iterator[Document]:
        """Its documents, after its digest was found to be right.

        Raises:
            ConfigError: the file is gone or changed.
        """
        path = Path(self.path)
        if not path.is_file():
            raise ConfigError(f"{path}: no such file, but its manifest lists it; build it again.")
        if sha256_file(path) != self.info.sha256:
            raise ConfigError(
                f"{path}: sha256 differs from its manifest; remove the file and run the stage "
                "that wrote it again."
            )
        return read_jsonl(path)


def parts_of(corpus: Path) -> tuple[Part, ...]:
    """Every file of a corpus in corpus order: by split, domain and place in the list.

    Raises:
        ConfigError: no corpus.
    """
    path = corpus / "manifest.json"
    stamp = path.stat().st_mtime_ns if path.is_file() else 0
    return _listed(corpus, stamp)


@functools.lru_cache(maxsize=4)
def _listed(corpus: Path, stamp: int) -> tuple[Part, ...]:
    """Read once per process and state of the manifest: ranks look up their part here."""
    assert stamp >= 0
    return tuple(
        Part(split=split, domain=domain, path=str(corpus / info.file), info=info)
        for split, domains in read_corpus(corpus).splits.items()
        for domain, files in domains.items()
        for info in files
    )


class PartWriter:
    """Writes one JSONL file, one document in memory at a time; whole or absent.

    Args:
        work: directory of the stage; the scratch file lies in its ``tmp``.
        file: name below ``<work>/out``, such as ``all/prose/part_00000.jsonl``.
    """

    def __init__(self, work: Path, file: str) -> None:
        self._target = work / "out" / file
        self._file = file
        scratch = work / "tmp"
        with writing(scratch):
            scratch.mkdir(parents=True, exist_ok=True)
            handle, self._name = tempfile.mkstemp(dir=scratch)
        self._out = os.fdopen(handle, "wb")
        self._digest = hashlib.sha256()
        self._documents = self._bytes = 0
        self.info: TextFile | None = None
        """What was written, once the writer is closed."""

    def __enter__(self) -> PartWriter:
        return self

    def write(self, document: Document) -> int:
        """Append a document; returns the UTF-8 size of its text."""
        size = len(document.text.encode())
        self.write_line(jsonl_line(document), size)
        return size

    def write_line(self, line: str, size: int) -> None:
        """Append a line as it is; ``size`` is the UTF-8 size of its text."""
        data = line.encode()
        self._out.write(data)
        self._digest.update(data)
        self._documents += 1
        self._bytes += size

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._out.close()
            Path(self._name).unlink(missing_ok=True)
            return
        self._out.flush()
        os.fsync(self._out.fileno())
        self._out.close()
        Path(self._name).chmod(0o644)
        self._target.parent.mkdir(parents=True, exist_ok=True)
        Path(self._name).replace(self._target)
        self.info = TextFile(
            file=self._file,
            documents=self._documents,
            bytes=self._bytes,
            sha256=self._digest.hexdigest(),
        )


@dataclass
class Tally:
    """Documents and bytes in and out, drops by reason, of one rank or of a stage."""

    documents_in: int = 0
    bytes_in: int = 0
    documents_out: int = 0
    bytes_out: int = 0

    def read(self, size: int) -> None:
        """One document came in."""
        self.documents_in += 1
        self.bytes_in += size

    def kept(self, size: int) -> None:
        """One document went out."""
        self.documents_out += 1
        self.bytes_out += size


def part_record(
    tally: Tally, reasons: Mapping[str, int], domain: str, files: Sequence[tuple[str, TextFile]]
) -> dict[str, Any]:
    """What a rank hands to ``nl.data.prep.stage``.

    Args:
        tally: documents and bytes.
        reasons: dropped documents by reason; with ``documents_out`` they add up to
            ``documents_in``.
        domain: whose documents these were.
        files: (split, what was written) in order.
    """
    assert tally.documents_in == tally.documents_out + sum(reasons.values())
    return {
        "domain": domain,
        "counts": asdict(tally),
        "reasons": dict(sorted(reasons.items())),
        "files": [{"split": split, "domain": domain} | asdict(info) for split, info in files],
    }
