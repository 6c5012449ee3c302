"""The filter stage: documents that are no good for training go, each with its reason. Floor 1.

One output part per input part. Texts are never re-flowed: what is kept is kept to the letter,
unless ``pii`` asks for replacements.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from nl.config import ConfigError
from nl.data.documents import Document, read_corpus, read_jsonl
from nl.data.files import sha256_file
from nl.data.prep import language, quality
from nl.data.prep.command import LOG
from nl.data.prep.engine import Executor
from nl.data.prep.filters_checks import FilterOptions, asked_by, extra_check, make_checks
from nl.data.prep.parts import Part, PartWriter, Tally, part_record, parts_of
from nl.data.prep.replace import check_apart
from nl.data.prep.stage import DROPPED, Ranks, Record, Stage, counted, run_stage

VERSION = 1
"""Raise it when a check decides differently."""
REGISTERED = (language.language, quality.quality)
"""Checks of other modules; naming them puts them into the table after the plain ones."""


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
        edit, edited = quality.pii_edit() if options.pii else None, 0
        with (
            PartWriter(self.work, part.info.file) as out,
            _Dropped(self.work, part.info.file, options.keep_dropped) as dropped,
        ):
            for document, size in _sized(part):
                tally.read(size)
                reason = next((r for r in (c(document.text) for c in checks) if r), None)
                if reason is not None:
                    reasons[reason] += 1
                    dropped.write(document, reason)
                    continue
                text = edit(document.text) if edit else document.text
                edited += text != document.text
                tally.kept(out.write(replace(document, text=text)))
        assert out.info is not None
        record = part_record(tally, reasons, part.domain, [(part.split, out.info)])
        return record | ({"notes": {"pii_replaced": edited}} if edit else {})


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
        ConfigError: no corpus, a domain that it does not have, a changed part, no write access,
            an output that is the corpus or something else's.
        NothingKeptError: no document of the corpus passes; the output stays as it was.
    """
    manifest = read_corpus(corpus)
    check_apart(corpus, output)
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
        records = ranks.run(task, len(parts), [part.info.bytes for part in parts])
        check_kept(corpus, records, options, special)
        return cut(records, options.limit, stage.work) if options.limit else records

    return run_stage(
        stage,
        body,
        executor,
        name=manifest.name,
        recipe=manifest.recipe,
        splits=tuple(manifest.splits),
    )


class NothingKeptError(ConfigError):
    """No document of a corpus passes its filters."""


def check_kept(
    corpus: Path,
    records: Sequence[Record],
    options: FilterOptions,
    by_domain: Mapping[str, FilterOptions],
) -> None:
    """Refuse a corpus of which nothing is left; warn of such a domain.

    Raises:
        NothingKeptError: with the reasons, the most frequent first, and the options behind them.
    """
    found, lines = counted(records), []
    for domain, row in found["domains"].items():
        counts = row["counts"]
        if counts["documents_in"] and not counts["documents_out"]:
            reasons = _explained(row["reasons"], by_domain.get(domain, options))
            lines.append(
                f"none of {counts['documents_in']:,} documents of {domain} is kept: {reasons}"
            )
    if lines and not found["counts"]["documents_out"]:
        raise NothingKeptError(f"{corpus}: {'; '.join(lines)}. Change what dropped most.")
    for line in lines:
        LOG.warning("warning: %s: %s", corpus, line)


def _explained(reasons: Mapping[str, int], options: FilterOptions) -> str:
    """Reasons with their counts and options, the most frequent first."""
    found = []
    for reason, count in sorted(reasons.items(), key=lambda pair: -pair[1]):
        behind = asked_by(reason, options)
        found.append(f"{reason} {count:,}" + (f" ({behind})" if behind else ""))
    return ", ".join(found)


def cut(records: Sequence[Record], limit: int, work: Path) -> list[dict[str, Any]]:
    """Records and files of the first ``limit`` kept documents; the reason of the rest is limit.

    Cut off and called again, it comes to the same.
    """
    cut_records: list[dict[str, Any]] = []
    left = limit
    for record in records:
        counts, (row,) = record["counts"], record["files"]
        kept = min(left, counts["documents_out"])
        left -= kept
        if kept == counts["documents_out"]:
            cut_records.append(dict(record))
            continue
        path = work / "out" / row["file"]
        with PartWriter(work, row["file"]) as out:
            for document in itertools.islice(read_jsonl(path), kept):
                out.write(document)
        assert out.info is not None
        reasons = Counter(record["reasons"]) + Counter(limit=counts["documents_out"] - kept)
        tally = Tally(counts["documents_in"], counts["bytes_in"], kept, out.info.bytes)
        short = part_record(tally, reasons, record["domain"], [(row["split"], out.info)])
        cut_records.append({**record, **short})
    return cut_records


def _plain(options: FilterOptions) -> dict[str, Any]:
    digests = {name: extra_check(name)[1] for name in options.extra}
    model = sha256_file(Path(options.lang_model)) if options.lang_model else ""
    return asdict(options) | {"extra": digests, "lang_model": model}
