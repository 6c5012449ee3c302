"""Documents of any number with known statistics, for benchmarks and tests. Floor 1.

Words are drawn from a Zipf distribution by a chain of order one: with probability ``STAY`` the next
word is the successor of the last one, a fixed permutation of the vocabulary, else it is drawn
afresh. Everything is a pure function of (domain, seed, number of the document).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator

import numpy as np

from nl.config import ConfigError
from nl.data.documents import Document

VERSION = "1"
WORDS = 8192
STAY = 0.5
"""Probability that a word is followed by its successor."""
SENTENCE = 12
PARAGRAPH = 60
MIN_WORDS, MEAN_WORDS, MAX_WORDS = 40, 400, 4000
SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]


def synthetic_documents(domain: str, seed: str = "0") -> Iterator[Document]:
    """Documents without end; their lengths are exponential with mean ``MEAN_WORDS`` words.

    Args:
        domain: decides the words, so that domains can be told apart.
        seed: a whole number as text.

    Raises:
        ConfigError: the seed is no number.
    """
    if not seed.isdigit():
        raise ConfigError(f"subset: {seed!r}; for synthetic it is the seed, a number >= 0.")
    words, chances = vocabulary(domain)
    follow = successors(domain)
    for number in itertools.count():
        draw = np.random.default_rng(_key(domain, seed, str(number)))
        length = int(np.clip(draw.exponential(MEAN_WORDS), MIN_WORDS, MAX_WORDS))
        fresh = np.searchsorted(chances, draw.random(length))
        stay = draw.random(length) < STAY
        chosen = fresh.tolist()
        for i in np.flatnonzero(stay[1:]).tolist():
            chosen[i + 1] = follow[chosen[i]]
        yield Document(_prose([words[i] for i in chosen]), f"{domain}:{seed}:{number}")


def vocabulary(domain: str) -> tuple[list[str], np.ndarray]:
    """The words of a domain by rank, and the cumulated probabilities 1/rank of their draws."""
    draw = np.random.default_rng(_key(domain))
    words: dict[str, None] = {}
    while len(words) < WORDS:
        size = 1 + int(draw.integers(1 + len(words) // (WORDS // 3)))
        words["".join(SYLLABLES[i] for i in draw.integers(len(SYLLABLES), size=size + 1))] = None
    weights = 1 / np.arange(1, WORDS + 1)
    chances = np.cumsum(weights / weights.sum())
    chances[-1] = 1.0
    return list(words), chances


def successors(domain: str) -> list[int]:
    """Which word follows which, a permutation."""
    order: list[int] = np.random.default_rng(_key(domain, "successors")).permutation(WORDS).tolist()
    return order


def _key(*parts: str) -> list[int]:
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4)]


def _prose(words: list[str]) -> str:
    sentences = [
        " ".join(words[i : i + SENTENCE]).capitalize() + "." for i in range(0, len(words), SENTENCE)
    ]
    step = PARAGRAPH // SENTENCE
    blocks = [" ".join(sentences[i : i + step]) for i in range(0, len(sentences), step)]
    return "\n\n".join(blocks)
