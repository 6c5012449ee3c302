"""The divide stage: documents go to train, val and test by a hash of their group. Floor 1.

A document's split depends on its group (or, without one, on its text) and the shares alone, so it
stays where it is when documents are added, and pieces of one file stay together.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nl.config import ConfigError
from nl.data.documents import SPLITS, UNDIVIDED, Document, read_corpus
from nl.data.files import sha256_file, sha256_text
from nl.data.prep.engine import Executor
from nl.data.prep.parts import PartWriter, Tally, part_record, parts_of
from nl.data.prep.stage import Ranks, Stage, run_stage

VERSION = 1
"""Raise it when a document goes elsewhere."""


@dataclass(frozen=True, kw_only=True)
class DivideOptions:
    """Shares of the held-out splits."""

    val: float = 0.1
    """Share of groups that goes to val."""
    test: float = 0.1
    """Share of groups that goes to test."""

    def __post_init__(self) -> None:
        for name in ("val", "test"):
            share = getattr(self, name)
            if not 0 <= share < 1:
                raise ConfigError(f"--{name}: {share}; allowed: >= 0 and < 1.")
        if self.val + self.test >= 1:
            raise ConfigError(f"--val: {self.val} and --test: {self.test}; together below 1.")


def split_of(document: Document, options: DivideOptions) -> str:
    """The split of a document. Raising the share of val moves nothing out of test."""
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
                    writer = PartWriter(self.work, f"{split}/{name}")
                    writers[split] = open_files.enter_context(writer)
                size = writers[split].write(document)
                tally.read(size)
                tally.kept(size)
        files = [(split, writers[split].info) for split in SPLITS if split in writers]
        return part_record(tally, {}, part.domain, [(s, info) for s, info in files if info])


def divide_corpus(
    corpus: Path, output: Path, options: DivideOptions, executor: Executor
) -> tuple[dict[str, Any], bool]:
    """Write an undivided corpus as one with train, val and test.

    Returns:
        The log (``stage.json``) and whether anything was done.

    Raises:
        ConfigError: no corpus, one that is divided, a changed part, no write access.
    """
    manifest = read_corpus(corpus)
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
        return ranks.run(task, len(parts), [part.info.bytes for part in parts])

    return run_stage(
        stage, body, executor, name=manifest.name, recipe=manifest.recipe, splits=SPLITS
    )
