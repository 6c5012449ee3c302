"""Does learning follow the staircase? Group composition against the theory of its plateaus.

Trains experiment=groups/* through train.py (finished runs are kept) and compares, from the run
directories: the loss on every plateau, which irreducible representation is learned when, and how
fast the first one grows, with what `nl.core.groups.staircase` says from the group and the template
alone. Writes the page with its figures and CSV.

Example: python benchmarks/groups.py --seeds 3 --jobs 2
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import study

from nl.core.groups import FiniteGroup, Step, growth_rate, irreps, staircase
from nl.report.figures import Figure, Line

EXPERIMENTS = ("c10", "c10_k3", "c3xc3", "c4xc4", "d3", "octahedral", "a5")
SHIPPED = {
    "c10_k3": ("config_c10", 0.01, 1000),
    "c4xc4": ("config_c4x4", 0.01, 1000),
    "d3": ("config_d3 (template ten times larger)", 0.01, 2000),
    "octahedral": ("config_octahedral", 0.01, 1000),
    "a5": ("config_a5", 0.001, 1000),
}
"""The earlier system's configurations: name, learning rate, epochs."""
POINTS = 250
"""Of a curve, at most."""
SMALL = (1e-8, 1e-5)
"""Shares of its final power between which an irrep counts as small: there it grows evenly."""


@dataclass(frozen=True)
class Theory:
    """What is known before training."""

    group: FiniteGroup
    stairs: tuple[Step, ...]
    powers: dict[str, float]
    length: int
    lr: float

    @property
    def growth(self) -> float:
        """Of the first irrep, per step, as steps compound it."""
        return math.log1p(growth_rate(self.group, self.stairs[0].utility, self.length, self.lr))


@dataclass(frozen=True)
class Seen:
    """What one run did.

    Attributes:
        plateaus: loss at the flattest point between two stairs, and how many steps it stayed
            within 5 % of theory.
        halves: step at which each irrep has half its power.
        growth: of the first irrep, per step.
        final: the last loss.
    """

    plateaus: list[tuple[float, int]]
    halves: dict[str, float]
    growth: float
    final: float


def name(experiment: str, seed: int) -> str:
    """The directory of one run."""
    return f"{experiment}-s{seed}"


def cell(experiment: str, seed: int) -> study.Cell:
    """One run."""
    return study.Cell(
        name(experiment, seed),
        (f"experiment=groups/{experiment}", f"seed={seed}", "logging.every=2"),
    )


def theory(experiment: str) -> Theory:
    """From the configuration."""
    import nl.assembly  # noqa: F401 - registers the parts
    from nl.config.hydra import compose, run_config
    from nl.data.groups import GroupCompositionConfig
    from nl.optim.scaled_sgd import ScaledSGDConfig

    run = run_config(compose(study.CONFIG, [f"experiment=groups/{experiment}"]))
    stream, optim = run.stream, run.optim
    assert isinstance(stream, GroupCompositionConfig)
    assert isinstance(optim, ScaledSGDConfig)
    group, template = stream.finite_group(), stream.values()
    powers = {one.name: float(one.power(group, template)) / group.order for one in irreps(group)}
    kept = {key: value for key, value in powers.items() if value > 1e-8 * sum(powers.values())}
    stairs = staircase(group, template, stream.length)
    return Theory(group, stairs, kept, stream.length, optim.lr)


def seen(root: Path, run: str, known: Theory) -> Seen:
    """Read one run."""
    steps, losses = study.curve(root, run, "loss")
    halves, curves = {}, {}
    for irrep, power in known.powers.items():
        _, curves[irrep] = study.curve(root, run, f"power/{irrep}")
        over = [s for s, p in zip(steps, curves[irrep], strict=True) if p > 0.5 * power]
        halves[irrep] = over[0] if over else math.inf
    plateaus = []
    for one, following in itertools.pairwise(known.stairs):
        high, low = (one.before + one.after) / 2, (following.before + following.after) / 2
        between = [n for n, loss in enumerate(losses) if low < loss < high and n + 1 < len(losses)]
        near = [
            s for s, loss in zip(steps, losses, strict=True) if abs(loss / one.after - 1) < 0.05
        ]
        stayed = round(near[-1] - near[0]) if near else 0
        flat = min(between, key=lambda n: abs(losses[n + 1] - losses[n]), default=None)
        plateaus.append((math.nan if flat is None else losses[flat], stayed))
    first = known.stairs[0].names[0]
    bounds = [share * known.powers[first] for share in SMALL]
    small = [(s, p) for s, p in zip(steps, curves[first], strict=True) if bounds[0] < p < bounds[1]]
    growth = math.nan
    if len(small) > 2:
        (start, begin), (end, done) = small[0], small[-1]
        growth = math.log(done / begin) / (end - start) / (2 * (known.length + 1))
    return Seen(plateaus, halves, growth, losses[-1])


def row(experiment: str, known: Theory, found: Sequence[Seen]) -> list[str]:
    """One line of the table of plateaus."""
    cells = []
    for number, step in enumerate(known.stairs[:-1]):
        values = [one.plateaus[number][0] for one in found]
        worst = max(abs(value / step.after - 1) for value in values)
        stayed = statistics.median(one.plateaus[number][1] for one in found)
        mean = statistics.fmean(values)
        cells.append(f"{step.after:.4g}: {mean:.4g} (worst {worst:.2%}, {stayed:.0f} steps)")
    ordered = sum(in_order(known, one) for one in found)
    growth = statistics.fmean(one.growth for one in found)
    return [
        experiment,
        f"{known.group.name}, k {known.length}",
        f"{known.stairs[0].before:.4g}",
        "; ".join(cells) or "none between",
        f"{statistics.fmean(one.final for one in found):.2g}",
        " > ".join("+".join(step.names) for step in known.stairs),
        f"{ordered} of {len(found)}",
        f"{known.growth:.4f}",
        f"{growth:.4f} ({growth / known.growth - 1:+.1%})",
    ]


def in_order(known: Theory, one: Seen) -> bool:
    """Whether every irrep had half its power before any of a later stair had."""
    return all(
        max(one.halves[n] for n in earlier.names) < min(one.halves[n] for n in later.names)
        for earlier, later in itertools.pairwise(known.stairs)
    ) and all(math.isfinite(step) for step in one.halves.values())


def drawn(root: Path, run: str, key: str) -> tuple[list[float], list[float]]:
    """A curve in at most ``POINTS`` points."""
    steps, values = study.curve(root, run, key)
    every = -(-len(steps) // POINTS)
    return steps[::every], values[::every]


def figures(args: argparse.Namespace, experiment: str, known: Theory) -> list[Figure]:
    """Loss over the stairs of theory, and the power of every irrep, of seed 0."""
    run = name(experiment, 0)
    steps, losses = drawn(args.root, run, "loss")
    levels = {f"theory {step.after:.4g}": step.after for step in known.stairs[:-1]}
    title = f"{known.group.name}, {known.length} elements"
    loss = Figure(
        f"groups_{experiment}_loss",
        f"{title}: mean squared error",
        [Line("loss", steps, losses)],
        levels=levels,
        alt="The loss falls from plateau to plateau.",
    )
    lines = [
        Line(irrep, *drawn(args.root, run, f"power/{irrep}"), colour=number)
        for number, irrep in enumerate(known.powers)
    ]
    power = Figure(
        f"groups_{experiment}_power",
        f"{title}: power of predictions per irrep",
        lines,
        alt="Irreducible representations are learned one after the other.",
    )
    return [loss, power]


def shipped(experiments: Sequence[str]) -> list[str]:
    """Why the earlier configurations stood still or lived off their clipping."""
    rows = []
    for experiment in experiments:
        if experiment not in SHIPPED:
            continue
        label, lr, epochs = SHIPPED[experiment]
        known = theory(experiment)
        scale = 10.0 ** (known.length + 1) if "ten times" in label else 1.0
        utility = known.stairs[0].utility * scale
        growth = growth_rate(known.group, utility, known.length, lr)
        what = "stays on the first plateau" if growth * epochs < 10 else "steps"
        what = "only its clipping keeps it finite" if growth > 0.15 else what
        rows.append([label, f"{lr:g}", f"{growth:.2g}", f"{growth * epochs:.2g}", what, experiment])
    head = [
        "earlier configuration",
        "lr",
        "growth per step",
        "e-folds in its epochs",
        "so it",
        "ours",
    ]
    return study.table(head, rows)


def page(args: argparse.Namespace) -> list[str]:
    """The lines of the page; figures are written next to it."""
    rows, pictures = [], []
    for experiment in args.only:
        runs = [name(experiment, seed) for seed in range(args.seeds)]
        runs = [run for run in runs if study.result(args.root, run) is not None]
        if not runs:
            continue
        known = theory(experiment)
        rows.append(row(experiment, known, [seen(args.root, run, known) for run in runs]))
        pictures += ["", f"### {experiment}", ""]
        for figure in figures(args, experiment, known):
            pictures += [study.save_figure(args.output, figure), ""]
    head = [
        *("experiment", "group", "start", "plateaus, theory: measured", "end", "predicted order"),
        *("in order", "growth, theory", "measured"),
    ]
    return [
        "# Group composition and its staircase",
        "",
        f"Made by `{study.call('groups')}` from the run directories of `experiment=groups/*`. A "
        "plateau is measured where the loss is flattest between two stairs, on every seed; *worst* "
        "is the largest deviation of a seed, *steps* how long the loss stayed within 5 % of it. "
        "Growth is that of log ||theta|| per step while the first irreducible representation has "
        f"between {SMALL[0]:g} and {SMALL[1]:g} of its power; theory is log(1 + lr (2/N)(k+1) U*). "
        "Irreps are named by dimension and a letter; those joined by + have equal U* and are "
        "learned together.",
        *study.table(head, rows),
        "## Configurations that stood still",
        "",
        "With per-neuron steps the first irrep grows by lr (2/N)(k+1) U* per step; ten e-folds or "
        "so lead from small weights to the first stair, more than about 0.15 per step diverges. "
        "Ours set lr so that it is about 0.05 or less, and need no clipping.",
        *shipped(args.only),
        "## Pictures, seed 0",
        *pictures,
    ]


def main() -> int:
    """Train what is missing, write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = study.flags(parser, "runs/groups", "reports/groups.md")
    add("--seeds", type=int, default=3, choices=range(1, 10), help="runs per experiment")
    add("--only", nargs="*", default=list(EXPERIMENTS), choices=EXPERIMENTS, help="which")
    args = parser.parse_args()
    if not args.report_only:
        cells = [cell(one, seed) for seed in range(args.seeds) for one in args.only]
        study.run_cells(cells, args.root, jobs=args.jobs, extra=study.fixed(args))
    study.save_page(args.output, page(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
