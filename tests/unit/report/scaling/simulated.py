"""Simulated losses: what is true is known, so that intervals can be counted."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nl.report.scaling.losses import Losses


@dataclass(frozen=True)
class World:
    """Losses of every subset of some components.

    Attributes:
        effect: added to XE per ln K.
        foreign: added where a component was not in training.
        document, seed, cell, token: standard deviations; of a document (shared by all runs), of a
            run (shared by its components), of a run on a document, of a token.
    """

    components: int = 3
    seeds: int = 3
    documents: int = 16
    windows: int = 1
    positions: int = 2
    effect: float = 0.1
    foreign: float = 1.0
    document: float = 1.0
    seed: float = 0.05
    cell: float = 0.1
    token: float = 0.0
    sizes: tuple[int, ...] = ()

    def subsets(self) -> list[tuple[int, ...]]:
        found = []
        for size in self.sizes or range(1, self.components + 1):
            found += list(itertools.combinations(range(self.components), size))
        return found

    def runs(self, rng: np.random.Generator) -> list[Losses]:
        names = tuple(f"c{n}" for n in range(self.components))
        count = self.components * self.documents * self.windows
        component = np.repeat(np.arange(self.components), self.documents * self.windows)
        document = np.tile(np.repeat(np.arange(self.documents), self.windows), self.components)
        place = component * self.documents + document
        size = self.components * self.documents
        hard = rng.normal(0, self.document, size)[place] + component
        found = []
        for subset in self.subsets():
            for seed in range(self.seeds):
                level = self.effect * np.log(len(subset)) + rng.normal(0, self.seed)
                level = level + self.foreign * ~np.isin(component, subset)
                level = level + hard + rng.normal(0, self.cell, size)[place]
                nll = np.repeat(level[:, None], self.positions, 1)
                nll = nll + rng.normal(0, self.token, (count, self.positions))
                found.append(
                    Losses(
                        nll=nll + 3,
                        component=component,
                        document=document,
                        context=np.arange(1, self.positions + 1),
                        components=names,
                        trained_on=tuple(names[c] for c in subset),
                        digest="same",
                        seed=seed,
                    )
                )
        return found


def write(path: Path, losses: Losses, **more: object) -> Path:
    """The file an evaluator writes."""
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "nll": losses.nll.astype(np.float32),
        "component": losses.component,
        "document": losses.document,
        "context": losses.context.astype(np.int64),
        **{name: one.astype(np.float32) for name, one in losses.exact.items()},
        **losses.counted,
    }
    meta = {
        "components": losses.components,
        "trained_on": losses.trained_on,
        "windows_digest": losses.digest,
        "split": losses.split or "test",
        "seed": losses.seed,
        **more,
    }
    save_file(tensors, str(path), {key: json.dumps(value) for key, value in meta.items()})
    return path


def share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits)
