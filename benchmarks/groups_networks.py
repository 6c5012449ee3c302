"""Networks beside an earlier system's numbers, and what W_mix carries, for reports/groups.md."""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

import groups_pictures as pictures
import study
from groups_cells import NETWORKS, RNN, SHOTS, Network, name, staircase_cell
from groups_read import Theory, carried, in_order, model_at, seen, theory

from nl.core.groups import reached

SHOWN = ("rnn", "rnn_multiplicative", "rnn_prefixes", "rnn_online")
"""Networks whose losses are drawn."""
ENDS = ("rnn_multiplicative", "rnn_four", "rnn_hybrid")
"""Networks whose W_mix is looked at, at the end."""


def network_row(root: Path, network: Network, seeds: int) -> list[str] | None:
    """One line of the table of networks; None while no run is done."""
    runs = pictures.runs_of(root, network.label, seeds)
    if not runs:
        return None
    known = theory(network.overrides)
    curves = [study.curve(root, run, "loss") for run in runs]
    taken = []
    for share, theirs in zip(pictures.REDUCTIONS, network.reached, strict=True):
        steps = [reached(*curve, share) for curve in curves]
        ours = ", ".join("not" if step is None else f"{step:.0f}" for step in steps)
        taken.append(f"{ours} (-)" if theirs is None else f"{ours} ({theirs})")
    passed = []
    for number, step in enumerate(known.stairs[:-1]):
        between = [seen(root, run, known).plateaus[number].measured for run in runs]
        values = [value for value in between if value is not None]
        if values:
            passed.append(f"{step.after:.4g}: {statistics.fmean(values):.4g}")
    final = ", ".join(f"{losses[-1]:.2g}" for _, losses in curves)
    note = f"; {network.note}" if network.note else ""
    ordered = sum(in_order(known, seen(root, run, known), whole=False) for run in runs)
    return [
        network.what,
        *taken,
        "; ".join(passed) or "none between",
        f"{ordered} of {len(runs)}",
        final,
        f"{network.final}{note}",
    ]


def networks(args: argparse.Namespace) -> list[str]:
    """Recurrent networks, online streams, mixing matrix, predictions."""
    rows = [network_row(args.root, one, args.seeds) for one in NETWORKS]
    head = [
        *("network", "to 50 % of the loss", "to 10 %", "to 1 %"),
        *("plateaus, theory: measured", "in order", "end", "end, theirs"),
    ]
    lines = [
        "## Recurrent networks, online streams, the hybrid optimizer",
        "",
        "Steps of each seed, and in parentheses of the earlier system (one seed, its own drawing "
        "of weights). Plateaus of recurrent networks under Adam differ tenfold in length between "
        "seeds there and here: levels and order are what theory says of them.",
        *study.table(head, [one for one in rows if one is not None]),
    ]
    known = theory((RNN,))
    drawn = [
        (name(one.label, 0), one.label)
        for one in NETWORKS
        if one.label in SHOWN and study.result(args.root, name(one.label, 0)) is not None
    ]
    if drawn:
        figure = pictures.network_figure(args.root, known, drawn)
        lines += [study.save_figure(args.output, figure), ""]
    if study.result(args.root, "rnn-shots") is not None:
        lines += mixing(args, known)
    lines += ["### Predictions on the way", ""]
    for experiment, overrides in (("d3", staircase_cell("d3", 0).overrides), ("rnn", (RNN,))):
        if study.result(args.root, f"{experiment}-shots") is None:
            continue
        known = theory(overrides)
        title = f"{known.group.name}, {known.length} elements"
        figure = pictures.prediction_figure(args.root, experiment, known, title)
        lines += [study.save_figure(args.output, figure), ""]
    return lines


def mixing(args: argparse.Namespace, known: Theory) -> list[str]:
    """What W_mix carries between neurons of the irreps."""
    matrices, inside, chance = pictures.mixing_figure(args.root, known)
    shares = ", ".join(
        f"{share:.0%} after {step}" for step, share in zip(pictures.MIXING, inside, strict=True)
    )
    rows = []
    models: list[tuple[str, Theory, str, int | None]] = [
        ("rnn, step " + str(step), known, "rnn-shots", step) for step in SHOTS["rnn"]
    ]
    ends = [one for one in NETWORKS if one.label in ENDS]
    for one in ends:
        run = name(one.label, 0)
        if study.result(args.root, run) is not None:
            models.append((one.label, theory(one.overrides), run, None))
    for label, theirs, run, step in models:
        found = carried(theirs, model_at(args.root, run, step))
        written = ", ".join(
            f"{irrep}: {percent(share)} ({found.all[irrep]:.0%})"
            for irrep, share in found.own.items()
        )
        rows.append([label, f"{found.explained:.0%}", written])
    return [
        "### What W_mix carries",
        "",
        "After two elements W_mix brings to every neuron a number that depends on their product, "
        "and as a function of it lies in irreps: of what reaches the neurons that write an irrep, "
        "how much is that irrep (in parentheses: of what reaches all neurons). - where no neuron "
        "writes it. Seed 0, at the end where no step is named.",
        *study.table(["network", "depends on the product alone", "own irrep"], rows),
        "Entry by entry W_mix is not block diagonal under Adam: its squared mass inside the blocks "
        f"of one irrep is {shares} steps, by chance {chance:.0%}. Blocks are in what it carries.",
        "",
        pictures.save_matrix(args.output, matrices, "W_mix, neurons by irrep"),
        "",
    ]


def percent(share: float) -> str:
    """A share; a dash for none."""
    return "-" if math.isnan(share) else f"{share:.0%}"
