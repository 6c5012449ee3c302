"""A manifest end to end: ingest, filter, dedup, divide, tokenizer, shard. Floor 1.

Every data set is ingested and filtered by itself, so that adding one leaves the others' work as it
is; then all of them are one corpus. Each stage is resumed where it was left.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nl.config import ConfigError, unstructure
from nl.data.documents import read_corpus, total_bytes, total_documents
from nl.data.manifest import read_manifest
from nl.data.prep.command import LOG
from nl.data.prep.dedup import DedupOptions, dedup_corpus
from nl.data.prep.divide import DivideOptions, divide_corpus
from nl.data.prep.engine import Executor
from nl.data.prep.filters import filter_corpus
from nl.data.prep.flags import keys_for_flags
from nl.data.prep.ingest import PART_MB, IngestOptions, ingest
from nl.data.prep.join import join_corpora
from nl.data.prep.mixture import STAGES, TOKENIZER_KEYS, Mixture, mixture_of, parsed
from nl.data.prep.mixture_layout import Layout
from nl.data.prep.shard import shard_corpus
from nl.data.prep.sources import units
from nl.data.prep.sources_files import FORMATS
from nl.data.prep.train_tokenizer import MODELS, corpus_domains, train_on
from nl.data.tokenizer import load_tokenizer


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one stage did with one data set (or all of them: ``*``)."""

    stage: str
    domain: str
    documents_in: int
    documents_out: int
    megabytes_out: float
    seconds: float
    done: bool
    """False: it was there already."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a manifest is run; nothing here but ``part_mb`` changes what is written."""

    work: Path | None = None
    """Directory of the stages; default ``<data directory>/work``."""
    until: str = STAGES[-1]
    """Last stage to run."""
    tokenizer_path: str | None = None
    """A tokenizer that exists; None trains one on the train split."""
    tokenizer_log: Path | None = None
    """Log of its training; default beside the tokenizer."""
    force: tuple[str, ...] = ()
    """Stages (filter, tokenizer ...) whose finished work is dropped and done again."""
    part_mb: float = PART_MB
    """Megabytes of text in one part, the unit of work."""
    executor: Executor = field(default_factory=Executor)

    def __post_init__(self) -> None:
        if self.until not in STAGES:
            raise ConfigError(f"--until: {self.until}; allowed: {', '.join(STAGES)}.")
        for stage in self.force:
            if stage not in STAGES:
                raise ConfigError(f"--force: {stage}; allowed: {', '.join(STAGES)}.")


def run_mixture(mixture: Mixture, options: RunOptions) -> Iterator[Row]:
    """Run the stages of a manifest up to ``until``; yields what each did, as it is done.

    Raises:
        ConfigError: whatever a stage complains about; files that are not there, before any work.
    """
    at = Layout(mixture=mixture, work=options.work or mixture.output / "work")
    if options.tokenizer_path is not None:
        load_tokenizer(options.tokenizer_path)
    for entry in mixture.datasets:
        if entry.dataset in FORMATS:
            units(entry.source)
        if entry.output_dir is not None:
            LOG.info("%s: output_dir is not used; all shards go to %s", entry.name, mixture.output)
    for stage in options.force:
        at.forget(stage)
    steps = (_ingest, _filter, _dedup, _divide, _tokenizer, _shard)
    for stage, step in zip(STAGES, steps, strict=True):
        yield from step(at, options)
        if stage == options.until:
            return


def _ingest(at: Layout, options: RunOptions) -> Iterator[Row]:
    parts = IngestOptions(part_mb=options.part_mb)
    for entry in at.mixture.datasets:
        LOG.info("%s: ingest", entry.name)
        yield from rows(*ingest(entry.source, at.ingest(entry.name), parts, options.executor))


def _filter(at: Layout, options: RunOptions) -> Iterator[Row]:
    for entry in at.mixture.datasets:
        LOG.info("%s: filter", entry.name)
        source, output = at.ingest(entry.name), at.filter(entry.name)
        with keys_for_flags(entry.filter_keys(f"{entry.name}.")):
            made = filter_corpus(source, output, entry.filters, options.executor)
        yield from rows(*made)


def _dedup(at: Layout, options: RunOptions) -> Iterator[Row]:
    names = [entry.name for entry in at.mixture.datasets]
    join_corpora([at.filter(name) for name in names], at.joined, at.mixture.name)
    which = DedupOptions(near=at.mixture.near_duplicates)
    yield from rows(*dedup_corpus(at.joined, at.dedup, which, options.executor))


def _divide(at: Layout, options: RunOptions) -> Iterator[Row]:
    shares = DivideOptions(
        **{"val": 0.0, "test": 0.0} | at.mixture.held_out, apart=at.mixture.apart
    )
    yield from rows(*divide_corpus(at.dedup, at.corpus, shares, options.executor))


def _shard(at: Layout, options: RunOptions) -> Iterator[Row]:
    start = time.perf_counter()
    first = at.mixture.datasets[0]
    with keys_for_flags({"eos_id": f"{first.name}.eos_id"}):
        manifest, done = shard_corpus(
            at.corpus,
            options.tokenizer_path or str(at.tokenizer / MODELS[at.mixture.tokenizer.model_type]),
            at.mixture.output,
            shard_tokens=first.shard_tokens,
            eos_id=first.eos_id,
            name=at.mixture.name,
            executor=options.executor,
        )
    seconds = time.perf_counter() - start
    count = sum(map(len, manifest.splits.values()))
    for split, domains in manifest.splits.items():
        for name, domain in domains.items():
            yield Row(
                stage="shard",
                domain=f"{split}/{name}",
                documents_in=domain.documents,
                documents_out=domain.documents,
                megabytes_out=domain.bytes / 1e6,
                seconds=seconds / count,
                done=done,
                tokens=domain.tokens,
            )


def rows(log: Mapping[str, Any], done: bool) -> Iterator[Row]:
    """Rows of the table from a stage's log, one per domain."""
    for domain, row in log["domains"].items():
        counts = row["counts"]
        yield Row(
            stage=log["stage"],
            domain=domain,
            documents_in=counts["documents_in"],
            documents_out=counts["documents_out"],
            megabytes_out=counts["bytes_out"] / 1e6,
            seconds=log["seconds"] / max(1, len(log["domains"])),
            done=done,
            reasons=row["reasons"],
        )


def _tokenizer(at: Layout, options: RunOptions) -> Iterator[Row]:
    """The tokenizer named, or one trained on the train split."""
    start = time.perf_counter()
    done, chosen = False, 0
    train = read_corpus(at.corpus).splits["train"]
    if options.tokenizer_path is None:
        wanted = at.mixture.tokenizer
        domains = corpus_domains(at.corpus, wanted.sample_limit)
        with keys_for_flags({field: f"tokenizer.{key}" for field, key in TOKENIZER_KEYS.items()}):
            record, done = train_on(domains, at.tokenizer, wanted, options.tokenizer_log)
        chosen = sum(row["samples"] for row in record["datasets"])
    yield Row(
        stage="tokenizer",
        domain="*",
        documents_in=sum(map(total_documents, train.values())),
        documents_out=chosen,
        megabytes_out=sum(map(total_bytes, train.values())) / 1e6,
        seconds=time.perf_counter() - start,
        done=done,
    )


def overridden(mixture: Mixture, changes: list[str]) -> Mixture:
    """A mixture with ``key=value`` or ``<data set>.key=value`` changed; values are YAML.

    Raises:
        ConfigError: no such data set or key, or a value that is not allowed.
    """
    data = unstructure(mixture)
    by_name = {row["name"]: row for row in data["datasets"]}
    groups = {key: value for key, value in data.items() if isinstance(value, dict)}
    places = {"": data} | groups | by_name
    for change in changes:
        place, mark, text = change.partition("=")
        name, _, key = place.rpartition(".")
        if not mark or name not in places:
            raise ConfigError(
                f"--set: {change}; write key=value, {', '.join(f'{g}.key=value' for g in groups)} "
                f"or <data set>.key=value. Data sets: {', '.join(by_name)}."
            )
        places[name][key] = parsed(text, f"--set: {change}")
    return mixture_of(data, "--set")


def table(found: list[Row]) -> Iterator[str]:
    """A table of all rows for a terminal."""
    yield (
        f"{'stage':<10} {'data set':<16} {'in':>10} {'out':>10} {'MB':>9} {'tokens':>12} "
        f"{'s':>7}  dropped"
    )
    for row in found:
        dropped = ", ".join(f"{reason} {n:,}" for reason, n in row.reasons.items())
        tokens = "" if row.tokens is None else f"{row.tokens:,}"
        note = dropped if row.done else "; ".join(filter(None, [dropped, "(was there)"]))
        yield (
            f"{row.stage:<10} {row.domain:<16} {row.documents_in:>10,} {row.documents_out:>10,} "
            f"{row.megabytes_out:>9.2f} {tokens:>12} {row.seconds:>7.1f}  {note}".rstrip()
        )


def stream_overrides(mixture: Mixture) -> str:
    """What a run needs to train on the result: the tokenizer's ids, the manifest's weights."""
    names = [entry.name for entry in mixture.datasets]
    ids = f"model.vocab_size={read_manifest(mixture.output).tokenizer.vocab_size}"
    words = f"{ids} stream=shards stream.path={mixture.output} stream.domains=[{','.join(names)}]"
    weights = mixture.weights
    if weights is None:
        return words
    return words + f" stream.weights=[{','.join(f'{weights[name]:g}' for name in names)}]"


def plan_lines(mixture: Mixture) -> Iterator[str]:
    """What would be read, for a terminal; nothing is written.

    Raises:
        ConfigError: after the lines of the others, what is wrong with the data sets that are not
            there.
    """
    problems = []
    for entry in mixture.datasets:
        weight = (mixture.weights or {}).get(entry.name)
        share = "" if weight is None else f", weight {weight:.3g}"
        try:
            found = units(entry.source)
        except ConfigError as error:
            problems.append(str(error))
            yield f"{entry.name}: not there"
            continue
        size = sum(unit.bytes for unit in found)
        where = f"{size / 1e6:,.1f} MB on this machine" if size else entry.dataset
        yield f"{entry.name}: {where}, in {len(found):,} units{share}"
    yield f"data directory {mixture.output}, held out {mixture.held_out}"
    if problems:
        raise ConfigError("\n".join(problems))
