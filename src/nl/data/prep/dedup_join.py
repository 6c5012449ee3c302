"""Equal keys over all parts, and what follows from them: which documents go. Floor 1.

Keys are joined in ranges that fit into memory; a document is known by its place, the number of its
part and its number there, so the order of places is the order of the corpus.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nl.data.prep.dedup_signatures import Ints, read_range

TOP = 1 << 64
PLACE_BITS = np.uint64(32)
EXACT, NEAR = 0, 1
REASONS = ("exact_duplicate", "near_duplicate")


def places(part: int, documents: NDArray[np.uint32]) -> Ints:
    """Places of documents of one part."""
    return (np.uint64(part) << PLACE_BITS) | documents.astype(np.uint64)


def equal_pairs(
    files: Sequence[tuple[Path, Sequence[int]]], table: int, number: int, ranges: int
) -> Ints:
    """Pairs (first place, later place) of equal keys in one of ``ranges`` ranges of a table.

    Args:
        files: tables of every part (``write_tables``) and their lengths, in corpus order.
        table: which table.
        number: which range.
        ranges: ranges that the keys are cut into; memory is that of one range.
    """
    low, high = number * TOP // ranges, (number + 1) * TOP // ranges
    keys, where = [], []
    for part, (path, lengths) in enumerate(files):
        rows = read_range(path, lengths, table, low, high)
        keys.append(rows[["a", "b"]])
        where.append(places(part, rows["document"]))
    a, b = (np.concatenate([k[name] for k in keys]) for name in ("a", "b"))
    place = np.concatenate(where)
    order = np.lexsort((place, b, a))
    a, b, place = a[order], b[order], place[order]
    same = np.zeros(len(a), bool)
    same[1:] = (a[1:] == a[:-1]) & (b[1:] == b[:-1])
    head = np.maximum.accumulate(np.where(same, 0, np.arange(len(a))))
    return np.stack([place[head[same]], place[same]], axis=1)


def decide(exact: Ints, near: Iterable[Ints]) -> Ints:
    """What goes: rows (place, place of what stays for it, reason), sorted by place.

    Of equal texts the first stays; of near-duplicates that hang together the first of those that
    are left. Memory: the distinct pairs of near-duplicates, 16 bytes each, some times over.

    Args:
        exact: pairs of equal texts, every later text once.
        near: pairs of near-duplicates, in pieces.
    """
    exact = exact[np.argsort(exact[:, 1])]
    pairs = np.empty((0, 2), np.uint64)
    for piece in near:
        moved = np.stack([_stays(exact, piece[:, 0]), _stays(exact, piece[:, 1])], axis=1)
        moved = np.sort(moved[moved[:, 0] != moved[:, 1]], axis=1)
        pairs = np.unique(np.concatenate([pairs, moved]), axis=0)
    labels = components(pairs)
    same = np.full((len(exact), 1), EXACT, np.uint64)
    similar = np.full((len(labels), 1), NEAR, np.uint64)
    rows = np.concatenate([np.hstack([exact[:, ::-1], same]), np.hstack([labels, similar])]).astype(
        np.uint64
    )
    return rows[np.argsort(rows[:, 0])]


def _stays(exact: Ints, place: Ints) -> Ints:
    """For every place, that of the equal text that stays."""
    if not len(exact):
        return place
    found = np.minimum(np.searchsorted(exact[:, 1], place), len(exact) - 1)
    return np.where(exact[found, 1] == place, exact[found, 0], place)


def components(pairs: Ints) -> Ints:
    """Rows (place, first place of its component) of all but the first of each component."""
    if not len(pairs):
        return np.empty((0, 2), np.uint64)
    nodes, flat = np.unique(pairs, return_inverse=True)
    ends = flat.reshape(-1, 2)
    label = np.arange(len(nodes))
    while True:
        lowest = np.minimum(label[ends[:, 0]], label[ends[:, 1]])
        new = label.copy()
        np.minimum.at(new, ends[:, 0], lowest)
        np.minimum.at(new, ends[:, 1], lowest)
        new = new[new]
        if np.array_equal(new, label):
            break
        label = new
    later = label != np.arange(len(nodes))
    return np.stack([nodes[later], nodes[label[later]]], axis=1)


def components_reference(pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The naive twin of ``components``: union by walking lists."""
    groups: list[set[int]] = []
    for one, other in pairs:
        touched = [group for group in groups if one in group or other in group]
        groups = [group for group in groups if group not in touched]
        groups.append({one, other}.union(*touched))
    return sorted((node, min(group)) for group in groups for node in group if node != min(group))
