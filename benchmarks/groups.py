"""Does learning follow the staircase? Group composition against the theory of its plateaus.

Trains experiment=groups/* through train.py (finished runs are kept) and compares, from the run
directories: the loss on every plateau, which irreducible representation is learned when, and how
fast the first one grows, with what theory says from the group and the template alone, and with
alternating gradient flows from the run's own initial weights. Then recurrent networks and online
streams beside an earlier system's numbers, and two sweeps. Writes the page with figures and CSV.

Example: python benchmarks/groups.py --seeds 3 --jobs 2
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import groups_networks
import groups_pictures as pictures
import study
from groups_cells import (
    EXPERIMENTS,
    NETWORKS,
    cells,
    name,
    staircase_cell,
)
from groups_cells import SHIPPED as AS_SHIPPED
from groups_read import (
    SMALL,
    Seen,
    Theory,
    in_order,
    model_at,
    seen,
    simulated,
    specialised,
    theory,
    writes_of,
)

from nl.core.groups import growth_rate
from nl.report.heat import HeatMaps

SHIPPED = {
    "c10_k3": ("config_c10", 0.01, 8000),
    "c4xc4": ("config_c4x4", 0.01, 32_000),
    "d3": ("config_d3 (powers 30 and 3000)", 0.01, 2000),
    "octahedral": ("config_octahedral", 0.01, 5000),
    "a5": ("config_a5", 0.001, 26_000),
}
"""The earlier system's configurations: name, learning rate, steps in its epochs."""
FALLEN = -2.0
"""log10 of the share of the loss that is left where a network has learned."""
SWEEPS = ("groups", "groups_length")


def known_of(experiment: str) -> Theory:
    """Theory of one experiment."""
    return theory(staircase_cell(experiment, 0).overrides)


def row(experiment: str, known: Theory, found: Sequence[Seen]) -> list[str]:
    """One line of the table of plateaus."""
    written = []
    for number, step in enumerate(known.stairs[:-1]):
        seeds = [one.plateaus[number] for one in found]
        values = [math.nan if one.measured is None else one.measured for one in seeds]
        worst = max(abs(value / step.after - 1) for value in values)
        stayed = statistics.median((one.end or 0.0) - (one.start or 0.0) for one in seeds)
        mean = statistics.fmean(values)
        written.append(f"{step.after:.4g}: {mean:.4g} (worst {worst:.2%}, {stayed:.0f} steps)")
    ordered = sum(in_order(known, one) for one in found)
    growth = statistics.fmean(one.growth for one in found)
    return [
        experiment,
        f"{known.group.name}, k {known.length}",
        f"{known.stairs[0].before:.4g}",
        "; ".join(written) or "none between",
        f"{statistics.fmean(one.final for one in found):.2g}",
        " > ".join(pictures.label(step) for step in known.stairs),
        f"{ordered} of {len(found)}",
        f"{known.growth:.4f}",
        f"{growth:.4f} ({growth / known.growth - 1:+.1%})",
    ]


def escape_rows(
    root: Path, experiment: str, known: Theory, found: Sequence[Seen]
) -> list[list[str]]:
    """Steps at which irreps are learned: simulated from the weights of each seed, and measured."""
    flows = [simulated(root, experiment, seed) for seed in range(len(found))]
    rows = []
    for irrep in (irrep for step in known.stairs for irrep in step.names):
        pairs = [
            (flow.get(irrep, math.inf), one.escapes[irrep])
            for flow, one in zip(flows, found, strict=True)
        ]
        written = ", ".join(f"{at(flow)}: {at(step)}" for flow, step in pairs)
        both = [flow / step - 1 for flow, step in pairs if math.isfinite(flow + step)]
        worst = f"{max(both, key=abs):+.1%}" if both else "-"
        rows.append([experiment, irrep, written, worst])
    return rows


def at(step: float) -> str:
    """A step, or that there is none."""
    return f"{step:.0f}" if math.isfinite(step) else "not"


def shipped(args: argparse.Namespace) -> list[str]:
    """Why the earlier configurations stood still or lived off their clipping."""
    rows = []
    for experiment in args.only:
        if experiment not in SHIPPED:
            continue
        label, lr, steps = SHIPPED[experiment]
        known, ours = (
            theory(AS_SHIPPED.get(experiment, staircase_cell(experiment, 0).overrides)),
            known_of(experiment),
        )
        rates = [growth_rate(known.group, step.utility, known.length, lr) for step in known.stairs]
        written = " > ".join(
            f"{pictures.label(step)} {rate:.2g}"
            for step, rate in zip(known.stairs, rates, strict=True)
        )
        levels = ", ".join(f"{step.before:.4g}" for step in known.stairs)
        rows.append(
            [
                *(label, f"{lr:g}", written, f"{rates[0] * steps:.2g}", levels),
                as_shipped(args.root, experiment),
                f"{experiment}, lr {ours.lr:g}: {ours.growth:.3g}",
            ]
        )
    head = [
        *("earlier configuration", "lr", "growth per step, stair by stair"),
        *("e-folds in its steps", "plateaus", "its loss", "ours, growth per step"),
    ]
    return study.table(head, rows)


def as_shipped(root: Path, experiment: str) -> str:
    """The loss of a configuration as it was, at the end and a quarter of the way; seed 0."""
    run = f"shipped_{experiment}"
    if experiment not in AS_SHIPPED or study.result(root, run) is None:
        return "not run again"
    steps, losses = study.curve(root, run, "loss")
    quarters = [losses[len(losses) * n // 4 - 1] for n in (1, 2, 3, 4)]
    return ", ".join(f"{loss:.4g}" for loss in quarters) + f" after each quarter of {steps[-1]:.0f}"


def neuron_rows(args: argparse.Namespace) -> tuple[list[list[str]], list[str]]:
    """How neurons specialise at the end of seed 0: table and pictures."""
    rows, shown = [], []
    cells_of = {one: staircase_cell(one, 0).overrides for one in args.only}
    cells_of |= {one.label: one.overrides for one in NETWORKS if one.label == "rnn"}
    for experiment, overrides in cells_of.items():
        run = name(experiment, 0)
        if study.result(args.root, run) is None:
            continue
        known = theory(overrides)
        found = specialised(known.group, writes_of(model_at(args.root, run)))
        alive = [n for n, own in enumerate(found.owner) if own != "dead"]
        counts = [
            f"{one}: {found.count(one)}" for one in pictures.owners(known, found) if one != "dead"
        ]
        pure = sum(found.share[n] > 0.9 for n in alive)
        median = statistics.median(found.share[n] for n in alive)
        rows.append(
            [
                experiment,
                str(len(found.owner)),
                str(found.count("dead")),
                ", ".join(counts),
                f"{pure} of {len(alive)}",
                f"{median:.4f}",
            ]
        )
        if experiment in ("c10", "d3", "octahedral", "a5", "rnn"):
            figure = pictures.neuron_figure(experiment, known, found)
            shown += [study.save_figure(args.output, figure), ""]
    return rows, shown


def staircases(args: argparse.Namespace) -> list[str]:
    """Stairs, escapes and their pictures."""
    rows, escapes, shown = [], [], []
    for experiment in args.only:
        runs = pictures.runs_of(args.root, experiment, args.seeds)
        if not runs:
            continue
        known = known_of(experiment)
        found = [seen(args.root, run, known) for run in runs]
        rows.append(row(experiment, known, found))
        escapes += escape_rows(args.root, experiment, known, found)
        shown += ["", f"### {experiment}", ""]
        for figure in pictures.staircase_figures(args.root, experiment, known, runs):
            shown += [study.save_figure(args.output, figure), ""]
    head = [
        *("experiment", "group", "start", "plateaus, theory: measured", "end", "predicted order"),
        *("in order", "growth, theory", "measured"),
    ]
    return [
        *study.table(head, rows),
        "## When each representation is learned",
        "",
        "Alternating gradient flows (`nl.core.groups.flow`) follow the dormant neurons of a run "
        "from its own initial weights, without training anything. Half of an irrep's amplitude is "
        "there at the step they expect: step measured, of each seed. *not*: not within the run. "
        "`nl staircase` does the same for any configuration, and `artifacts/theory.json` and "
        "`plateaus.json` of each run hold both.",
        *study.table(["experiment", "irrep", "expected: measured", "worst"], escapes),
        "The last irrep of D3 hangs on the few neurons that were late for the first one and have "
        "to turn: there the flow is rough, or does not come in time.",
        "",
        "## Pictures of the stairs",
        "",
        "Bands reach from the lowest to the highest seed. Levels are in the order of theory, with "
        "what is learned from each.",
        *shown,
    ]


def sweeps(args: argparse.Namespace) -> list[str]:
    """Heat maps of the two sweeps."""
    lines = ["## Sweeps", ""]
    order, length = (args.root / f"sweep-{one}" for one in SWEEPS)
    if (order / "results.jsonl").is_file():
        alt = "Steps to a half, a tenth and a hundredth of the loss"
        lines += [
            "`nl sweep configs/sweep/groups.yaml`: one-hot C_n, the first stair growing by 0.05 "
            "per step in every cell. Empty: not reached in 800 steps.",
            "",
            pictures.save_heat(args.output, pictures.order_maps(order), alt),
            "",
        ]
    if (length / "results.jsonl").is_file():
        alt = "Orders of magnitude that the loss fell, by length and width"
        maps = pictures.length_maps(length)
        lines += [
            "`nl sweep configs/sweep/groups_length.yaml`: words of k elements of C5, 1500 steps, "
            "seed 0. Neurons from which on the loss falls by two orders of magnitude: "
            f"{enough(maps)}. (The rate of one hidden layer is a third at k 4: growth of 0.05 per "
            "step diverges there.)",
            "",
            pictures.save_heat(args.output, maps, alt),
            "",
        ]
    return lines


def enough(maps: HeatMaps) -> str:
    """Per map and row, the first width that is enough."""
    said = []
    for one in maps.maps:
        found = []
        for label, values in zip(one.rows, one.values, strict=True):
            pairs = zip(one.columns, values, strict=True)
            first = next((width for width, v in pairs if v is not None and v < FALLEN), None)
            found.append(f"{label}: {first or 'none'}")
        said.append(f"{one.title} {', '.join(found)}")
    return "; ".join(said)


def page(args: argparse.Namespace) -> list[str]:
    """The lines of the page; figures are written next to it."""
    rows, shown = neuron_rows(args)
    head = ["experiment", "neurons", "dead", "by irrep", "above 90 % in one irrep", "median share"]
    usage = [json.loads(one.read_text())["cpu_seconds"] for one in args.root.glob("*.usage.json")]
    return [
        "# Group composition and its staircase",
        "",
        f"Made by `{study.call('groups')}` from the run directories of `experiment=groups/*` "
        f"({len(usage)} runs, {sum(usage) / 60:.0f} minutes of CPU, and two sweeps). A "
        "plateau is measured where the loss is flattest between two stairs, on every seed; *worst* "
        "is the largest deviation of a seed, *steps* how long the loss stayed within 5 % of it. "
        "Growth is that of log ||theta|| per step while the first irreducible representation has "
        f"between {SMALL[0]:g} and {SMALL[1]:g} of its power; theory is log(1 + lr (2/N)(k+1) U*). "
        "Irreps are named by dimension and a letter; those joined by + have equal U* and are "
        "learned together.",
        *staircases(args),
        "## Configurations that stood still",
        "",
        "With per-neuron steps the first irrep grows by lr (2/N)(k+1) U* per step. Ten e-folds "
        "or so lead from small weights to the first stair: where growth times steps is below "
        "that, the loss cannot leave its first plateau, whatever the seed; config_c10 has a "
        "quarter of one. Above about 0.15 per step a run diverges unless it is clipped, and the "
        "clip then decides the pace. After its first stair config_d3 overshoots along the first "
        "representation, at gradient norms about 10 (its runs here have them): clipped at 0.1 "
        "all steps are divided by a hundred, those of the second representation too, and the "
        "loss hangs on that plateau. config_octahedral, clipped alike, climbs both stairs here "
        "and jitters at the end. Ours set lr so that growth is about 0.05 or less and need no "
        "clipping; a run that cannot climb its first stair in half of its steps is warned of "
        "before it begins.",
        *shipped(args),
        *groups_networks.networks(args),
        "## Neurons",
        "",
        "At the end of seed 0: the irrep that holds most of what a neuron writes. Dead neurons "
        "write less than a tenth of the strongest.",
        *study.table(head, rows),
        *shown,
        *sweeps(args),
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
        wanted = [
            replace(one, overrides=(*one.overrides, *study.fixed(args)))
            for one in cells(tuple(args.only), args.seeds)
        ]
        study.run_cells(wanted, args.root, jobs=args.jobs)
        for sweep in SWEEPS:
            command = [sys.executable, "-m", "nl", "sweep", f"configs/sweep/{sweep}.yaml"]
            where = ["--output", str(args.root / f"sweep-{sweep}"), "--backend", "warm"]
            subprocess.run([*command, *where, "--slots", str(args.jobs)], check=False)
    study.save_page(args.output, page(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
