"""What a data directory holds and whether it is what its manifest says. Floor 1."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nl.config import ConfigError
from nl.data.manifest import DataManifest, DomainInfo, data_tokenizer, read_manifest
from nl.data.shards import Shard, open_shard
from nl.data.tokenizer import Tokenizer
from nl.data.unigram import unigram_losses

HASHED = 1 << 24
"""Documents (and windows) whose hashes are compared; of more, an equal share of all hashes."""
SAMPLE_TOKENS = 48
PERCENTILES = {"5 %": 5, "median": 50, "95 %": 95, "max": 100}
Words = npt.NDArray[np.uint64]


def distinct(words: Words) -> Words:
    """Each value once, sorted (``np.unique`` hashes integers, which is five times slower here)."""
    ordered = np.sort(words)
    first = np.ones(ordered.size, np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    kept: Words = ordered[first]
    return kept


@dataclass
class Seen:
    """Hashes of one domain of one split."""

    documents: list[Words] = field(default_factory=list)
    windows: list[Words] = field(default_factory=list)

    def unique(self) -> Words:
        """Hashes of documents, each once."""
        return distinct(np.concatenate([*self.documents, np.empty(0, np.uint64)]))

    def repeats(self, kind: list[Words]) -> tuple[int, int]:
        """How many came before, of how many."""
        every = np.concatenate([*kind, np.empty(0, np.uint64)])
        return int(every.size - distinct(every).size), int(every.size)


@dataclass(frozen=True)
class Inspector:
    """How a directory is looked at; see ``inspect_data``."""

    path: Path
    manifest: DataManifest
    tokenizer: Tokenizer | None
    samples: int
    window: int
    problems: list[str]

    def domain(self, split: str, name: str, info: DomainInfo) -> tuple[dict[str, Any], Seen]:
        """The row of one domain of one split, and its hashes."""
        where, seen = f"{split}/{name}", Seen()
        every = [d for s in self.manifest.splits.values() for d in s.values()]
        per_document = -(-sum(d.documents for d in every) // HASHED)
        per_window = -(-sum(d.tokens for d in every) // (self.window * HASHED))
        counts = dict.fromkeys(("tokens", "documents", "eos", "unknown", "without_eos"), 0)
        lengths: list[npt.NDArray[Any]] = []
        shown: list[str] = []
        for record in info.shards:
            try:
                shard = open_shard(self.path, record, self.manifest.tokenizer, "full")
            except ConfigError as error:
                self.problems.append(str(error))
                continue
            ends = shard.ends.astype(np.int64)
            size = np.diff(ends, prepend=0)
            if (size < 1).any() or (int(ends[-1]) if ends.size else 0) != shard.tokens.size:
                self.problems.append(f"{shard.path}: its document ends do not cut its tokens.")
                continue
            lengths.append(size)
            self._count(shard, ends, counts)
            seen.documents.append(hashes(shard, ends, per_document))
            seen.windows.append(window_hashes(shard, self.window, per_window))
            shown += self._texts(shard, ends, self.samples - len(shown))
        for key, wanted in (("tokens", info.tokens), ("documents", info.documents)):
            if counts[key] != wanted:
                self.problems.append(
                    f"{where}: shards hold {counts[key]:,} {key}, the manifest says {wanted:,}."
                )
        return self._row(where, info, counts, lengths) | {"samples": shown}, seen

    def _count(self, shard: Shard, ends: npt.NDArray[np.int64], counts: dict[str, int]) -> None:
        counts["tokens"] += shard.tokens.size
        counts["documents"] += ends.size
        if self.tokenizer is not None:
            eos, unknown = self.tokenizer.eos_id, unknown_id(self.tokenizer)
            counts["eos"] += int(np.count_nonzero(shard.tokens == eos))
            counts["without_eos"] += int(np.count_nonzero(shard.tokens[ends - 1] != eos))
            if unknown is not None:
                counts["unknown"] += int(np.count_nonzero(shard.tokens == unknown))

    def _texts(self, shard: Shard, ends: npt.NDArray[np.int64], count: int) -> list[str]:
        if self.tokenizer is None:
            return []
        starts = [0, *ends[: max(0, count)].tolist()]
        pairs = zip(starts, ends[: max(0, count)].tolist(), strict=False)
        cut = (shard.tokens[a : min(b, a + SAMPLE_TOKENS)].tolist() for a, b in pairs)
        return [self.tokenizer.decode(ids) for ids in cut]

    def _row(
        self,
        where: str,
        info: DomainInfo,
        counts: dict[str, int],
        lengths: list[npt.NDArray[Any]],
    ) -> dict[str, Any]:
        every = np.concatenate([*lengths, np.empty(0, np.int64)])
        powers = np.bincount(np.int64(np.log2(every))) if every.size else np.empty(0, np.int64)
        tokens = max(1, counts["tokens"])
        known = self.tokenizer is not None
        return {
            "where": where,
            "documents": counts["documents"],
            "tokens": counts["tokens"],
            "bytes": info.bytes,
            "bytes_per_token": info.bytes / tokens,
            "shards": len(info.shards),
            "lengths": {
                name: int(np.percentile(every, share)) if every.size else 0
                for name, share in PERCENTILES.items()
            },
            "histogram": {str(1 << k): int(n) for k, n in enumerate(powers.tolist()) if n},
            "eos_rate": counts["eos"] / tokens if known else None,
            "documents_without_eos": counts["without_eos"] if known else None,
            "unknown_rate": counts["unknown"] / tokens if known else None,
        }


def inspect_data(path: Path, *, samples: int = 1, window: int = 128) -> dict[str, Any]:
    """Look at every token of a data directory.

    Args:
        path: data directory.
        samples: documents to decode per domain.
        window: tokens of the windows whose repetitions are counted.

    Returns:
        Plain data: ``rows`` by split and domain (counts, lengths, rates, repetitions inside the
        domain, ``also_in``: documents that another split has too), and ``problems``: what is not
        as the manifest says, and documents of ``train`` that are in ``val`` or ``test``.

    Raises:
        ConfigError: no readable manifest.
    """
    if samples < 0:
        raise ConfigError(f"--samples: {samples}; must be >= 0.")
    if window < 1:
        raise ConfigError(f"--window: {window}; must be >= 1.")
    manifest, problems = read_manifest(path), list[str]()
    try:
        tokenizer: Tokenizer | None = data_tokenizer(path)
    except ConfigError as error:
        tokenizer = None
        note = f"texts are not decoded: {error}"
    else:
        note = ""
    look = Inspector(path, manifest, tokenizer, samples, window, problems)
    rows, hashed = [], {}
    for split, domains in manifest.splits.items():
        for name, info in domains.items():
            row, seen = look.domain(split, name, info)
            row["repeated_documents"], row["hashed_documents"] = seen.repeats(seen.documents)
            row["repeated_windows"], row["hashed_windows"] = seen.repeats(seen.windows)
            rows.append(row)
            hashed[split, name] = seen.unique()
    _across(rows, hashed, problems)
    return {
        "name": manifest.name,
        "vocab_size": manifest.tokenizer.vocab_size,
        "tokenizer": manifest.tokenizer.sha256,
        "window": window,
        "rows": rows,
        "problems": problems,
        "note": note,
    }


def _across(
    rows: list[dict[str, Any]], hashed: dict[tuple[str, str], Words], problems: list[str]
) -> None:
    """Documents of one split that another one has, too."""
    for row, (split, name) in zip(rows, hashed, strict=True):
        also: dict[str, int] = {}
        for other in {s for s, _ in hashed} - {split}:
            theirs = np.concatenate([h for (s, _), h in hashed.items() if s == other])
            found = int(np.isin(hashed[split, name], theirs).sum())
            if found:
                also[other] = found
        row["also_in"] = dict(sorted(also.items()))
        if split != "train" and "train" in also:
            problems.append(f"{split}/{name}: {also['train']:,} documents are in train, too.")


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of what a tokenizer does not know; None if it has none."""
    processor: Any = getattr(tokenizer, "processor", None)
    found = processor.unk_id() if hasattr(processor, "unk_id") else None
    return None if found is None or found < 0 else int(found)


def hashes(shard: Shard, ends: npt.NDArray[np.int64], every: int = 1) -> Words:
    """A hash of 64 bits per document; with ``every`` > 1 one class of hashes out of so many."""
    starts = [0, *ends[:-1].tolist()]
    digests = b"".join(
        hashlib.blake2b(shard.tokens[a:b].data, digest_size=8).digest()
        for a, b in zip(starts, ends.tolist(), strict=False)
    )
    found: Words = np.frombuffer(digests, "<u8")
    kept: Words = found[found % np.uint64(max(1, every)) == 0]
    return kept


def window_hashes(shard: Shard, window: int, every: int = 1) -> Words:
    """A hash of 64 bits per window of the tokens; see ``hashes``."""
    count = shard.tokens.size // window
    rows = shard.tokens[: count * window].reshape(count, window)
    draw = np.random.default_rng(window)
    factors = draw.integers(1, 1 << 63, window, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    step = max(1, (1 << 20) // window)
    parts = [
        (rows[at : at + step].astype(np.uint64) * factors).sum(1) for at in range(0, count, step)
    ]
    found: Words = np.concatenate([*parts, np.empty(0, np.uint64)])
    found = (found ^ (found >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
    kept: Words = found[(found >> np.uint64(20)) % np.uint64(max(1, every)) == 0]
    return kept


def describe(report: dict[str, Any], path: Path, *, unigram: bool) -> Iterator[str]:
    """A report in lines for a terminal.

    Args:
        report: from ``inspect_data``.
        path: the data directory.
        unigram: also give the unigram cross-entropy of val and test.
    """
    head = f"vocabulary {report['vocab_size']}, tokenizer {report['tokenizer'][:12]}"
    yield f"{report['name']}: {head}"
    if report["note"]:
        yield report["note"]
    titles = f"{'documents':>10} {'tokens':>12} {'bytes':>12} {'B/token':>8} {'shards':>6}"
    yield f"{'split/domain':<20} {titles} {'eos %':>7} {'unk %':>7} {'repeated':>9}"
    for row in report["rows"]:
        rates = (row["eos_rate"], row["unknown_rate"])
        shown = " ".join(f"{'-' if r is None else format(100 * r, '.3f'):>7}" for r in rates)
        yield (
            f"{row['where']:<20} {row['documents']:>10,} {row['tokens']:>12,} "
            f"{row['bytes']:>12,} {row['bytes_per_token']:>8.3f} {row['shards']:>6} {shown} "
            f"{row['repeated_documents']:>9,}"
        )
        if row["samples"]:
            lengths = ", ".join(f"{name} {n:,}" for name, n in row["lengths"].items())
            bars = " ".join(f"{k}+:{n:,}" for k, n in row["histogram"].items())
            yield f"  tokens per document: {lengths}"
            yield f"  by power of two: {bars}"
            yield (
                f"  windows of {report['window']} seen before: {row['repeated_windows']:,} of "
                f"{row['hashed_windows']:,}"
            )
            yield from (f"  {text!r}" for text in row["samples"])
    if unigram and not report["problems"] and "train" in read_manifest(path).splits:
        for split in ("val", "test"):
            for name, loss in unigram_losses(path, split, verify=False).items():
                yield (
                    f"unigram {split}/{name}: {loss.pooled:.4f} nats per token under all train "
                    f"counts, {loss.own:.4f} under this domain's"
                )
    yield from (f"WRONG: {problem}" for problem in report["problems"])
    if not report["problems"]:
        yield "all digests, counts and ids are as the manifest says; no document is in two splits"
