"""The unigram baseline: cross-entropy of token frequencies of the train split. Floor 1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nl.data.manifest import DataManifest, read_manifest
from nl.data.shards import open_shard


@dataclass(frozen=True)
class UnigramLoss:
    """Cross-entropy of one domain of a held-out split.

    Attributes:
        pooled: nats per token under the counts of all train domains together.
        own: nats per token under the counts of the same domain; the harder one to beat.
        tokens: tokens scored.
        bytes: UTF-8 size of the text; ``loss * tokens / bytes / ln 2`` is bits per byte.
    """

    pooled: float
    own: float
    tokens: int
    bytes: int


def unigram_losses(
    path: str | Path, split: str = "val", *, verify: bool = True
) -> dict[str, UnigramLoss]:
    """Per domain of ``split``, the loss of the best context-free model of the train split.

    p(token) = (count + 1) / (tokens + vocabulary), add-one smoothing.

    Raises:
        ConfigError: missing or changed data.
    """
    root = Path(path)
    manifest = read_manifest(root)
    train = {d: _counts(root, manifest, "train", d, verify) for d in manifest.splits["train"]}
    pooled = np.sum(list(train.values()), axis=0)
    losses = {}
    for domain in manifest.splits.get(split, {}):
        info = manifest.domain(split, domain, root)
        held_out = _counts(root, manifest, split, domain, verify)
        own = train.get(domain, np.zeros_like(pooled))
        losses[domain] = UnigramLoss(
            pooled=_cross_entropy(held_out, pooled),
            own=_cross_entropy(held_out, own),
            tokens=info.tokens,
            bytes=info.bytes,
        )
    return losses


def _counts(
    root: Path, manifest: DataManifest, split: str, domain: str, verify: bool
) -> npt.NDArray[Any]:
    size = manifest.tokenizer.vocab_size
    total = np.zeros(size, dtype=np.int64)
    for info in manifest.domain(split, domain, root).shards:
        shard = open_shard(root, info, manifest.tokenizer, verify)
        total += np.bincount(shard.tokens, minlength=size)
    return total


def _cross_entropy(held_out: npt.NDArray[Any], counts: npt.NDArray[Any]) -> float:
    log_p = np.log(counts + 1.0) - np.log(counts.sum() + counts.size)
    return float(-(held_out * log_p).sum() / max(1, held_out.sum()))
