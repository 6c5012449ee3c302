"""Is a mixture what its manifest says: files, digests, counts, licences, overlap. Floor 1.

Overlap is measured on the texts: documents of one data set that are equal, or nearly, to one of
another, and held-out documents that are in train.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nl.config import ConfigError
from nl.data.documents import read_corpus
from nl.data.files import sha256_file, staging
from nl.data.manifest import DataManifest, DomainInfo, read_manifest
from nl.data.prep.dedup import DedupOptions, dedup_stage, find
from nl.data.prep.dedup_join import REASONS
from nl.data.prep.dedup_leak import leak
from nl.data.prep.engine import Executor
from nl.data.prep.mixture import Mixture
from nl.data.prep.parts import parts_of
from nl.data.prep.stage import Ranks

PLACE_BITS = 32


def validate(
    mixture: Mixture, executor: Executor, *, threshold: float, limit: int
) -> dict[str, Any]:
    """A report on a mixture that was built; ``problems`` is empty if all is well.

    Args:
        mixture: the manifest.
        executor: where signatures are computed.
        threshold: share of a data set's (of a held-out split's) documents that another (train)
            may have, too.
        limit: held-out documents compared with all of train.

    Raises:
        ConfigError: it was not built, or a text changed while it is read.
    """
    if not 0 <= threshold <= 1:
        raise ConfigError(f"--overlap-threshold: {threshold}; allowed: 0 to 1.")
    output = mixture.output
    manifest, corpus = read_manifest(output), output / "corpus"
    problems: list[str] = []
    weights = mixture.weights or {}
    sources = []
    for entry in mixture.datasets:
        splits = {s: d[entry.name] for s, d in manifest.splits.items() if entry.name in d}
        row = source_row(output, splits)
        row |= {"name": entry.name, "license": entry.license, "weight": weights.get(entry.name)}
        sources.append({"name": row.pop("name"), **row})
        problems += [f"{entry.name}: {text}" for text in complaints(row)]
    problems += _tokenizer_problems(output, manifest)
    between = overlap(corpus, executor)
    for name, row in between.items():
        if row["share"] > threshold:
            problems.append(f"{name}: {row['share']:.2%} of the documents are in both")
    leaks = [leak(corpus, split, limit=limit) for split in ("val", "test") if _has(corpus, split)]
    for row in leaks:
        share = row["near"] / max(1, row["tested"])
        if share > threshold:
            problems.append(f"{row['split']}: {share:.2%} of its documents are in train, or nearly")
    return {
        "name": mixture.name,
        "data_dir": str(output),
        "sources": sources,
        "overlap_threshold": threshold,
        "between_sources": between,
        "held_out_in_train": leaks,
        "problems": problems,
    }


def _has(corpus: Path, split: str) -> bool:
    return any(read_corpus(corpus).splits.get(split, {}).values())


def source_row(output: Path, splits: Mapping[str, DomainInfo]) -> dict[str, Any]:
    """Counts of one data set by split, and files that are missing or were changed."""
    missing, changed = [], []
    for domain in splits.values():
        files = {s.file: s.sha256 for s in domain.shards} | {t.file: t.sha256 for t in domain.texts}
        for file, digest in files.items():
            if not (output / file).is_file():
                missing.append(file)
            elif sha256_file(output / file) != digest:
                changed.append(file)
    return {
        "exists": bool(splits),
        "splits": {
            split: {"documents": d.documents, "tokens": d.tokens, "bytes": d.bytes}
            for split, d in splits.items()
        },
        "missing": missing,
        "changed": changed,
    }


def complaints(row: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with one data set."""
    if not row["exists"]:
        yield "is in the manifest, but not in the data directory"
        return
    if not row["splits"].get("train", {}).get("tokens"):
        yield "has no token in train"
    for kind in ("missing", "changed"):
        if row[kind]:
            yield f"{len(row[kind])} files {kind}, the first is {row[kind][0]}"
    if not row["license"]:
        yield "no licence is noted; add license to the manifest"


def _tokenizer_problems(output: Path, manifest: DataManifest) -> Iterator[str]:
    info = manifest.tokenizer
    if info.path is None:
        return
    if not (output / info.path).is_file():
        yield f"tokenizer: {info.path} is missing"
    elif sha256_file(output / info.path) != info.sha256:
        yield f"tokenizer: {info.path} is not the one the shards were made with"


def overlap(corpus: Path, executor: Executor) -> dict[str, dict[str, Any]]:
    """Documents of each data set that have an equal, or nearly equal, one in an earlier one.

    Returns:
        By ``earlier & later``: ``exact_duplicate``, ``near_duplicate`` and the ``share`` of the
        later one's documents.
    """
    parts = parts_of(corpus)
    sizes: Counter[str] = Counter()
    for part in parts:
        sizes[part.domain] += part.info.documents
    with staging(corpus.parent) as folder:
        stage = dedup_stage(corpus, folder, DedupOptions())
        find(corpus, DedupOptions(), Ranks(executor=executor, stage=stage))
        rows = np.load(stage.work / "drops.npy")
    names = list(sizes)
    found = {
        f"{a} & {b}": dict.fromkeys(REASONS, 0) for i, a in enumerate(names) for b in names[i + 1 :]
    }
    for place, kept, why in rows.tolist():
        pair = (parts[kept >> PLACE_BITS].domain, parts[place >> PLACE_BITS].domain)
        if pair[0] != pair[1]:
            first, second = sorted(pair, key=names.index)
            found[f"{first} & {second}"][REASONS[why]] += 1
    return {
        name: row | {"share": round(sum(row.values()) / max(1, sizes[name.split(" & ")[1]]), 6)}
        for name, row in found.items()
    }


def report_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """A report for a terminal."""
    yield f"{found['name']} in {found['data_dir']}"
    yield f"{'data set':<16} {'documents':>10} {'tokens':>14} {'weight':>7}  licence"
    for row in found["sources"]:
        counts = row["splits"].values()
        documents, tokens = (sum(c[k] for c in counts) for k in ("documents", "tokens"))
        weight = "" if row["weight"] is None else f"{row['weight']:.3f}"
        yield (
            f"{row['name']:<16} {documents:>10,} {tokens:>14,} {weight:>7}  "
            f"{row['license'] or 'not noted'}"
        )
    for name, row in found["between_sources"].items():
        exact, near = (row[reason] for reason in REASONS)
        yield f"{name}: {exact:,} equal, {near:,} nearly equal ({row['share']:.3%})"
    for row in found["held_out_in_train"]:
        yield (
            f"{row['split']} in train: {row['exact']:,} equal, {row['near']:,} of "
            f"{row['tested']:,} nearly equal (highest similarity {row['highest']:.3f})"
        )
    yield from (f"problem: {problem}" for problem in found["problems"])
