"""Components: the domains of a data directory, document by document, and shares of a budget.

A component is a domain whose documents are kept apart: windows lie inside one document, which is a
run of tokens of a shard without the EOS that ends it. Floor 1.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from nl.config import ConfigError
from nl.data.manifest import DataManifest, data_tokenizer, read_manifest
from nl.data.shards import Verify, open_shard, release_pages

if TYPE_CHECKING:
    from nl.data.order import Ints  # at run time it would import torch, which analysis does without

LOG = logging.getLogger("nl.data")
Deficit = Literal["error", "redistribute"]


class Documents(NamedTuple):
    """Documents of one component of one split, in the order of its shards; each (documents,).

    Attributes:
        shard: number of the shard among all that are open.
        start: first token in the shard.
        length: tokens, EOS left out.
    """

    shard: Ints
    start: Ints
    length: Ints

    def windows(self, window: int, *, legacy: bool) -> Ints:
        """Windows that each document holds: of ``window`` tokens, and of one more as a target."""
        counts: Ints = (self.length if legacy else self.length - 1).clip(min=0) // window
        return counts


@dataclass(frozen=True)
class ComponentData:
    """Open components of one split.

    Attributes:
        names: components.
        tokens: mapped ids of every open shard.
        documents: by component.
        digest: 12 hex digits over the shards, in order.
    """

    names: tuple[str, ...]
    tokens: tuple[npt.NDArray[Any], ...]
    documents: tuple[Documents, ...]
    digest: str

    def text(self, component: int, document: int) -> npt.NDArray[Any]:
        """The ids of one document."""
        shard, start, length = (column[document] for column in self.documents[component])
        ids: npt.NDArray[Any] = self.tokens[shard][start : start + length]
        return ids

    def release(self) -> None:
        """Take what was read of the shards out of this process's memory."""
        for tokens in self.tokens:
            release_pages(tokens)


def open_components(
    path: str | Path, split: str, names: Sequence[str], verify: Verify
) -> ComponentData:
    """Open components of one split of a data directory.

    Args:
        path: the directory.
        split: of the directory.
        names: components, in this order.
        verify: how much of every shard is compared with the manifest.

    Raises:
        ConfigError: no such directory, split or component (with those there are and what they
            hold), a damaged shard, or a shard that is listed under another split.
    """
    root, manifest = Path(path), read_manifest(path)
    check_splits(manifest, root)
    known_names(manifest, split, names, root)
    ending = special_ids(root)[1]
    tokens: list[npt.NDArray[Any]] = []
    documents, digest = [], hashlib.sha256()
    for name in names:
        parts: list[tuple[Ints, Ints, Ints]] = []
        for info in manifest.splits[split][name].shards:
            shard = open_shard(root, info, manifest.tokenizer, verify)
            ends = shard.ends.astype(np.int64)
            starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
            lengths = ends - starts
            if ending is not None:
                some = np.flatnonzero(lengths > 0)
                lengths[some] -= shard.tokens[ends[some] - 1] == ending
            parts.append((np.full(ends.size, len(tokens), np.int64), starts, lengths))
            tokens.append(shard.tokens)
            digest.update(info.sha256.encode())
            release_pages(shard.tokens)  # checked in full, it would stay
        columns = zip(*parts, strict=True) if parts else ([np.empty(0, np.int64)],) * 3
        documents.append(Documents(*(np.concatenate(column) for column in columns)))
    return ComponentData(tuple(names), tuple(tokens), tuple(documents), digest.hexdigest()[:12])


def check_splits(manifest: DataManifest, root: Path) -> None:
    """Refuse a directory in which a shard serves two splits, or lies in another one's folder.

    Raises:
        ConfigError: naming the shard.
    """
    owner: dict[str, str] = {}
    for split, domains in manifest.splits.items():
        for info in (shard for domain in domains.values() for shard in domain.shards):
            other = owner.setdefault(info.sha256, split)
            folder = Path(info.file).parts[0]
            if other != split or folder != split:
                where = other if other != split else folder
                raise ConfigError(
                    f"{root / info.file}: listed under split {split!r}, but it is of {where!r}; "
                    "training text would be scored as held-out: shard the corpus again."
                )


def known_names(manifest: DataManifest, split: str, names: Sequence[str], root: Path) -> None:
    """Refuse a split that is not there, and components that it does not have.

    Raises:
        ConfigError: naming those it has, with documents and tokens.
    """
    domains = manifest.splits.get(split)
    if domains is None:
        raise ConfigError(f"{root}: no split {split!r}. Known: {', '.join(manifest.splits)}.")
    for name in names:
        if name not in domains:
            known = ", ".join(
                f"{n} ({d.documents:,} documents, {d.tokens:,} tokens)" for n, d in domains.items()
            )
            raise ConfigError(f"components: {name!r}; split {split!r} of {root} has {known}.")


def largest(manifest: DataManifest, count: int, by: Literal["tokens", "documents"]) -> list[str]:
    """The components of the training split that hold most, the largest first.

    Raises:
        ConfigError: there are fewer.
    """
    domains = manifest.splits.get("train", {})
    if not 1 <= count <= len(domains):
        raise ConfigError(f"top: {count}; {manifest.name} has {len(domains)} components.")
    order = sorted(domains, key=lambda name: (-int(getattr(domains[name], by)), name))
    return order[:count]


@lru_cache(maxsize=8)
def special_ids(root: Path) -> tuple[int | None, int | None]:
    """Ids of BOS and EOS; None where the tokenizer of imported ids cannot be loaded."""
    try:
        tokenizer = data_tokenizer(root)
    except ConfigError as error:
        LOG.warning("%s: BOS and EOS are not known (%s)", root, error)
        return None, None
    return tokenizer.bos_id, tokenizer.eos_id


def shares(
    available: Mapping[str, int], budget: int, deficit: Deficit, key: str = "budget", hint: str = ""
) -> dict[str, int]:
    """Windows of every component that together are exactly the budget.

    Args:
        available: windows that each component has.
        budget: windows of all.
        deficit: error: equal shares, or none. redistribute: what one lacks the others give, as
            equally as can be, in the order of the components.
        key: what the errors name.
        hint: what else a component that is too small may need.

    Raises:
        ConfigError: the budget cannot be divided, a component is smaller than its share, or all
            together are smaller than the budget; with the counts.
    """
    count = len(available)
    counts = ", ".join(f"{name} {windows:,}" for name, windows in available.items())
    if budget < count or (deficit == "error" and budget % count):
        below = budget - budget % count
        near = [str(n) for n in (below, below + count) if n >= count]
        raise ConfigError(
            f"{key}: {budget}; {count} components cannot have equal shares: set "
            f"{' or '.join(near)}."
        )
    short = [name for name, windows in available.items() if windows * count < budget]
    if short and deficit == "error":
        raise ConfigError(
            f"{key}: {budget:,} windows, {budget // count:,} of each of {count} components, but "
            f"{', '.join(f'{name} has {available[name]:,}' for name in short)}; available: "
            f"{counts}. Lower the budget"
            + (", or set deficit=redistribute" if count > 1 else "")
            + f"{hint}."
        )
    if sum(available.values()) < budget:
        raise ConfigError(
            f"{key}: {budget:,} windows; all components together have "
            f"{sum(available.values()):,} ({counts}): lower it."
        )
    found: dict[str, int] = {}
    left = budget
    for number, name in enumerate(sorted(available, key=lambda name: available[name])):
        found[name] = min(available[name], left // (count - number))
        left -= found[name]
    return {name: found[name] for name in available}


def common_budget(available: Mapping[str, int], key: str = "budget") -> int:
    """The largest budget that the smallest component alone can give, and any number can share.

    Raises:
        ConfigError: it is smaller than the smallest number that all can share.
    """
    step = math.lcm(*range(1, len(available) + 1))
    smallest = min(available.values())
    if smallest < step:
        counts = ", ".join(f"{name} {windows:,}" for name, windows in available.items())
        raise ConfigError(
            f"{key}: 0; no multiple of {step} fits the smallest of {counts}: give the number of "
            "windows."
        )
    return smallest - smallest % step


def gather(
    data: ComponentData, component: Ints, document: Ints, start: Ints, width: int
) -> npt.NDArray[Any]:
    """(B, width) int32 ids from ``start`` of documents on."""
    rows = np.empty((component.size, width), dtype=np.int32)
    shard, first = np.empty_like(start), np.empty_like(start)
    for number, table in enumerate(data.documents):
        mine = np.flatnonzero(component == number)
        shard[mine] = table.shard[document[mine]]
        first[mine] = table.start[document[mine]] + start[mine]
    span = np.arange(width)
    for one in sorted(set(shard.tolist())):
        mine = np.flatnonzero(shard == one)
        rows[mine] = data.tokens[one][first[mine, None] + span]
    return rows
