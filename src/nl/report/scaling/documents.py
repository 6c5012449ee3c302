"""Runs scored on the same windows, folded to sums over documents: what is resampled. Floor 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nl.config import require
from nl.report.scaling.losses import Floats, Ints, Losses

Subset = tuple[int, ...]
Pick = Callable[[Losses], Floats]


@dataclass(frozen=True)
class Table:
    """Sums of losses by run, component, document and position.

    Attributes:
        components: names by code.
        runs: (components in training, seed) of each run.
        subsets: those that occur, smallest first.
        sums: per component (runs, documents, positions).
        windows: per component (documents,), windows behind each sum.
        context: (positions,), what the columns are.
    """

    components: tuple[str, ...]
    runs: tuple[tuple[Subset, int], ...]
    subsets: tuple[Subset, ...]
    sums: tuple[Floats, ...]
    windows: tuple[Floats, ...]
    context: Ints

    def over(self, weights: Floats) -> Table:
        """The same runs with positions (positions, columns) combined, e.g. to their mean."""
        sums = tuple(one @ weights for one in self.sums)
        return replace(self, sums=sums, context=np.arange(weights.shape[1]))

    def mean(self) -> Table:
        """The same runs with the mean over positions as the only column."""
        size = len(self.context)
        return self.over(np.full((size, 1), 1.0 / size))

    def seeds(self, subset: Subset) -> list[int]:
        """Rows of ``runs`` with this training."""
        return [row for row, (one, _) in enumerate(self.runs) if one == subset]

    def least_seeds(self) -> int:
        """Runs of the subset that has the fewest."""
        return min(len(self.seeds(subset)) for subset in self.subsets)

    def drop(self, unwanted: Callable[[Subset], bool]) -> Table:
        """Without the runs of some subsets."""
        rows = [row for row, (subset, _) in enumerate(self.runs) if not unwanted(subset)]
        return replace(
            self,
            runs=tuple(self.runs[row] for row in rows),
            subsets=tuple(one for one in self.subsets if not unwanted(one)),
            sums=tuple(one[rows] for one in self.sums),
        )


def fold(runs: Sequence[Losses], pick: Pick = lambda losses: losses.nll) -> Table:
    """Sums over the windows of every document.

    Args:
        runs: scored on the same windows; two may not have the same training and seed.
        pick: (windows, positions) to sum: losses, or their difference from a floor.

    Raises:
        ConfigError: digests, windows or names differ, a run is there twice, or a component has
            fewer than two documents.
    """
    require(bool(runs), "losses: no run; give at least one.")
    first = runs[0]
    for one in runs[1:]:
        labels = [str(x.more.get("labels", "observed")) for x in (first, one)]
        require(
            labels[0] == labels[1],
            f"{one.source}: labels: {labels[1]}; those of {first.source} are {labels[0]}: read a "
            "control apart from its study (stream.labels).",
        )
        same = one.digest == first.digest and one.components == first.components
        same = same and np.array_equal(one.component, first.component)
        same = same and np.array_equal(one.document, first.document)
        require(
            same and np.array_equal(one.context, first.context),
            f"{one.source}: scored on other windows than {first.source} (windows_digest "
            f"{one.digest[:12]}, not {first.digest[:12]}); evaluate both on one list.",
        )
    keys = [(one.subset, one.seed) for one in runs]
    twice = {key for key in keys if keys.count(key) > 1}
    require(not twice, f"losses: {sorted(twice)}: several runs of one training and seed.")
    values = np.stack([pick(one) for one in runs])
    sums, counts = [], []
    for code, name in enumerate(first.components):
        rows = np.flatnonzero(first.component == code)
        known, place = np.unique(first.document[rows], return_inverse=True)
        require(
            len(known) >= 2,
            f"{first.source}: component {name}: {len(known)} documents; at least 2 are resampled.",
        )
        total = np.zeros((len(runs), len(known), values.shape[2]))
        order = np.argsort(place, kind="stable")
        starts = np.searchsorted(place[order], np.arange(len(known)))
        total[:] = np.add.reduceat(values[:, rows[order]], starts, axis=1)
        sums.append(total)
        counts.append(np.bincount(place).astype(np.float64))
    subsets = tuple(sorted({key[0] for key in keys}, key=lambda one: (len(one), one)))
    return Table(
        components=first.components,
        runs=tuple(keys),
        subsets=subsets,
        sums=tuple(sums),
        windows=tuple(counts),
        context=first.context,
    )
