"""Synthetic documents: repeatable, and with the statistics that their module states."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise

import pytest

from nl.config import ConfigError
from nl.data.prep.synthetic import MEAN_WORDS, STAY, successors, synthetic_documents, vocabulary


def words_of(domain: str, count: int, seed: str = "0") -> list[list[str]]:
    documents = islice(synthetic_documents(domain, seed), count)
    return [d.text.lower().replace(".", "").split() for d in documents]


def test_repeatable_and_apart() -> None:
    first = list(islice(synthetic_documents("a"), 20))
    assert first == list(islice(synthetic_documents("a"), 20))
    assert len({d.text for d in first}) == 20
    assert first[3] != next(islice(synthetic_documents("a", "1"), 3, None))
    common = set(vocabulary("a")[0][:500]) & set(vocabulary("b")[0][:500])
    assert len(common) < 250, "domains have other words"


def test_statistics() -> None:
    rows = words_of("a", 300)
    words, _ = vocabulary("a")
    follow = successors("a")
    rank = {word: i for i, word in enumerate(words)}
    lengths = [len(row) for row in rows]
    assert 0.85 * MEAN_WORDS < sum(lengths) / len(lengths) < 1.2 * MEAN_WORDS
    pairs = [(rank[a], rank[b]) for row in rows for a, b in pairwise(row)]
    stays = sum(follow[a] == b for a, b in pairs) / len(pairs)
    assert abs(stays - STAY) < 0.02
    counts = Counter(rank[word] for row in rows for word in row)
    share = counts[0] / sum(lengths)
    top = 1 / sum(1 / n for n in range(1, len(words) + 1))
    assert 0.5 * top * 0.9 < share < top * 1.1, "drawn afresh half of the time"


def test_seed_is_a_number() -> None:
    with pytest.raises(ConfigError, match="subset: 'x'"):
        next(synthetic_documents("a", "x"))
