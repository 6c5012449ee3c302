"""What a data directory holds, in lines for a terminal: counts, digests, samples. Floor 1."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nl.data.manifest import DomainInfo, data_tokenizer, read_manifest
from nl.data.shards import open_shard
from nl.data.unigram import unigram_losses


def describe(path: Path, *, samples: int, unigram: bool) -> Iterator[str]:
    """Lines about every split and domain; each shard is verified on the way.

    Args:
        path: data directory.
        samples: documents to decode per domain.
        unigram: also give the unigram cross-entropy of val and test.

    Raises:
        ConfigError: a shard is missing, truncated, changed or holds an id out of range.
    """
    manifest = read_manifest(path)
    info = manifest.tokenizer
    yield f"{manifest.name}: vocabulary {info.vocab_size}, tokenizer {info.sha256[:12]}"
    head = f"{'documents':>10} {'tokens':>12} {'bytes':>12} {'B/token':>8}"
    yield f"{'split/domain':<16} {head} shards"
    for split, domains in manifest.splits.items():
        for name, domain in domains.items():
            rate = domain.bytes / max(1, domain.tokens)
            yield (
                f"{split + '/' + name:<16} {domain.documents:>10,} {domain.tokens:>12,} "
                f"{domain.bytes:>12,} {rate:>8.3f} {len(domain.shards)} (digest ok)"
            )
            yield from _lengths_and_samples(path, domain, samples)
    if unigram:
        for split in ("val", "test"):
            for name, loss in unigram_losses(path, split).items():
                yield (
                    f"unigram {split}/{name}: {loss.pooled:.4f} nats per token under all train "
                    f"counts, {loss.own:.4f} under this domain's"
                )


def _lengths_and_samples(path: Path, domain: DomainInfo, samples: int) -> Iterator[str]:
    info = read_manifest(path).tokenizer
    shards = [open_shard(path, s, info, verify=True) for s in domain.shards]
    lengths = np.concatenate([np.diff(s.ends, prepend=np.uint64(0)) for s in shards])
    if lengths.size and samples:
        low, middle, high = np.percentile(lengths, [5, 50, 95]).astype(int)
        yield f"  tokens per document: 5 % {low}, median {middle}, 95 % {high}"
        tokenizer = data_tokenizer(path)
        tokens, ends = shards[0].tokens, shards[0].ends.tolist()
        for number, end in enumerate(ends[:samples]):
            start = ends[number - 1] if number else 0
            yield f"  {tokenizer.decode(tokens[start:end][:48].tolist())!r}"
