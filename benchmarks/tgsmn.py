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
import sys
from collections.abc import Mapping
from pathlib import Path

import study
from tgsmn_pictures import difference_dots, matrix_figures, trace_figures
from tgsmn_read import (
    ORDERS,
    Run,
    clear,
    difference,
    finished,
    greedy_losses,
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
    SHOWN,
    Row,
    cost_table,
    difference_table,
    measure_table,
    name_of,
    rows_of,
    verdict,
)

from nl.eval.continual_summary import Interval, interval

NOTES = Path(__file__).with_name("tgsmn_notes.md")
QUESTIONS = (
    ("dense_replay", "dense"),
    ("sparse_replay", "sparse"),
    ("hope_attention_replay", "hope_attention"),
    ("sparse", "dense"),
    ("sparse_replay", "dense_replay"),
    ("sparse", "dense_flops"),
    ("sparse_replay", "dense_flops_replay"),
    ("sparse_random", "sparse_replay"),
    ("sparse_pi", "sparse_replay"),
    ("sparse_gru", "sparse_replay"),
    ("sparse_gru", "sparse_random"),
    ("hope_attention", "dense"),
    ("hope_selfmod", "dense"),
    ("hope_attention", "hope_attention, frozen"),
    ("hope_selfmod", "hope_selfmod, frozen"),
    ("hope_attention", "sparse_replay"),
    ("hope_selfmod", "sparse_replay"),
    ("hope_attention_replay", "dense_replay"),
)
"""What is put in words."""
COUNTS = {2: "two", 3: "three", 4: "four", 5: "five"}


# Words


def sentence(rows: Mapping[str, Row], one: str, other: str) -> str | None:
    """What the intervals say about two rows; None where one of them is not there."""
    if one not in rows or other not in rows:
        return None
    said, open_ = [], []
    count = 0
    for measure, name in COMPARED.items():
        gap = difference(rows[one].values(measure), rows[other].values(measure))
        if gap is None:
            continue
        count = gap.n
        if clear(gap):
            said.append(
                f"{name} {verdict(gap)} by {Interval(abs(gap.mean), 0, gap.half, 3).text(2)}"
            )
        else:
            open_.append(f"{name} ({gap.text(2)})")
    if not count:
        return None
    many = COUNTS.get(count, str(count))
    words = f"- {name_of(one)} against {name_of(other)}: "
    if said:
        words += "; ".join(said) + "."
    if open_:
        words += f" No difference that {many} seeds can show in {', '.join(open_)}."
    return words.replace(":  No", ": no")


def best(rows: Mapping[str, Row]) -> list[str]:
    """Rows by their means, as a list; an order of means is no claim."""
    lines = []
    for measure in ("average_loss", "forgetting", "plasticity_loss"):
        means = {
            row.name: interval(list(values.values()))
            for row in rows.values()
            if row.key != "dense_joint" and (values := row.values(measure))
        }
        order = sorted(means, key=lambda name: means[name].mean)
        told = "; ".join(f"{name} {means[name].text(2)}" for name in order)
        lines.append(f"- {COMPARED[measure]}, lowest mean first: {told}.")
    return lines


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
    return [*lines, "", *(study.save_figure(args.output, one) + "\n" for one in figures)]


def greedy(runs: Mapping[int, Run]) -> list[str]:
    """The learned policy without exploration, and R read with its k."""
    body, gaps = [], {}
    for seed, run in runs.items():
        told = policy(run)
        configured = run.matrix("context", "val").values[-1]
        with_policy = greedy_losses(run)
        gaps[seed] = sum(with_policy) / len(with_policy) - float(configured.mean())
        ks = ", ".join(f"{k:.0f}" for _, k, _ in told)
        replay = ", ".join(f"{share:.2f}" for _, _, share in told)
        mean = sum(with_policy) / len(with_policy)
        body.append([str(seed), ks, replay, f"{configured.mean():.3f}", f"{mean:.3f}"])
    head = ["seed", "k at tasks' ends", "replay at tasks' ends", "loss, k = 2", "loss, its own k"]
    gap = interval(list(gaps.values()))
    if math.isnan(gap.half):
        said = f"One seed: {gap.text()}."
    elif clear(gap):
        said = f"Read with its own k the model is {verdict(gap)}: {gap.text(4)} nats."
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
    word = "equal to the last bit" if equal else "NOT equal"
    return [
        f"The same runs with `signals.every=0` ({len(common)} seeds): R is {word}. Signals took "
        f"{text(share, 1)} % of the time of training by their own clock (two readings of 8 rows of "
        "the task and 8 of earlier ones, every 5 steps of 16 rows); CPU time of the whole process "
        f"was {text(higher, 1)} "
        "% higher with them, on a machine that others used, too."
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
                if None not in pair:
                    cells = [f"{gap.text(2)}, {verdict(gap)}" for gap in pair if gap is not None]
                    body.append([f"{name_of(one)} - {name_of(other)}", COMPARED[measure], *cells])
    return study.table(["difference", "", "forward", "backward"], body) if body else []


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


def introduction(rows: Mapping[str, Row]) -> str:
    """What was trained and how it was measured, from the configuration of a run."""
    run = next(iter(next(iter(rows.values())).runs.values()))
    stream, train = run.config.stream, run.config.train
    domains = ", ".join(stream.domains)
    tokens = stream.steps * stream.batch_size * stream.seq_len
    return (
        f"Made by `{study.call('tgsmn')}` from `nl sweep configs/sweep/tgsmn_study.yaml` and "
        f"`tgsmn_alone.yaml`: {stream.tasks} tasks, {domains} in turn ({stream.path}: prose and "
        "code of Python's standard library, words of a Markov chain), each read through one of "
        f"{stream.repeat} permutations of the vocabulary, so that task i + {stream.repeat} speaks "
        f"the language of task i about something else. {stream.steps} steps of {stream.batch_size} "
        f"x {stream.seq_len} tokens per task, {tokens * stream.tasks:,} tokens in all, the same "
        f"for every row ({train.steps} steps, AdamW, constant rate {run.config.optim.lr:g} after "
        f"{run.config.schedule.warmup} steps); two layers of width {run.config.model.dim}. Rows "
        "of one seed have the same permutations, windows and order; another seed has others. R: "
        f"nats per token on {run.config.evals['tasks'].windows} held-out windows of every task, "
        "State fresh in each, before training and after each task. Mean and half a 95 % interval "
        "over seeds (Student); words in brackets say which direction is good."
    )


def setting() -> list[str]:
    """What the rows are."""
    return [
        "- dense: a Transformer with feed-forward layers as wide as gives it the parameters of the "
        "sparse one; equal FLOPs: as wide as gives it the FLOPs per token of k = 2.",
        "- sparse: 64 experts of rank 16 per layer, k = 2, kept in use by a bias.",
        "- replay: a quarter of every batch is drawn from 256 stored rows of earlier tasks, "
        "balanced over tasks; the batch does not grow.",
        "- random, GRU: turn k (1 to 4) and the replayed share (0 to 0.5) every 5 steps; the GRU "
        "learns online, 19 updates of 4 turns at a rate of 0.01. PI: turns the share so that the "
        "loss on earlier tasks is 5.6, about what fixed replay holds. These numbers were chosen "
        "on a seed that is not in the tables.",
        "- hope: levels of a continuum memory in the place of the feed-forward layers, equal "
        "parameters, written within a window (periods 16 to 128; a window has 64 tokens). "
        "frozen: the same models, memories not written while R is measured.",
        "- joint: all tasks at once, row by row. alone (in `learned minus alone`): a fresh dense "
        "model on that task only.",
        "",
    ]


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
        "Differences, paired by seed": [
            *(study.save_figure(args.output, one) + "\n" for one in difference_dots(rows, BASES)),
            *compared,
        ],
        "Cost": [*cost_table(rows), COSTS, "", *quiet(study_)],
        "Controllers": controllers(rows, args),
        "What is evaluated": [EVALUATED, *greedy(rows["sparse_gru"].runs)]
        if "sparse_gru" in rows
        else [],
        "The other order": [
            "The same with the tasks' domains in reverse, for some of the rows.",
            *other_order(rows, back),
        ],
        "R": matrix_figures(rows, args.output),
        "Notes": [NOTES.read_text().strip()] if NOTES.is_file() else [],
    }
    lines = ["# Task streams, sparse experts and controllers", "", introduction(rows)]
    for head, found in sections.items():
        if found:
            lines += ["", f"## {head}", "", *found]
    return lines


WORDS = (
    "Forgetting: final loss minus the lowest since the task was learned. Share lost: of what the "
    "tasks before the last had gained over the untrained model right after they were learned, how "
    "much was gone at the end; above 1, more than nothing is known wrong. Loss while learning: on "
    "8 held-out windows of the current task, mean of every fifth step. Stability gap: the worst "
    "loss on earlier tasks within a task minus that at its end, on 8 windows. Intransigence: loss "
    "right after a task was learned, minus that of the joint dense model at its end."
)
COSTS = (
    "FLOPs: of a forward pass, two per weight that a token is multiplied with and those of "
    "attention; what memories do to write themselves is not counted, CPU seconds hold it. CPU "
    "seconds: of the process until R is measured, start and checkpoints included; the machine had "
    "two cores that others used, so that they are good to a tenth or so."
)
EVALUATED = (
    "R reads every model with the k that it was configured with (2), whatever its controller did "
    "last: an evaluator has no controller, and models are then compared at equal active FLOPs. "
    "Validation inside a run asks the controller what it would do without exploring (`frozen`), "
    "and leaves it as it is. Here both are beside each other on the same 16 validation windows of "
    "every task after the last, with the most likely knobs of the learned policy at the end of "
    "every task."
)


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
