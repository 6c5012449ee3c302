"""The windows that every model is scored on: drawn once from a held-out split, kept in a file.

Every document gives a window before one gives a second. The list follows from the shards, the cut
and a seed alone; it is written beside the shards the first time and its digest is compared after
that, so that numbers of different runs are of the same windows. Floor 1.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from nl.config import ConfigError, require
from nl.core.seeds import SeedBook
from nl.data.component_labels import open_labelled
from nl.data.component_windows import Cut, seeded_order
from nl.data.components import ComponentData, gather, open_components, special_ids
from nl.data.files import write_atomic
from nl.data.manifest import data_tokenizer, read_manifest
from nl.data.order import Ints
from nl.data.token_bytes import token_bytes

LOG = logging.getLogger("nl.data")
FOLDER = "windows"
"""Where lists lie in a data directory."""


class WindowList(NamedTuple):
    """Where windows are; each (N,) int64: component, document in it, first token in that."""

    component: Ints
    document: Ints
    offset: Ints


@dataclass(frozen=True)
class FrozenWindows:
    """Windows of all components of a split, as rows.

    Attributes:
        components: names, in the order of the codes.
        component, document: (N,) int64; documents are numbered through all components.
        inputs, targets: (N, positions) int32.
        context: (positions,) tokens before each target, BOS not counted.
        bytes: (N, positions) int64, of the text of each target; None where that is not known.
        digest: SHA-256 of the list, of what it was drawn from, and of how it is cut.
        facts: what else is known of the run (``trained_on``, ``budget``).
    """

    components: tuple[str, ...]
    component: Ints
    document: Ints
    inputs: Tensor
    targets: Tensor
    context: Ints
    bytes: Ints | None
    digest: str
    facts: Mapping[str, Any]


def frozen_windows(
    path: str | Path,
    split: str,
    cut: Cut,
    count: int,
    seed: int,
    facts: Mapping[str, Any],
    *,
    label_seed: int | None = None,
) -> FrozenWindows:
    """Draw or read the list of a split.

    Args:
        path: data directory.
        split: val or test.
        cut: how rows are cut.
        count: windows of a component at most; 0: all.
        seed: of the list, not of a run.
        facts: kept as they are.
        label_seed: of permuted labels; None: labels are those of the data.

    Raises:
        ConfigError: no such split, a component without a window, a file that was changed, a
            held-out document that is in train.
    """
    require(split in ("val", "test"), f"split: {split!r}; windows are drawn from val or test.")
    root, manifest = Path(path), read_manifest(path)
    if split not in manifest.splits:
        raise ConfigError(f"{root}: no split {split!r}. Known: {', '.join(manifest.splits)}.")
    names = tuple(manifest.splits[split])
    data = open_labelled(root, split, names, "header", label_seed)
    about = {"split": split, **_about(data, cut), "count": count, "seed": seed}
    if label_seed is not None:  # lists of the data's own labels keep their names
        about |= {"labels": "permuted", "label_seed": label_seed}
    found, digest = _listed(root, data, cut, about)
    rows = gather(data, found.component, found.document, found.offset, cut.width)
    inputs, targets = cut.rows(rows)
    first = np.cumsum([0, *(d.length.size for d in data.documents)])
    sizes = None
    if special_ids(root)[1] is not None:
        sizes = token_bytes(data_tokenizer(root))[targets.numpy()]
    return FrozenWindows(
        components=names,
        component=found.component,
        document=first[found.component] + found.document,
        inputs=inputs,
        targets=targets,
        context=cut.context,
        bytes=sizes,
        digest=digest,
        facts=facts,
    )


def _about(data: ComponentData, cut: Cut) -> dict[str, Any]:
    """What windows are cut from, and how."""
    return {
        "components": list(data.names),
        "shards": data.digest,
        "window": cut.window,
        "legacy": cut.legacy,
        "bos": cut.bos is not None,
    }


def _listed(
    root: Path, data: ComponentData, cut: Cut, about: Mapping[str, Any]
) -> tuple[WindowList, str]:
    """The list and its digest; made, checked against train and written where there is none."""
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()
    file = root / FOLDER / f"{about['split']}_w{cut.window}_{key[:12]}.npz"
    if file.is_file():
        found = _read(file, about)
        return found, _digest(found, about)
    check_apart(root, about["split"])
    found = draw(data, cut, about["count"], about["seed"])
    digest = _digest(found, about)
    out = io.BytesIO()
    text = np.array(json.dumps({**about, "digest": digest}))
    np.savez_compressed(out, about=text, **found._asdict())
    try:
        write_atomic(file, out.getvalue())
    except ConfigError as error:  # a data directory that is only read: the list is the same anyway
        LOG.warning("the list of windows is not kept: %s", error)
    return found, digest


def _read(file: Path, about: Mapping[str, Any]) -> WindowList:
    try:
        with np.load(file, allow_pickle=False) as kept:
            found = WindowList(*(kept[name].astype(np.int64) for name in WindowList._fields))
            said = json.loads(str(kept["about"]))
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{file}: not a list of windows ({error}); remove it.") from error
    digest = said.pop("digest", None)
    if said != about or digest != _digest(found, about):
        raise ConfigError(
            f"{file}: its digest is not that of its windows (the file was changed); remove it, it "
            "is drawn again."
        )
    return found


def _digest(found: WindowList, about: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(about).encode())
    for column in found:
        digest.update(np.ascontiguousarray(column, dtype="<i8").tobytes())
    return digest.hexdigest()


def draw(data: ComponentData, cut: Cut, count: int, seed: int) -> WindowList:
    """Windows of every component, in rounds over its documents.

    Raises:
        ConfigError: a component of which no document holds a window.
    """
    columns: list[tuple[Ints, Ints, Ints]] = []
    for code, (name, documents) in enumerate(zip(data.names, data.documents, strict=True)):
        counts = documents.windows(cut.window, legacy=cut.legacy)
        whole = int(counts.sum())
        require(
            whole > 0,
            f"windows: no held-out document of component {name!r} holds {cut.width} tokens; it has "
            f"{counts.size} documents.",
        )
        order = seeded_order(counts.size, seed, name)
        book = SeedBook(seed).seed("windows", name)
        rng = np.random.Generator(np.random.Philox(book))
        turns, document, number = [], [], []
        for place in order.tolist():
            turns.append(np.arange(counts[place]))
            document.append(np.full(counts[place], place))
            number.append(rng.permutation(counts[place]))
        ranked = np.argsort(np.concatenate(turns), kind="stable")[: count or whole]
        chosen = np.concatenate(document)[ranked]
        offset = np.concatenate(number)[ranked] * cut.window
        columns.append((np.full(ranked.size, code), chosen, offset))
    return WindowList(*(np.concatenate(c).astype(np.int64) for c in zip(*columns, strict=True)))


def digests(data: ComponentData) -> dict[bytes, tuple[int, int]]:
    """Digest of the ids of every document -> (component, document)."""
    return {
        hashlib.blake2b(
            np.ascontiguousarray(data.text(c, d), dtype="<u4").tobytes(), digest_size=16
        ).digest(): (c, d)
        for c, documents in enumerate(data.documents)
        for d in range(documents.length.size)
        if documents.length[d]
    }


def check_apart(root: Path, split: str) -> None:
    """Refuse held-out documents that are in train, token by token.

    Raises:
        ConfigError: naming the first and how many there are.
    """
    splits = read_manifest(root).splits
    train, data = (
        splits.get("train", {}),
        open_components(root, split, tuple(splits[split]), "header"),
    )
    known = digests(open_components(root, "train", tuple(train), "header"))
    both = [place for key, place in digests(data).items() if key in known]
    if both:
        component, document = both[0]
        raise ConfigError(
            f"{root}: {len(both)} documents of split {split!r} are in train, the first is document "
            f"{document} of {data.names[component]!r}; divide the corpus again "
            "(scripts/data/process_mixture.py) or mend the split map."
        )
