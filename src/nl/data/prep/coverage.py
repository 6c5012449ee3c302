"""What a tokenizer makes of text: round trips, pieces per word, unknowns, by domain. Floor 1."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nl.config import ConfigError
from nl.data.documents import Document, read_corpus, read_jsonl
from nl.data.files import read_json
from nl.data.prep.sources import read_source
from nl.data.prep.sources_spec import Source
from nl.data.tokenizer import Tokenizer, losses

BATCH = 64
TOP = 20
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
UNKNOWN = ("<unk>", "[UNK]", "<|unk|>", "<UNK>")
GUARDED = ("avg_tokens_per_word", "pct_single_token_words", "pct_two_or_less_tokens_words")


@dataclass
class Counts:
    """Sums over documents of one domain; ``summary`` turns them into rates."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    unknown: int = 0
    fallback: int = 0
    changed: int = 0
    words: Counter[str] = field(default_factory=Counter)
    changed_first: str = ""

    def add(self, other: Counts) -> None:
        """Add another domain's sums."""
        for name in ("documents", "bytes", "tokens", "unknown", "fallback", "changed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.words.update(other.words)
        self.changed_first = self.changed_first or other.changed_first


class Table:
    """Which ids are unknown or a byte, looked up for arrays of ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        pieces = [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]
        self.byte = np.array([BYTE.fullmatch(p or "") is not None for p in pieces])
        self.unknown = np.array([p in UNKNOWN for p in pieces])


def count(tokenizer: Tokenizer, documents: Iterable[Document], table: Table) -> Counts:
    """Sums over some documents; memory holds the different words."""
    counts = Counts()
    stream = iter(documents)
    while batch := [d.text for d in itertools.islice(stream, BATCH)]:
        for text, ids in zip(batch, tokenizer.encode(batch), strict=True):
            row = np.asarray(ids, dtype=np.int64)
            counts.documents += 1
            counts.bytes += len(text.encode())
            counts.tokens += row.size
            counts.unknown += int(table.unknown[row].sum())
            counts.fallback += int(table.byte[row].sum())
            counts.words.update(text.split())
            if tokenizer.decode(ids) != text:
                counts.changed += 1
                counts.changed_first = counts.changed_first or text[:200]
    return counts


def summary(tokenizer: Tokenizer, counts: Counts) -> dict[str, Any]:
    """Rates of some counts; a word is what stands between blanks, tokenized with one before it."""
    words = list(counts.words)
    lengths = [len(ids) for ids in tokenizer.encode([" " + word for word in words])]
    total = max(1, counts.words.total())
    sizes: Counter[int] = Counter()
    for word, length in zip(words, lengths, strict=True):
        sizes[length] += counts.words[word]
    chars = sum(len(word) * n for word, n in counts.words.items())
    return {
        "documents": counts.documents,
        "bytes": counts.bytes,
        "tokens": counts.tokens,
        "bytes_per_token": _rate(counts.bytes, counts.tokens),
        "unknown_rate": _rate(counts.unknown, counts.tokens),
        "byte_fallback_rate": _rate(counts.fallback, counts.tokens),
        "documents_changed_by_round_trip": counts.changed,
        "total_words": counts.words.total(),
        "avg_tokens_per_word": _rate(sum(k * n for k, n in sizes.items()), total),
        "pct_single_token_words": _rate(sizes[1], total),
        "pct_two_or_less_tokens_words": _rate(sizes[0] + sizes[1] + sizes[2], total),
        "avg_chars_per_word": _rate(chars, total),
        "piece_length_histogram": {str(k): n for k, n in sorted(sizes.items())[:TOP]},
    }


def _rate(above: float, below: float) -> float:
    return round(above / below, 6) if below else 0.0


def report(
    tokenizer: Tokenizer, domains: Mapping[str, Iterable[Document]], path: str
) -> dict[str, Any]:
    """Everything about a tokenizer, as plain data.

    Args:
        tokenizer: what is looked at.
        domains: documents by domain.
        path: how it was named.
    """
    table = Table(tokenizer)
    every = {name: count(tokenizer, texts, table) for name, texts in domains.items()}
    whole = Counts()
    for counts in every.values():
        whole.add(counts)
    return {
        "tokenizer_path": path,
        "kind": tokenizer.kind,
        "sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "special_ids": {n: getattr(tokenizer, f"{n}_id") for n in ("bos", "eos", "pad")},
        "lossy_on": losses(tokenizer),
        "first_document_changed": whole.changed_first,
        "all": summary(tokenizer, whole),
        "domains": {name: summary(tokenizer, counts) for name, counts in every.items()},
    }


def regressions(
    found: Mapping[str, Any], baseline: Path, tolerances: Mapping[str, float]
) -> list[str]:
    """What became worse than in an earlier report by more than its tolerance.

    Args:
        found: a report.
        baseline: an earlier report, or the numbers alone.
        tolerances: by name; tokens per word may rise by its own, shares of words fall.

    Raises:
        ConfigError: the baseline has none of the numbers.
    """
    data = read_json(baseline, "It is what --output wrote for the tokenizer to compare with.")
    old = data.get("all", data) if isinstance(data, dict) else {}
    lines = []
    for name in GUARDED:
        before, now = old.get(name), found["all"][name]
        if not isinstance(before, (int, float)) or not math.isfinite(before):
            raise ConfigError(f"{baseline}: has no number {name!r}; write it with --output.")
        worse = now - before if name == GUARDED[0] else before - now
        if worse > tolerances[name]:
            lines.append(f"{name}: {now:.4f}, was {before:.4f} (tolerance {tolerances[name]})")
    return lines


def documents_by_domain(
    corpus: Path | None, split: str, files: Iterable[str], limit: int
) -> dict[str, Iterator[Document]]:
    """Documents to look at: a split of a corpus by domain, and files of any known format.

    Raises:
        ConfigError: no such corpus, split or file.
    """
    found: dict[str, Iterator[Document]] = {}
    if corpus is not None:
        splits = read_corpus(corpus).splits
        if split not in splits:
            raise ConfigError(f"--split: {corpus} has no {split!r}. Known: {', '.join(splits)}.")
        for domain, texts in splits[split].items():
            rows = itertools.chain.from_iterable(read_jsonl(corpus / t.file) for t in texts)
            found[domain] = itertools.islice(rows, limit)
    for file in files:
        if not Path(file).is_file():
            raise ConfigError(f"--sample-file: {file}; no such file.")
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", Path(file).name).lstrip("_.-") or "file"
        source = Source(name=name, dataset="files", local=file, max_records=limit)
        found[file] = read_source(source)
    return found


def table_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """A table of a report for a terminal."""
    yield (
        f"{'domain':<16} {'documents':>9} {'bytes/token':>11} {'tokens/word':>11} {'1 token':>8} "
        f"{'<= 2':>7} {'unknown':>8} {'bytes':>8} {'changed':>7}"
    )
    for name, row in [*found["domains"].items(), ("all", found["all"])]:
        yield (
            f"{name:<16} {row['documents']:>9,} {row['bytes_per_token']:>11.3f} "
            f"{row['avg_tokens_per_word']:>11.3f} {row['pct_single_token_words']:>8.1%} "
            f"{row['pct_two_or_less_tokens_words']:>7.1%} {row['unknown_rate']:>8.3%} "
            f"{row['byte_fallback_rate']:>8.3%} {row['documents_changed_by_round_trip']:>7,}"
        )
