"""Data sets of the Hugging Face hub, streamed through ``datasets``. Floor 1."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nl.config import ConfigError
from nl.data.prep.extras import needed
from nl.data.prep.sources_local import choose_split
from nl.data.prep.sources_spec import EVERY, Source

LOG = logging.getLogger("nl.data")


@dataclass(frozen=True)
class Hub:
    """One split of one data set, opened again by every task that reads of it."""

    dataset: str
    subset: str | None
    revision: str | None
    split: str
    data_files: tuple[str, ...]
    shards: int

    def identity(self) -> list[Any]:
        """What was asked for; without a revision, what the hub has today is not part of it."""
        return [self.dataset, self.subset, self.revision, self.split, list(self.data_files)]

    def rows(self, number: int, count: int) -> Iterator[dict[str, Any]]:
        """Rows of shard ``number`` of ``count``; of all if that is 1."""
        stream = self._stream
        return iter(stream if count == 1 else stream.shard(num_shards=count, index=number))

    def class_names(self, column: str) -> tuple[str, ...]:
        """Names of the labels of a column that are numbers; empty where it has none."""
        features = self._stream.features or {}
        return tuple(getattr(features.get(column), "names", None) or ())

    @cached_property
    def _stream(self) -> Any:
        return _splits(self.dataset, self.subset, self.revision, self.data_files)[self.split]


def find_hub(source: Source) -> tuple[Hub, ...]:
    """Look a data set up: the split that is wanted, or every split.

    Raises:
        ConfigError: it cannot be reached or does not exist; one line says what was looked for,
            where, and what to do without a network.
    """
    given = source.data_files
    files = () if given is None else (given,) if isinstance(given, str) else tuple(given)
    if os.environ.get("HF_HUB_OFFLINE", "") in ("", "0"):
        LOG.info("%s: looking for %s on the hub", source.name, source.dataset)
    try:
        found = _splits(source.dataset, source.subset, source.revision, files)
    except ConfigError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(_not_found(source, error)) from error
    every = source.split == EVERY
    splits = sorted(found) if every else [choose_split(source.split, sorted(found), source)]
    return tuple(
        Hub(
            dataset=source.dataset,
            subset=source.subset,
            revision=source.revision,
            split=split,
            data_files=files,
            shards=max(1, found[split].num_shards),
        )
        for split in splits
    )


def _splits(dataset: str, subset: str | None, revision: str | None, files: tuple[str, ...]) -> Any:
    datasets = needed("datasets", "data")
    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return datasets.load_dataset(
        dataset,
        subset,
        revision=revision,
        streaming=True,
        data_files=list(files) if files else None,
    )


def _not_found(source: Source, error: Exception) -> str:
    """One line: what was looked for, where, why not, and the local recipe."""
    from datasets import config

    what = f"{source.dataset}, subset {source.subset or 'default'}, split {source.split}"
    mirror = ", ".join(source.paths) or "none named"
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    reason = "HF_HUB_OFFLINE is set" if offline else " ".join(str(error).split())[:200]
    return (
        f"{source.name}: cannot read {what}; looked at the local mirror ({mirror}), the cache "
        f"({config.HF_DATASETS_CACHE}) and the hub ({reason}). Without a network: put its files on "
        "this machine and name them in the manifest (local: path or pattern), or use "
        "--dataset json|parquet|arrow|text with --data-files."
    )
