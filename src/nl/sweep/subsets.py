"""An axis that is the subsets of a list: one variant each, small sets first. Floor 1."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nl.config import require, structure


@dataclass(frozen=True, kw_only=True)
class Subsets:
    """What the axis says instead of variants."""

    subsets_of: tuple[str, ...]
    """The list."""
    key: str
    """Key of the configuration that gets the subset."""
    design: Literal["all", "chain", "single"] = "all"
    """all: every subset that is not empty. chain: the first one, two, three ... of the list.
    single: each alone."""
    sizes: tuple[int, ...] = ()
    """Sizes of the subsets that are run; empty: all."""

    def __post_init__(self) -> None:
        names, sizes = self.subsets_of, self.sizes
        require(bool(names), "subsets_of: empty; name what the subsets are of.")
        require(len(set(names)) == len(names), f"subsets_of: {list(names)}; each once.")
        require(bool(self.key), "key: empty; for example stream.components.")
        good = all(1 <= size <= len(names) for size in sizes)
        require(good, f"sizes: {list(sizes)}; 1 to {len(names)}, the entries of subsets_of.")
        used = not sizes or self.design != "single"
        require(used, f"sizes: {list(sizes)}; design=single has sets of one: leave sizes out.")

    def sets(self) -> list[tuple[str, ...]]:
        """The subsets, by size, in the order of the list."""
        names = self.subsets_of
        every = range(1, len(names) + 1)
        if self.design == "single":
            return [(name,) for name in names]
        if self.design == "chain":
            return [names[:size] for size in every if not self.sizes or size in self.sizes]
        chosen = [size for size in every if not self.sizes or size in self.sizes]
        return [one for size in chosen for one in itertools.combinations(names, size)]

    def variants(self) -> list[dict[str, Any]]:
        """Variants as an axis has them: ``k2_asyncio_email`` sets ``key`` to its list."""
        return [
            {"name": f"k{len(one)}_{'_'.join(map(_plain, one))}", "overrides": {self.key: [*one]}}
            for one in self.sets()
        ]


def _plain(name: str) -> str:
    """A name without what directories do not take."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "", name)


def spelled_out(axes: Any) -> Any:
    """The axes of a sweep file, those that are subsets as lists of variants.

    Raises:
        ConfigError: what is wrong with the axis.
    """
    if not isinstance(axes, Mapping):
        return axes
    return {
        name: structure(Subsets, dict(axis), f"axes.{name}").variants()
        if isinstance(axis, Mapping)
        else axis
        for name, axis in axes.items()
    }
