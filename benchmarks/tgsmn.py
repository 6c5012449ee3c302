"""Sparse experts, task streams and controllers: ten tasks, what is learned, kept, and paid.

Reads what two sweeps left and writes the page, its figures and CSV; nothing is trained here:

    nl sweep configs/sweep/tgsmn_study.yaml --slots 1 --backend warm --output runs/tgsmn/study
    nl sweep configs/sweep/tgsmn_alone.yaml --slots 1 --backend warm --output runs/tgsmn/alone

Every sentence about a difference is chosen by its interval.

Example: python benchmarks/tgsmn.py
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import study
from tgsmn_pictures import difference_dots, matrix_figures, trace_figures
from tgsmn_read import (
    ORDERS,
    Run,
    clear,
    difference,
    evaluated_losses,
    finished,
    over,
    part,
    policy,
    references,
    seconds,
    signal_share,
    text,
)
from tgsmn_tables import (
    BASES,
    COMPARED,
    FURTHER,
    SHARED,
    SHOWN,
    Row,
    cost_table,
    difference_table,
    measure_table,
    name_of,
    rows_of,
    verdict,
)
from tgsmn_words import (
    COSTS,
    COUNTS,
    EVALUATED,
    LANGUAGES,
    QUESTIONS,
    WORDS,
    best,
    introduction,
    sentence,
    setting,
    within,
)

from nl.eval.continual_summary import interval
from nl.report.dots import Dots
from nl.report.figures import Figure

NOTES = Path(__file__).with_name("tgsmn_notes.md")
# Sections


def controllers(rows: Mapping[str, Row], args: argparse.Namespace) -> list[str]:
    """Rewards per turn, knobs over time, what the learned policy came to."""
    governed = ("sparse", "sparse_replay", "sparse_pi", "sparse_random", "sparse_gru")
    there = [key for key in governed if key in rows]
    parts = {"whole run": (0.0, 1.0), "first half": (0.0, 0.5), "second half": (0.5, 1.0)}
    found = {
        key: {
            name: over(rows[key].runs, lambda run, e=ends: part(run, *e))
            for name, ends in parts.items()
        }
        for key in there
    }
    body = [[name_of(key), *(text(found[key][name], 4) for name in parts)] for key in there]
    lines = study.table(["reward per turn", *parts], body)
    for other in ("sparse_random", "sparse_replay", "sparse_pi"):
        if "sparse_gru" in there and other in there:
            told = []
            for name in parts:
                gap = difference(found["sparse_gru"][name], found[other][name])
                if gap is not None:
                    said = ("more" if gap.mean > 0 else "less") if clear(gap) else "not decided"
                    told.append(f"{name} {gap.text(4)}, {said}")
            lines.append(f"- GRU minus {name_of(other)}: {'; '.join(told)}.")
    figures = trace_figures(rows, there)
    return [*lines, "", *captioned(args.output, figures)]


def greedy(runs: Mapping[int, Run]) -> list[str]:
    """The learned policy without exploration, and R read with its k."""
    body, gaps = [], {}
    for seed, run in runs.items():
        told = policy(run)
        last = tuple(values[-1] for values in evaluated_losses(run))
        whole = tuple(statistics.fmean(values) for values in evaluated_losses(run))
        gaps[seed] = whole[1] - whole[0]
        ks = ", ".join(f"{k:.0f}" for _, k, _ in told)
        replay = ", ".join(f"{share:.2f}" for _, _, share in told)
        body.append([str(seed), ks, replay, *(f"{value:.3f}" for value in (*whole, *last))])
    head = ["seed", "k at tasks' ends", "replay at tasks' ends", "anytime, k = 2"]
    head += ["anytime, its own k", "at the end, k = 2", "at the end, its own k"]
    gap = interval(list(gaps.values()))
    if math.isnan(gap.half):
        said = f"One seed: {gap.text()}."
    elif clear(gap):
        said = f"Read with its own k the anytime loss is {verdict(gap)}: {gap.text(4)} nats."
    else:
        many = COUNTS.get(gap.n, str(gap.n))
        said = f"Its own k makes no difference that {many} seeds can show ({gap.text(4)} nats)."
    return [*study.table(head, body), said]


def quiet(study_: Mapping[str, Mapping[int, Run]]) -> list[str]:
    """What signals cost, and that they change nothing."""
    loud, without = (study_.get(f"forward_{key}", {}) for key in ("sparse", "sparse_quiet"))
    common = sorted(loud.keys() & without.keys())
    if not common:
        return []
    equal = all(
        (loud[s].matrix("context").values == without[s].matrix("context").values).all()
        for s in common
    )
    higher = {s: 100 * (seconds(loud[s]) / seconds(without[s]) - 1) for s in common}
    share = {s: 100 * found for s, found in over(loud, signal_share).items()}
    gap = interval(list(higher.values()))
    said = f"that is {gap.text(1)} %"
    if not (gap.n > 1 and clear(gap)):
        said = f"there is no difference that these seeds can show ({gap.text(1)} %)"
    word = "equal to the last bit" if equal else "NOT equal"
    return [
        f"The same runs with `signals.every=0` ({len(common)} seeds): R is {word}. Signals took "
        f"{text(share, 1)} % of the time of training by their own clock (two readings of 8 rows of "
        "the task and 8 of earlier ones, every 5 steps of 16 rows). In CPU time of the "
        f"process {said}."
    ]


def other_order(rows: Mapping[str, Row], back: Mapping[str, Row]) -> list[str]:
    """The questions again where the tasks come in reverse."""
    body = []
    for one, other in QUESTIONS:
        if {one, other} <= back.keys() & rows.keys():
            for measure in ("average_loss", "forgetting", "plasticity_loss"):
                pair = [
                    difference(table[one].values(measure), table[other].values(measure))
                    for table in (rows, back)
                ]
                if None not in pair and all(gap.n > 2 for gap in pair if gap is not None):
                    cells = [f"{gap.text()}, {verdict(gap)}" for gap in pair if gap is not None]
                    body.append([f"{name_of(one)} - {name_of(other)}", COMPARED[measure], *cells])
    head = ["difference", "", "forward", "backward"]
    words = "The same with the tasks' domains in reverse, for some of the rows."
    return [words, *study.table(head, body)] if body else []


def captioned(page_: Path, figures: Sequence[Figure | Dots]) -> list[str]:
    """Figures beside the page, each with its title below."""
    lines: list[str] = []
    for one in figures:
        lines += [study.save_figure(page_, one), "", f"{one.title}.", ""]
    return lines


def write_csv(path: Path, tables: Mapping[str, Mapping[str, Row]]) -> None:
    """Every measure of every run."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["order", "row", "memories", "seed", "measure", "value"])
        for order, rows in tables.items():
            for row in rows.values():
                for seed, found in row.found.items():
                    for measure, value in found.items():
                        variant = row.key.partition(",")[0]
                        writer.writerow([order, variant, row.mode, seed, measure, repr(value)])


def page(
    study_: Mapping[str, Mapping[int, Run]],
    alone: Mapping[str, Mapping[int, Run]],
    args: argparse.Namespace,
) -> list[str]:
    """The lines of the page; figures and CSV are written next to it."""
    known = references(study_.get("forward_dense_joint", {}), alone)
    rows, back = rows_of(study_, ORDERS[0], known), rows_of(study_, ORDERS[1], {})
    write_csv(args.output.with_suffix(".csv"), dict(zip(ORDERS, (rows, back), strict=True)))
    said = [one for pair in QUESTIONS if (one := sentence(rows, *pair)) is not None]
    compared = []
    for base in BASES:
        if base in rows:
            compared += ["", *difference_table(rows, base)]
    sections = {
        "What the intervals say": [
            "Paired by seed; a difference is named where its 95 % interval does not hold zero. Of "
            "so many intervals about one in twenty misses the truth.",
            "",
            *said,
            "",
            "The order of the means is no claim:",
            "",
            *best(rows),
        ],
        "Measures": [*setting(), *measure_table(rows, SHOWN), *measure_table(rows, FURTHER), WORDS],
        "Tasks that share a permutation": [
            LANGUAGES,
            *measure_table(rows, SHARED),
            *(f"- {row.name}: {within(row)}" for row in rows.values() if within(row)),
        ],
        "Differences, paired by seed": [
            *captioned(args.output, difference_dots(rows, BASES)),
            *compared,
        ],
        "Cost": [*cost_table(rows), COSTS, "", *quiet(study_)],
        "Controllers": controllers(rows, args),
        "What is evaluated": [EVALUATED, *greedy(rows["sparse_gru"].runs)]
        if "sparse_gru" in rows
        else [],
        "The other order": other_order(rows, back),
        "R": matrix_figures(rows, args.output),
        "Notes": [NOTES.read_text().strip()] if NOTES.is_file() else [],
    }
    lines = ["# Task streams, sparse experts and controllers", "", introduction(rows)]
    for head, found in sections.items():
        if found:
            lines += ["", f"## {head}", "", *found]
    return lines


def main() -> int:
    """Write the page from what is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--root", type=Path, default=Path("runs/tgsmn"), help="sweeps; default: %(default)s")
    add("--output", type=Path, default=Path("reports/tgsmn.md"), help="default: %(default)s")
    args = parser.parse_args()
    found = finished(args.root / "study")
    if "forward_dense" not in found:
        parser.error(f"--root: {args.root / 'study'} holds no finished run; run the sweep first")
    study.save_page(args.output, page(found, finished(args.root / "alone"), args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
