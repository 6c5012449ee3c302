"""K ergodic components at equal tokens: what losses per token of finished sweeps say.

Reads sweeps of configs/sweep/ergodic_study.yaml (or ergodic_synthetic.yaml), ergodic_k.yaml, its
control ergodic_k_permuted.yaml and ergodic_switching.yaml, and writes the page with figures and
CSV; missing runs are listed. Without --report-only the first and the last are run before. Sweeps
whose runs differ in budget are refused.

Example: python benchmarks/ergodic.py --report-only
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import ergodic_memory as memory
import ergodic_read as read
import ergodic_real as real
import ergodic_synthetic as synthetic
import study
from ergodic_floor import price
from ergodic_read import Sweep, told

from nl.config import ConfigError
from nl.report.scaling import forms
from nl.report.scaling.bootstrap import Estimate

SWEEPS = {
    "synthetic": "configs/sweep/ergodic_study.yaml",
    "switching": "configs/sweep/ergodic_switching.yaml",
}
INTERVALS = (
    "Intervals are 95 %, from a bootstrap of seeds within a training set and of documents (here "
    "windows) within a component, one draw for all runs; bands hold for all positions at once "
    "(max-t). With three seeds they are stretched by Student's quantile at few degrees of freedom, "
    "so that they may reach below zero where a mean cannot; logarithmic axes cut them at 1e-4."
)


def synthetic_part(sweep: Sweep, page: Path) -> list[str]:
    """K at equal tokens, against exact floors."""
    if not sweep.runs:
        return ["No run of this sweep is finished.", ""]
    steps, tokens, _ = read.equal_budgets(sweep.runs)
    drawn: list[str] = []
    for block in sweep.blocks:
        for line in synthetic.by_position(sweep, page, block):
            drawn += [line, ""]
    table = [row for block in sweep.blocks for row in synthetic.rows(sweep, block)]
    alarms = sum(bool(run.failures) for run in sweep.runs)
    return [
        f"{read.runs_line(sweep)}. Every run: {steps} steps, {tokens:,} symbols. Parameters: "
        f"{synthetic.parameters_of(sweep)}. Widths are not matched: blocks differ in size, runs of "
        "one block in K and seed alone.",
        "",
        *read.missing_lines(sweep),
        f"Components: {listed(sweep)}; one chain in K labellings, which are equally hard. A window "
        "is of one of them. Losses are expectations over what could come next (entropy of the "
        "exact predictor plus KL), which have the mean of the stored -ln q and less noise. dXE "
        "compares runs on components that were also trained on alone, on the same windows: "
        f"{alone_of(sweep)}. "
        f"{alarms} of {len(sweep.runs)} evaluations found a model better than the floor.",
        *study.table(synthetic.HEAD, table),
        f"G: mean loss after {synthetic.EARLY[0]} to {synthetic.EARLY[1]} symbols minus that over "
        f"the last {synthetic.TAIL}. Forms are fitted to bins of context from 1 on; where a "
        "constant is best, a power has no exponent to tell.",
        "",
        *synthetic_claims(sweep),
        "### By position",
        "",
        *drawn,
        *over_k(sweep, page),
        *adapting(sweep, page),
        *windows_needed(sweep),
    ]


def listed(sweep: Sweep) -> str:
    """First and last component of the largest K."""
    names = max((run.losses["on"].trained_on for run in sweep.runs), key=len)
    return f"`{names[0]}`" + (f" to `{names[-1]}`" if len(names) > 1 else "")


def alone_of(sweep: Sweep) -> str:
    """How many components of each K have runs of their own."""
    names = set(synthetic.alone(sweep))
    trained = {run.k: set(run.losses["on"].trained_on) for run in sweep.runs if run.k > 1}
    return ", ".join(f"{len(names & trained[k])} at K = {k}" for k in sorted(trained))


def over_k(sweep: Sweep, page: Path) -> list[str]:
    """XE over K: figure, forms, test of no trend."""
    return [
        "### XE over K",
        "",
        synthetic.differences(sweep, page),
        "",
        synthetic.beyond(sweep, page),
        "",
        "The line of ln K spreads the most that not knowing the component can cost an ideal reader "
        "evenly over the window.",
        *study.table(
            ["block", "runs", "slope over ln K", "p (K shuffled)", *forms.FORMS],
            synthetic.trend_rows(sweep),
        ),
        "Under each form: its AICc weight, and the root mean square error at a K that was left "
        "out. Levels of runs with components taken out, from the divergence of one who knows the "
        "component.",
        "",
    ]


def adapting(sweep: Sweep, page: Path) -> list[str]:
    """Who finds out which component a window is of, and how fast."""
    several = [k for k in sorted({run.k for run in sweep.runs}) if k > 1]
    costs = [line for k in several for line in (synthetic.prices(sweep, page, k), "")]
    return [
        "### Who adapts to the component, and how fast",
        "",
        "Price: nats of a whole window beyond one who knows its component. An exact predictor pays "
        "at most ln K; what a model pays beyond it is KL from it. Known at the end: 0 is the best "
        "reader of a single symbol, who learns nothing in context, 1 is one who knows the "
        f"component; over the last {synthetic.TAIL} symbols. Symbols: context after which the "
        f"price per symbol stays within {synthetic.SHARE:.0%} of the exact predictor's largest.",
        *study.table(
            ["K", "block", "price [CI]", "beyond the exact", "known at the end [CI]", "symbols"],
            synthetic.adaptation_rows(sweep),
        ),
        *synthetic.adaptation_claims(sweep),
        *costs,
    ]


def windows_needed(sweep: Sweep) -> list[str]:
    """The power table."""
    head = ["block", "K", "windows here", "effect ln K / symbols", "sd of a window"]
    return [
        "### Windows needed",
        "",
        *study.table(
            [*head, "sd of a difference", "unpaired, per arm", "paired"],
            synthetic.power_rows(sweep),
        ),
        "For 80 % power at the 5 % level; noise of seeds comes on top, which only seeds reduce.",
        "",
    ]


def synthetic_claims(sweep: Sweep) -> list[str]:
    """Sentences that intervals carry."""
    ks = [k for k in sorted({run.k for run in sweep.runs}) if k > 1]
    if not ks:
        return []
    k, lines = ks[-1], []
    words = {"above": "rises", "below": "falls", "undecided": "is not decided"}
    for block in sweep.blocks:
        mine = synthetic.sizes(sweep, block)
        if k not in mine or 1 not in mine:
            continue
        gap = synthetic.paired(sweep, block, "own_kl", k)
        exact = float(price(sweep, k, synthetic.alone(sweep)).mean())
        few = "" if gap.scope != "documents" else " (fewer than three seeds: documents alone)"
        lines.append(
            f"- {block}: XE {words[read.sign_of(gap)]} from K = 1 to {k}, by {told(gap)} nats per "
            f"symbol{few}; the exact predictor's rises by {exact:.4f}{beside(gap, exact)}."
        )
    return [*lines, ""]


def beside(gap: Estimate, exact: float) -> str:
    """Where the exact predictor's number lies."""
    if exact < gap.low[0]:
        return ", less than all of the interval"
    return ", more than all of the interval" if exact > gap.high[0] else ", within the interval"


def memory_part(sweep: Sweep, mixture: Sweep, page: Path) -> list[str]:
    """Switching, and memories on and off."""
    lines: list[str] = []
    head = ["block", "memories", "runs", "nats of a window [CI]", "more than with memories on [CI]"]
    lines += [
        "Memories are written in training, and here (on) or not: frozen, they stay as they begin, "
        "and a mixer that is a memory (gated_delta) reads nothing of the context but what its "
        "convolution holds; reset, they are thrown away every 8 symbols. What is lost then is what "
        "these models keep there, not what models trained without would lose.",
        "",
    ]
    if mixture.runs:
        k = max(run.k for run in mixture.runs)
        lines += [
            f"Windows of one component, K = {k}: nats of a window beyond the exact predictor.",
            *study.table(head, memory.rows(mixture, k, "bayes_kl")),
            *memory.claims(mixture, k, "bayes_kl"),
        ]
    if not sweep.runs:
        return [*lines, "No run of the switching sweep is finished.", ""]
    read.equal_budgets(sweep.runs)
    hazard = sweep.runs[0].losses["on"].more["hazard"]
    k = sweep.runs[0].k
    return [
        *lines,
        f"Switching ({read.runs_line(sweep)}): before every symbol one of {k} components is drawn "
        f"anew with probability {hazard:g}; the exact predictor knows that.",
        "",
        *read.missing_lines(sweep),
        *study.table(head, memory.rows(sweep, k, "bayes_kl")),
        *memory.claims(sweep, k, "bayes_kl"),
        memory.since_change(sweep, page),
        "",
        "Bands of this figure are of single points (seeds and windows drawn again).",
        "",
        *(x for line in memory.by_position(sweep, page, k) for x in (line, "")),
    ]


def real_part(sweep: Sweep, page: Path) -> list[str]:
    """All subsets of real components."""
    if not sweep.runs:
        return ["No run of this sweep is finished.", ""]
    steps, tokens, windows = read.equal_budgets(sweep.runs)
    first = sweep.runs[0].losses["on"]
    lost = real.subsets_missing(sweep)
    seeds = min(len({r.seed for r in sweep.of(block)}) for block in sweep.blocks)
    budget = "" if windows is None else f", {windows} windows of training text"
    lines = [
        f"{read.runs_line(sweep)}; components {', '.join(first.components)}. Every run: {steps} "
        f"steps, {tokens:,} tokens{budget}: equal, or this page would not have been written. "
        f"Scored on {len(first.nll)} held-out windows ({first.split}) of all components. G: mean "
        "loss after 5 to 14 tokens minus that after 90 to 99. Forms are fitted from context 4 on.",
        "",
        *read.missing_lines(sweep),
        f"Subsets without a run: {', '.join(lost) or 'none'}.",
        "",
    ]
    if seeds < 3:
        lines += [
            f"**{seeds} seed per subset: intervals are over documents alone and say nothing about "
            "K beyond these runs.** A completeness check, not a result.",
            "",
        ]
    for block in sweep.blocks:
        lines += real_block(sweep, page, block)
    return lines


def real_block(sweep: Sweep, page: Path, block: str) -> list[str]:
    """One block on real components."""
    runs = sweep.of(block)
    lines = [f"### {block}", "", *study.table(real.HEAD, real.rows(sweep, block))]
    if len({run.k for run in runs}) > 1:
        lines += [x for line in real.curves(sweep, page, block) for x in (line, "")]
    if any(run.k == 1 for run in runs):
        lines += [real.transfer_map(sweep, page, block), ""]
    table, sentence = real.trend(sweep, block)
    lines += [sentence]
    if table:
        lines += study.table(["form", "a", "b", "g", "AICc weight", "error at a K left out"], table)
    found = real.ensembles(runs)
    if found:
        lines += [
            "The Bayes ensemble of the experts infers in context which of the runs on one "
            "component is right. What it loses against the right expert is the price of not "
            "knowing the component (ln K at most, on average over ideal experts' own text); XE(K) "
            "minus its loss is what sharing one network, with 1/K of the text of each, costs.",
            *study.table(
                [
                    *("K", "runs", "XE of the ensemble [CI]", "price of a window [CI]", "ln K"),
                    "XE(K) minus the ensemble [CI]",
                ],
                [real.ensemble_row(one) for one in found],
            ),
            *real.ensemble_claims(found),
        ]
    needed = real.power_row(runs)
    if needed:
        head = ["K", "windows here", "effect", "sd of a window", "sd of a difference"]
        lines += study.table([*head, "unpaired, per arm", "paired"], [needed])
    return lines


def control_part(sweep: Sweep) -> list[str]:
    """The same sets with permuted labels."""
    lines = ["### Control: labels permuted over documents", ""]
    if not sweep.runs:
        return [*lines, "No run of this sweep is finished.", ""]
    read.equal_budgets(sweep.runs)
    lines += [f"{read.runs_line(sweep)}.", "", *read.missing_lines(sweep)]
    return [*lines, *(x for block in sweep.blocks for x in real.control(sweep, block))]


def page(args: argparse.Namespace) -> list[str]:
    """The lines of the page; figures are written next to it."""
    mixture = read.read(args.root / "ergodic_synthetic", "floor")
    switching = read.read(args.root / "ergodic_switching", "floor")
    text = read.read(args.root / "ergodic_k", "windows")
    shuffled = read.read(args.root / "ergodic_k_permuted", "windows", labels="permuted")
    return [
        "# Ergodic components at equal tokens",
        "",
        f"Made by `{study.call('ergodic')}` from losses per token of finished runs. {INTERVALS}",
        "",
        "## Known sources",
        "",
        *synthetic_part(mixture, args.output),
        "## Memories, and components that change",
        "",
        *memory_part(switching, mixture, args.output),
        "## Real text: all subsets of five components",
        "",
        *real_part(text, args.output),
        *control_part(shuffled),
    ]


def run(args: argparse.Namespace) -> None:
    """Run the sweeps; what is done is kept."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(study.REPOSITORY / "src")}
    for name, file in SWEEPS.items():
        where = str(args.root / f"ergodic_{name}")
        command = [sys.executable, "-m", "nl", "sweep", file, "--output", where]
        more = ["--backend", "warm", "--slots", str(args.jobs)]
        subprocess.run([*command, *more], check=False, env=env)


def main() -> int:
    """Run what is missing, write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--root", type=Path, default=Path("runs"), help="where ergodic_* are; default: %(default)s")
    add("--output", type=Path, default=Path("reports/ergodic.md"), help="default: %(default)s")
    add("--jobs", type=int, default=1, help="runs at the same time, one core each")
    add("--report-only", action="store_true", help="run nothing, write the page")
    args = parser.parse_args()
    if not args.report_only:
        run(args)
    try:
        lines = page(args)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    study.save_page(args.output, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
