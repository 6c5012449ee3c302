"""Shingles and MinHash signatures of a text, and the sorted tables of one part. Floor 1.

A shingle is a hash of ``ngram`` words in a row. MinHash: Broder (1997); candidates are texts that
agree in one of ``bands`` bands of ``rows`` minima (Leskovec et al., Mining of Massive Datasets,
3.4), which finds a pair of Jaccard similarity s with probability 1 - (1 - s^rows)^bands.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nl.data.files import write_atomic
from nl.data.prep.extras import needed

Ints = NDArray[np.uint64]
ASCII_WORD = re.compile(r"\w+")
ALONE = r"\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
"""Letters of scripts without blanks between words; each is a word."""
WORD = re.compile(rf"[{ALONE}]|[^\W{ALONE}]+")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
ROW = np.dtype([("a", "<u8"), ("b", "<u8"), ("document", "<u4")])
"""A key of 128 bits and the number of the document in its part."""
CHUNK = 2048


@dataclass(frozen=True)
class MinHash:
    """Signatures of ``bands`` times ``rows`` minima over shingles of ``ngram`` words."""

    ngram: int
    bands: int
    rows: int
    seed: int

    def coefficients(self) -> tuple[Ints, Ints]:
        """Factors (odd) and summands of the hash functions, shape (1, bands * rows)."""
        draw = np.random.Generator(np.random.PCG64(self.seed))
        shape, top = (1, self.bands * self.rows), np.iinfo(np.uint64).max
        a = draw.integers(0, top, shape, dtype=np.uint64, endpoint=True) | np.uint64(1)
        return a, draw.integers(0, top, shape, dtype=np.uint64, endpoint=True)

    def signature(self, shingles: Ints) -> Ints:
        """Minima of every hash function over the shingles, in bounded memory; (bands, rows)."""
        a, b = self.coefficients()
        lowest = np.full(self.bands * self.rows, np.iinfo(np.uint64).max, np.uint64)
        for start in range(0, len(shingles), CHUNK):
            values = shingles[start : start + CHUNK, None] * a + b
            np.minimum(lowest, mixed(values).min(axis=0), out=lowest)
        return lowest.reshape(self.bands, self.rows)


def mixed(values: Ints) -> Ints:
    """One round of a bijection of 64 bits, so that a minimum depends on all of them."""
    values = values ^ (values >> np.uint64(31))
    return values * MULTIPLIER


def shingles(text: str, ngram: int) -> Ints:
    """Hashes of all runs of ``ngram`` words of a text, without case and punctuation."""
    hashed = needed("xxhash", "data").xxh3_64_intdigest
    known: dict[str, int] = {}
    words = (ASCII_WORD if text.isascii() else WORD).findall(text.lower())
    for word in set(words):
        known[word] = hashed(word.encode(errors="surrogatepass"))
    codes = np.fromiter((known[word] for word in words), np.uint64, len(words))
    count = len(codes) - ngram + 1
    if count < 1:
        return np.empty(0, np.uint64)
    total = np.zeros(count, np.uint64)
    for place in range(ngram):
        total = total * np.uint64(0x100000001B3) + mixed(codes[place : place + count])
    return np.unique(mixed(total))


def jaccard(one: Ints, other: Ints) -> float:
    """Jaccard similarity of two sets of shingles; 0 for two empty ones."""
    both = len(np.intersect1d(one, other, assume_unique=True))
    either = len(one) + len(other) - both
    return both / either if either else 0.0


def text_key(text: str) -> tuple[int, int]:
    """128 bits of the SHA-256 of a text."""
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")


def band_keys(signature: Ints) -> Iterable[tuple[int, int]]:
    """128 bits of each band of a signature."""
    hashed = needed("xxhash", "data").xxh3_128_digest
    for band in signature:
        digest = hashed(band.tobytes())
        yield int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write a .npy file, whole or not at all."""
    data = io.BytesIO()
    np.save(data, array)
    write_atomic(path, data.getvalue())


def write_tables(path: Path, tables: Sequence[Sequence[tuple[int, int, int]]]) -> list[int]:
    """Write tables of (a, b, document), each sorted; returns their lengths."""
    arrays = [np.array(table, ROW) for table in tables]
    for array in arrays:
        array.sort(order=("a", "b", "document"))
    write_atomic(path, b"".join(array.tobytes() for array in arrays))
    return [len(array) for array in arrays]


def read_range(
    path: Path, lengths: Sequence[int], table: int, low: int, high: int
) -> NDArray[np.void]:
    """Rows of one table with ``low <= a < high``, by bisection in the file."""
    if not lengths[table]:
        return np.empty(0, ROW)
    start = sum(lengths[:table]) * ROW.itemsize
    rows = np.memmap(path, ROW, "r", start, (lengths[table],))
    return np.array(rows[_first(rows, low) : _first(rows, high)])


def _first(rows: NDArray[np.void], key: int) -> int:
    """Number of rows with ``a < key``."""
    low, high = 0, len(rows)
    while low < high:
        middle = (low + high) // 2
        if int(rows[middle]["a"]) < key:
            low = middle + 1
        else:
            high = middle
    return low
