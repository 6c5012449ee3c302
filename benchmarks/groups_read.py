"""What runs on group composition did, and what theory said of them: read from run directories."""

from __future__ import annotations

import functools
import itertools
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import study
from groups_cells import staircase_cell

from nl.core.groups import FiniteGroup, Plateau, Step, irreps, plateaus
from nl.core.groups.finite import Floats
from nl.run.files import write_json

SMALL = (1e-8, 1e-5)
"""Shares of its final power between which an irrep counts as small: there it grows evenly."""
AMPLITUDE = 0.25
"""Share of its power at which half of the amplitude of an irrep is there."""
DEAD = 0.1
"""A neuron whose output is below this share of the largest one's is dead."""


@dataclass(frozen=True)
class Theory:
    """What is known before training."""

    group: FiniteGroup
    template: Floats
    stairs: tuple[Step, ...]
    powers: dict[str, float]
    length: int
    lr: float
    growth: float
    """Of the first irrep, per step, as steps compound it; nan where it is not known."""


@dataclass(frozen=True)
class Seen:
    """What one run did.

    Attributes:
        plateaus: between two stairs.
        halves: step at which each irrep has half its power.
        escapes: step at which it has half its amplitude.
        growth: of the first irrep, per step.
        final: the last loss.
    """

    plateaus: list[Plateau]
    halves: dict[str, float]
    escapes: dict[str, float]
    growth: float
    final: float


@functools.cache
def configured(overrides: tuple[str, ...]) -> Any:
    """A run as train.py composes it."""
    import nl.assembly  # noqa: F401 - registers the parts
    from nl.config.hydra import compose, run_config

    return run_config(compose(study.CONFIG, list(overrides)))


@functools.cache
def theory(overrides: tuple[str, ...]) -> Theory:
    """From the configuration."""
    from nl.data.group_forecast import forecast

    run = configured(overrides)
    known = forecast(run)
    assert known is not None
    group, template = known.group, known.template
    powers = {one.name: float(one.power(group, template)) / group.order for one in irreps(group)}
    kept = {key: value for key, value in powers.items() if value > 1e-8 * sum(powers.values())}
    growth = math.nan if known.growth is None else known.growth[0]
    return Theory(group, template, known.stairs, kept, known.length, run.optim.lr, growth)


def seen(root: Path, run: str, known: Theory) -> Seen:
    """Read one run."""
    steps, losses = study.curve(root, run, "loss")
    halves: dict[str, float] = {}
    escapes: dict[str, float] = {}
    curves: dict[str, list[float]] = {}
    for irrep, power in known.powers.items():
        _, curves[irrep] = study.curve(root, run, f"power/{irrep}")
        for found, share in ((halves, 0.5), (escapes, AMPLITUDE)):
            pairs = zip(steps, curves[irrep], strict=True)
            found[irrep] = next((s for s, p in pairs if p > share * power), math.inf)
    first = known.stairs[0].names[0]
    bounds = [share * known.powers[first] for share in SMALL]
    small = [(s, p) for s, p in zip(steps, curves[first], strict=True) if bounds[0] < p < bounds[1]]
    growth = math.nan
    if len(small) > 2:
        (start, begin), (end, done) = small[0], small[-1]
        growth = math.log(done / begin) / (end - start) / (2 * (known.length + 1))
    between = plateaus(steps, losses, known.stairs)[1:]
    return Seen(between, halves, escapes, growth, losses[-1])


def in_order(known: Theory, one: Seen, *, whole: bool = True) -> bool:
    """Whether every irrep had half its power before any of a later stair had.

    ``whole``: and all of them were learned; else those that were not may come later.
    """
    if whole and not all(math.isfinite(step) for step in one.halves.values()):
        return False
    pairs = itertools.pairwise(known.stairs)
    spans = [
        (max(one.halves[n] for n in earlier.names), min(one.halves[n] for n in later.names))
        for earlier, later in pairs
    ]
    return all(last < first or math.isinf(first) for last, first in spans)


def simulated(root: Path, experiment: str, seed: int) -> dict[str, float]:
    """Steps at which alternating gradient flows expect each irrep, from the run's own weights.

    Kept beside the run, with its plateaus.
    """
    from nl.cli_staircase import FILES, measured, theory_of

    cell = staircase_cell(experiment, seed)
    folder = root / cell.name / "artifacts"
    kept = folder / FILES[0]
    if not kept.is_file():
        found = theory_of(configured(cell.overrides), simulated=True)
        write_json(kept, found)
        write_json(folder / FILES[1], measured(root / cell.name, found))
    return {one["name"]: one["step"] for one in json.loads(kept.read_text())["simulated"]}


def over_seeds(root: Path, runs: Sequence[str], key: str) -> dict[str, list[float]]:
    """Median, lowest and highest of a curve over runs with the same rows."""
    curves = [study.curve(root, run, key) for run in runs]
    rows = min(len(steps) for steps, _ in curves)
    columns = list(zip(*(values[:rows] for _, values in curves), strict=True))
    return {
        "x": curves[0][0][:rows],
        "y": [statistics.median(column) for column in columns],
        "low": [min(column) for column in columns],
        "high": [max(column) for column in columns],
    }


# Weights


def model_at(root: Path, run: str, step: int | None = None) -> Any:
    """The model of a run after ``step`` steps; None: at its end."""
    from nl.assembly import load_model

    home = root / run
    return load_model(home if step is None else home / "checkpoints" / f"step_{step:06d}")


@dataclass(frozen=True)
class Specialised:
    """Neurons by what they write.

    Attributes:
        owner: (H,) name of the irrep with most of the neuron's output, or ``dead``.
        share: (H,) of the output that lies in that irrep.
        norm: (H,) of the output weights.
    """

    owner: list[str]
    share: list[float]
    norm: list[float]

    def count(self, name: str) -> int:
        """Neurons of one irrep, or dead ones."""
        return self.owner.count(name)

    def order(self, names: Sequence[str]) -> list[int]:
        """Neuron numbers, block by block, the strongest first."""
        place = {name: n for n, name in enumerate(names)}
        return sorted(range(len(self.owner)), key=lambda i: (place[self.owner[i]], -self.norm[i]))


def specialised(group: FiniteGroup, writes: Floats) -> Specialised:
    """Of output weights (H, N), functions on the group."""
    found = irreps(group)
    powers = np.stack([one.power(group, writes) for one in found])
    norms = np.sqrt(powers.sum(axis=0))
    best = powers.argmax(axis=0)
    dead = norms < DEAD * norms.max()
    owner = ["dead" if gone else found[n].name for gone, n in zip(dead, best.tolist(), strict=True)]
    share = powers.max(axis=0) / np.maximum(norms**2, 1e-300)
    return Specialised(owner, share.tolist(), norms.tolist())


@dataclass(frozen=True)
class Carried:
    """What W_mix brings to every neuron after two elements.

    Attributes:
        explained: share of its variance that depends on the product of the two alone.
        own: by irrep: of what reaches the neurons that write it, the share in that irrep.
        all: by irrep: its share of what reaches any neuron.
    """

    explained: float
    own: dict[str, float]
    all: dict[str, float]


def carried(known: Theory, model: Any) -> Carried:
    """Of a quadratic RNN, over all pairs of elements."""
    import torch

    group, order = known.group, known.group.order
    shown = torch.tensor(group.shown(known.template), dtype=torch.float32)
    first, second = (part.ravel() for part in np.indices((order, order)))
    with torch.no_grad():
        hidden = model.cell.join(shown[first] @ model.first.T, shown[second])
        brought = (hidden @ model.cell.mix.T).double().numpy()
    product = group.table[first, second]
    means = np.stack([brought[product == g].mean(axis=0) for g in range(order)], axis=1)
    means -= means.mean(axis=1, keepdims=True)
    spread = np.square(brought - brought.mean(axis=0)).sum()
    found = {one.name: one.power(group, means) for one in irreps(group)}
    owner = np.asarray(specialised(group, writes_of(model)).owner)
    total = sum(float(power.sum()) for power in found.values())
    own = {}
    for name in known.powers:
        reaching = sum(float(power[owner == name].sum()) for power in found.values())
        own[name] = float(found[name][owner == name].sum()) / reaching if reaching else math.nan
    shares = {name: float(found[name].sum()) / total for name in known.powers}
    return Carried(float(np.square(means).sum()) * order / spread, own, shares)


def writes_of(model: Any) -> Floats:
    """Output weights (H, N) of any network of the study."""
    weights = model.neurons()[1] if hasattr(model, "neurons") else model.out.T
    return np.asarray(weights.detach().double().numpy())
