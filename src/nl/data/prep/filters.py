"""The filter stage: documents that are no good for training go, each with its reason. Floor 1.

A check is a function of the text that returns the reason to drop it or None. ``CHECKS`` is the
table of those that options switch on, in the order in which they are asked; ``--extra
file.py:function`` adds one without touching this file. Texts are never re-flowed.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nl.config import ConfigError
from nl.data.documents import Document, read_corpus
from nl.data.files import sha256_file
from nl.data.prep.engine import Executor
from nl.data.prep.parts import Part, PartWriter, Tally, part_record, parts_of
from nl.data.prep.stage import DROPPED, Ranks, Stage, run_stage

VERSION = 1
"""Raise it when a check decides differently."""
Check = Callable[[str], str | None]


@dataclass(frozen=True, kw_only=True)
class FilterOptions:
    """What is kept."""

    min_chars: int = 200
    """Shorter documents go."""
    max_chars: int = 10_000
    """Longer documents go; 0: no limit."""
    max_line_chars: int = 10_000
    """Documents with a longer line go (tables, minified code); 0: no limit."""
    max_broken: float = 0.0
    """Share of characters that were no UTF-8 (U+FFFD, lone surrogates) that is forgiven."""
    max_control: float = 0.001
    """Share of control characters (tab, line feed, form feed and return aside) that is forgiven."""
    keep_dropped: bool = False
    """Also write what is dropped, with its reason, below dropped/."""
    extra: tuple[str, ...] = ()
    """More checks, each ``module:function`` or ``file.py:function``; text in, reason out."""

    def __post_init__(self) -> None:
        top = self.max_chars or float("inf")
        checks = (
            (0 <= self.min_chars <= top, "min-chars", self.min_chars, "0 to --max-chars"),
            (self.max_chars >= 0, "max-chars", self.max_chars, ">= 0"),
            (self.max_line_chars >= 0, "max-line-chars", self.max_line_chars, ">= 0"),
            (0 <= self.max_broken <= 1, "max-broken", self.max_broken, "0 to 1"),
            (0 <= self.max_control <= 1, "max-control", self.max_control, "0 to 1"),
            (all(":" in e for e in self.extra), "extra", self.extra, "module:function"),
        )
        for good, name, value, allowed in checks:
            if not good:
                raise ConfigError(f"--{name}: {value}; allowed: {allowed}.")


Maker = Callable[[FilterOptions], Check | None]
CHECKS: dict[str, Maker] = {}
"""Makers of checks, asked in this order; None: these options do not want it."""


def check(maker: Maker) -> Maker:
    """Put a maker into the table under its own name."""
    CHECKS[maker.__name__] = maker
    return maker


@check
def empty(options: FilterOptions) -> Check:
    """Nothing but white space."""
    return lambda text: "empty" if not text.strip() else None


@check
def broken_utf8(options: FilterOptions) -> Check:
    """Characters that some reader could not decode."""

    def ask(text: str) -> str | None:
        broken = text.count("\ufffd")
        try:
            text.encode()
        except UnicodeEncodeError:
            return "broken_utf8"
        return "broken_utf8" if broken > options.max_broken * len(text) else None

    return ask


CONTROL = {c: None for c in (*range(32), *range(127, 160)) if chr(c) not in "\t\n\f\r"}


@check
def control_characters(options: FilterOptions) -> Check:
    """Binary data that happens to decode."""

    def ask(text: str) -> str | None:
        if text.isprintable():
            return None
        found = len(text) - len(text.translate(CONTROL))
        return "control_characters" if found > options.max_control * len(text) else None

    return ask


@check
def long_line(options: FilterOptions) -> Check | None:
    """A line longer than any that people write."""
    limit = options.max_line_chars
    if not limit:
        return None
    return lambda text: "long_line" if max(map(len, text.split("\n"))) > limit else None


@check
def too_short(options: FilterOptions) -> Check:
    """Fewer characters than asked for."""
    return lambda text: "too_short" if len(text) < options.min_chars else None


@check
def too_long(options: FilterOptions) -> Check | None:
    """More characters than asked for."""
    limit = options.max_chars
    return (lambda text: "too_long" if len(text) > limit else None) if limit else None


def extra_check(name: str) -> tuple[Check, str]:
    """A check by ``module:function`` or ``file.py:function``, and the digest of its source.

    Raises:
        ConfigError: no such module, file or function.
    """
    place, _, function = name.rpartition(":")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        found = getattr(module, function)
    except (ImportError, OSError, AttributeError) as error:
        raise ConfigError(f"--extra: {name}; not found ({error}).") from error
    return found, sha256_file(Path(str(module.__file__)))


def make_checks(options: FilterOptions) -> list[Check]:
    """The checks that these options want, in the order of the table, extra ones last."""
    made = [maker(options) for maker in CHECKS.values()]
    return [c for c in made if c is not None] + [extra_check(name)[0] for name in options.extra]


@dataclass(frozen=True, kw_only=True)
class FilterTask:
    """One rank: one part in, one part out."""

    corpus: Path
    work: Path
    options: FilterOptions
    by_domain: Mapping[str, FilterOptions] = field(default_factory=dict)

    def __call__(self, rank: int) -> dict[str, Any]:
        part = parts_of(self.corpus)[rank]
        options = self.by_domain.get(part.domain, self.options)
        checks, tally, reasons = make_checks(options), Tally(), Counter[str]()
        with (
            PartWriter(self.work, part.info.file) as out,
            _Dropped(self.work, part.info.file, options.keep_dropped) as dropped,
        ):
            for document, size in _sized(part):
                tally.read(size)
                reason = next((r for r in (c(document.text) for c in checks) if r), None)
                if reason is None:
                    tally.kept(out.write(document))
                else:
                    reasons[reason] += 1
                    dropped.write(document, reason)
        assert out.info is not None
        return part_record(tally, reasons, part.domain, [(part.split, out.info)])


def _sized(part: Part) -> Iterator[tuple[Document, int]]:
    for document in part.documents():
        yield document, len(document.text.encode(errors="surrogatepass"))


class _Dropped:
    """Writes what is dropped, if asked to."""

    def __init__(self, work: Path, file: str, wanted: bool) -> None:
        self._out = PartWriter(work, f"{DROPPED}/{file}") if wanted else None

    def write(self, document: Document, reason: str) -> None:
        if self._out is not None:
            row = {"reason": reason, "source": document.source, "text": document.text}
            self._out.write_line(json.dumps(row) + "\n", 0)

    def __enter__(self) -> _Dropped:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._out is not None:
            self._out.__exit__(*error)


def filter_corpus(
    corpus: Path,
    output: Path,
    options: FilterOptions,
    executor: Executor,
    by_domain: Mapping[str, FilterOptions] | None = None,
) -> tuple[dict[str, Any], bool]:
    """Filter every part of a corpus into a corpus of the same domains and files.

    Args:
        corpus: corpus directory, any splits.
        output: corpus directory; another one than ``corpus``.
        options: what is kept.
        executor: where ranks run.
        by_domain: other options for some domains.

    Returns:
        The log (``stage.json``) and whether anything was done.

    Raises:
        ConfigError: no corpus, a domain that it does not have, a changed part, no write access.
    """
    manifest = read_corpus(corpus)
    parts = parts_of(corpus)
    special = dict(by_domain or {})
    if unknown := set(special) - {part.domain for part in parts}:
        raise ConfigError(f"{sorted(unknown)}: no such domain in {corpus}/manifest.json.")
    stage = Stage(
        name="filter",
        version=VERSION,
        output=output,
        options=_plain(options) | {"domains": {k: _plain(v) for k, v in special.items()}},
        inputs={"corpus": sha256_file(corpus / "manifest.json")},
    )
    task = FilterTask(corpus=corpus.resolve(), work=stage.work, options=options, by_domain=special)

    def body(ranks: Ranks) -> list[dict[str, Any]]:
        return ranks.run(task, len(parts), [part.info.bytes for part in parts])

    return run_stage(
        stage,
        body,
        executor,
        name=manifest.name,
        recipe=manifest.recipe,
        splits=tuple(manifest.splits),
    )


def _plain(options: FilterOptions) -> dict[str, Any]:
    digests = {name: extra_check(name)[1] for name in options.extra}
    return asdict(options) | {"extra": digests}
