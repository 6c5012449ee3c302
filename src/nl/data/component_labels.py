"""Whose component labels are read: those of the data, or the same labels permuted. Floor 1.

The control of a study of K components: documents keep their text and their split, but which
component each is of is drawn anew, uniformly among all ways that leave every component as many
documents as it has. Components are exchangeable then, and what still changes with K is not of
components (Good, 2005, Permutation, Parametric and Bootstrap Tests of Hypotheses).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nl.core.seeds import SeedBook
from nl.data.components import ComponentData, Documents, known_names, open_components
from nl.data.manifest import read_manifest
from nl.data.shards import Verify


def open_labelled(
    path: str | Path, split: str, names: Sequence[str], verify: Verify, label_seed: int | None
) -> ComponentData:
    """Open components of one split of a data directory under its labels, or under permuted ones.

    Args:
        path: the directory.
        split: of the directory.
        names: components, in this order.
        verify: how much of every shard is compared with the manifest.
        label_seed: of the permutation; None: labels are those of the data.

    Returns:
        The components. With permuted labels their documents are in the order of the directory, and
        the digest is another.

    Raises:
        ConfigError: as ``open_components``.
    """
    if label_seed is None:
        return open_components(path, split, names, verify)
    manifest = read_manifest(path)
    known_names(manifest, split, names, Path(path))
    whole = open_components(path, split, tuple(manifest.splits[split]), verify)
    found = permuted(whole.documents, SeedBook(label_seed).seed("labels", split))
    wanted = tuple(found[whole.names.index(name)] for name in names)
    mark = SeedBook(label_seed).seed("labels", split, whole.digest, *names)
    return ComponentData(tuple(names), whole.tokens, wanted, f"{mark:016x}"[:12])


def permuted(documents: Sequence[Documents], seed: int) -> tuple[Documents, ...]:
    """The same documents of all components together, each under a label that was drawn.

    Every component keeps its number of documents; its number of tokens is what they hold.
    """
    label = np.repeat(np.arange(len(documents)), [one.length.size for one in documents])
    label = np.random.Generator(np.random.Philox(seed)).permutation(label)
    columns = [np.concatenate(column) for column in zip(*documents, strict=True)]
    return tuple(
        Documents(*(column[label == code] for column in columns)) for code in range(len(documents))
    )
