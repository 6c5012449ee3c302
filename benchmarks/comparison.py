"""What do the blocks learn from text? Equal parameters and tokens, several seeds, paired.

Trains each cell through train.py on the stdlib corpus, gathers the finished runs into a CSV file
next to the page (what is in it is not trained again), and from that writes the page, with figures
as SVG and CSV. The inner width of every block is chosen so that all have as many parameters as the
transformer.

Example: python benchmarks/comparison.py --seeds 3 --only transformer hope_attention
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import comparison_dynamic as dynamic
import comparison_positions as positions
import study
import study_lines
from comparison_rows import (
    BLOCKS,
    CHANGES,
    HOPE,
    LR,
    LR_BLOCKS,
    LR_TRIED,
    REFERENCE,
    cells,
    change,
    rows,
)
from comparison_runs import KEYS, Found, Key, Line, gathered
from comparison_sections import (
    better,
    dynamic_pairs,
    dynamic_section,
    head_section,
    longer_section,
    positions_section,
)

from nl.report import figures
from nl.report.dots import Dot, Dots
from nl.report.figures import Figure, smooth

FIRST_TOKENS = 100_000
"""Curves begin here: before it all fall steeply and nothing can be told apart."""


def levels_table(found: Found) -> list[str]:
    """Losses, size and cost of every block and its frozen twin."""
    lines = []
    labels = [label for block in BLOCKS for label in (block, f"{block}-frozen")]
    for label in found.there(labels):
        results = found.results(label)
        some = next(iter(results.values()))
        timed = [one.cpu_seconds for one in results.values() if not math.isnan(one.cpu_seconds)]
        cpu = study.median(timed)
        wall = study.median(one.seconds for one in results.values())
        commits = sorted({one.commit for one in results.values()})
        lines.append(
            [
                label,
                f"{some.parameters:,}",
                f"{len(results)} of {found.seeds}",
                *(study.interval(list(found.values(label, key).values())) for key in KEYS),
                "-" if cpu is None else f"{cpu:.0f}",
                "-" if cpu is None else f"{some.tokens / cpu:.0f}",
                "-" if wall is None else f"{wall:.0f}",
                ", ".join(commits),
            ]
        )
    head = ["model", "parameters", "seeds", *KEYS, "CPU s", "tokens per CPU s", "wall s", "commit"]
    return study.table(head, lines)


def differences(found: Found, pairs: list[tuple[str, str]]) -> list[str]:
    """A table of paired differences of validation losses."""
    lines = []
    for label, other in pairs:
        gaps = found.paired(label, other)
        if gaps:
            parts = [study.interval(found.paired(label, other, key)) for key in KEYS]
            lines.append([f"{label} - {other}", *parts, better(gaps)])
    return study.table(["difference", *KEYS, "seeds below zero"], lines)


def dots(found: Found, name: str, title: str, pairs: list[tuple[str, str, str]]) -> Dots | None:
    """A dot plot of paired differences of (label, other, name of the row)."""
    drawn = []
    for label, other, text in pairs:
        if gaps := found.paired(label, other):
            drawn.append(Dot(f"{text} ({len(gaps)})", *study.student(gaps)))
    return Dots(name, title, drawn, "difference of validation loss, nats") if drawn else None


def loss_curve(found: Found, label: str, seed: int) -> tuple[list[float], list[float]]:
    """Smoothed training loss over tokens; every token is new, so it is the loss of unseen text."""
    line = found.lines[Key(label, seed)]
    return list(line.at), smooth(list(line.train))


def learning_figures(found: Found) -> list[Figure]:
    """Loss over tokens with the range over seeds, and its distance to the transformer's."""
    lines, gaps = [], []
    for number, label in enumerate(BLOCKS):
        runs = {seed: loss_curve(found, label, seed) for seed in found.results(label)}
        if not runs:
            continue
        x = next(iter(runs.values()))[0]
        start = next((i for i, tokens in enumerate(x) if tokens >= FIRST_TOKENS), 0)
        columns = list(zip(*(y for _, y in runs.values()), strict=True))[start:]
        mean = [statistics.fmean(column) for column in columns]
        low, high = [min(c) for c in columns], [max(c) for c in columns]
        lines.append(figures.Line(label, x[start:], mean, colour=number, low=low, high=high))
        base = {seed: loss_curve(found, REFERENCE, seed) for seed in found.results(REFERENCE)}
        common = sorted(runs.keys() & base.keys())
        if label == REFERENCE or not common:
            continue
        pairs = [list(zip(runs[s][1], base[s][1], strict=True))[start:] for s in common]
        steps = list(zip(*([a - b for a, b in pair] for pair in pairs), strict=True))
        inside = [study.student(step) for step in steps]
        band: dict[str, Any] = {}
        if len(common) > 1:
            band = {"low": [m - h for m, h in inside], "high": [m + h for m, h in inside]}
        middle = [mean for mean, _ in inside]
        gaps.append(figures.Line(label, x[start:], middle, colour=number, **band))
    drawn = []
    if lines:
        alt = "Mean over seeds; the band is their range."
        title = "Training loss, nats per token"
        drawn.append(Figure("comparison_loss", title, lines, {}, "tokens", alt, True))
    if gaps:
        alt = "Paired by seed and step; bands are 95 % intervals."
        title = "Training loss minus the transformer's, nats per token"
        levels = {"transformer": 0.0}
        drawn.append(Figure("comparison_gap", title, gaps, levels, "tokens", alt, True))
    return drawn


def changes_section(found: Found, page: Path) -> list[str]:
    """Single changes, each against its own block."""
    lines = ["## Single changes", ""]
    lines += [
        "Changed minus unchanged, paired by seed (above zero: the default is better). Of so many "
        "intervals about one in twenty misses the truth."
    ]
    for block, changes in CHANGES.items():
        pairs = [(f"{block}-{name}", block) for name in changes]
        pairs = [pair for pair in pairs if pair[0] in found.rows]
        if not any(found.paired(*pair) for pair in pairs):
            continue
        body = []
        for label, other in pairs:
            if gaps := found.paired(label, other):
                what = " ".join(found.rows[label].changes)
                parts = [study.interval(found.paired(label, other, key)) for key in KEYS]
                body.append([f"`{what}`", f"{len(gaps)} of {found.seeds}", *parts, better(gaps)])
        lines += ["", f"### {block}"]
        lines += study.table(["change", "seeds", *KEYS, "seeds below zero"], body)
        text = [(label, other, label.removeprefix(f"{block}-")) for label, other in pairs]
        drawn = dots(found, f"comparison_{block}", f"{block}: what changes do", text)
        lines += [study.save_figure(page, drawn)] if drawn else []
    return lines if len(lines) > 3 else []


def rates_section(found: Found) -> list[str]:
    """Learning rates on one seed."""
    body = []
    for block in LR_BLOCKS:
        tried = {lr: found.lines.get(Key(f"{block}-lr{lr}", 0)) for lr in LR_TRIED}
        tried[LR] = found.lines.get(Key(block, 0))
        there = {lr: one.loss for lr, one in tried.items() if one is not None}
        if len(there) > 1:
            order = sorted(tried, key=float)
            cells = [f"{there[lr]:.4f}" if lr in there else "-" for lr in order]
            body.append([block, *cells, min(there, key=lambda lr: there[lr])])
    if not body:
        return []
    text = f"Validation loss of seed 0; all other sections use {LR}."
    head = ["model", *sorted((*LR_TRIED, LR), key=float), "best of those tried"]
    return ["## Learning rate", "", text, *study.table(head, body)]


def not_won(found: Found) -> list[list[str]]:
    """Comparisons of HOPE blocks whose interval, or one seed, is not below zero."""
    body = []
    for block in HOPE:
        for other in [*(b for b in BLOCKS if b not in HOPE), f"{block}-frozen"]:
            for key in KEYS:
                gaps = found.paired(block, other, key)
                lone = len(gaps) == 1 and gaps[0] < 0
                if gaps and not lone and not better(gaps).endswith("better"):
                    body.append([block, other, key, study.interval(gaps), better(gaps)])
        learns = f"{REFERENCE}-head"
        for mine, other in (
            (block, f"{REFERENCE}-longer"),
            (block, learns),
            (f"{block}-head", learns),
        ):
            gaps = found.paired(mine, other)
            if gaps and not better(gaps).endswith("better"):
                body.append([mine, other, "val/loss", study.interval(gaps), better(gaps)])
    for block, told, rate, (gaps, _) in dynamic_pairs(found):
        if not better(gaps).endswith("better"):
            other = f"{REFERENCE} that learns while read: {told}, rate {rate:g}"
            body.append([block, other, "val/loss", study.interval(gaps), better(gaps)])
    return body


def beating(found: Found) -> list[list[str]]:
    """Changes whose mean is below that of the defaults."""
    body = []
    for row in found.rows.values():
        gaps = found.paired(row.label, row.parent) if row.kind == "change" else []
        if gaps and statistics.fmean(gaps) < 0:
            what = " ".join(row.changes)
            body.append([row.block, f"`{what}`", study.interval(gaps), better(gaps)])
    return body


def losses_section(found: Found, notes: Path) -> list[str]:
    """Comparisons that a HOPE block does not win, changes that beat the defaults, the notes."""
    lines = ["## Where HOPE does not win, and why", ""]
    if body := not_won(found):
        lines += ["Comparisons whose interval (or one seed) is not below zero:"]
        lines += study.table(["model", "against", "loss", "difference", "seeds below zero"], body)
    elif any(found.paired(block, REFERENCE) for block in HOPE):
        lines += ["Every comparison of the tables above that was run is won by the HOPE block."]
    else:
        lines += ["No comparison was run yet."]
    if body := beating(found):
        lines += ["", "Changes whose mean is below that of the defaults:"]
        lines += study.table(["model", "change", "difference", "seeds below zero"], body)
    return [*lines, "", notes.read_text().strip() if notes.is_file() else ""]


def missing_section(found: Found) -> list[str]:
    """Rows that are not complete, and the reason where there is one."""
    body, never = [], []
    for row in found.rows.values():
        wanted = 1 if row.kind == "lr" else found.seeds
        count = len([seed for seed in found.results(row.label) if seed < wanted])
        if count == wanted:
            continue
        planned = [study.Cell(f"{row.label}-s{seed}", change(row)) for seed in range(wanted)]
        failed = [c.name for c in planned if study.standing(found.root, c) == "failed"]
        reason = study.refusal(planned[0]) or (f"failed: {', '.join(failed)}" if failed else "")
        if count or reason:
            body.append([row.label, f"{count} of {wanted}", reason or "not run yet"])
        else:
            never.append(f"`{row.label}`")
    lines = study.table(["row", "seeds", "reason"], body) if body else []
    lines += ["", f"Not run: {', '.join(never)}."] if never else []
    return ["## Not complete", *lines] if lines else []


def page(found: Found, args: argparse.Namespace) -> list[str]:
    """The lines of the page; figures are written next to it."""
    output, runs = args.output, args.runs.name
    blocks = found.there(BLOCKS)
    against = [(b, REFERENCE) for b in blocks if b != REFERENCE]
    frozen = [(b, f"{b}-frozen") for b in blocks if b != REFERENCE]
    lines = [
        "# What do the blocks learn from text?",
        "",
        f"Made by `{study.call('comparison')}`: `experiment=text/comparison`, 250 steps of 8 x 256 "
        "tokens of the stdlib corpus (text and code, half each; no token is seen twice), the same "
        "tokens for every row of a seed, inner widths chosen for equal parameters, AdamW with "
        f"warm-up and cosine, learning rate {LR} for all rows. Validation loss in nats per token "
        "after the last step, mean and 95 % interval over seeds (Student). Label-driven levels "
        "learn while they read, in validation too: from tokens already read, never from those "
        "still to be predicted. `frozen` trains and validates with every memory frozen "
        "(`objective.write=false`). A row with one seed has no interval. CPU seconds include "
        "validation; wall seconds were taken beside other work on the machine. Every run: "
        f"[{runs}]({runs}).",
        *levels_table(found),
    ]
    for drawn in learning_figures(found):
        lines += ["", study.save_figure(output, drawn), "", f"{drawn.title}. {drawn.alt}"]
    lines += ["", f"## Against the {REFERENCE}", *differences(found, against)]
    text = [(a, b, a) for a, b in against]
    figure = dots(found, "comparison_reference", "Validation loss minus the transformer's", text)
    lines += [study.save_figure(output, figure)] if figure else []
    if any(found.results(label) for _, label in frozen):
        lines += ["", "## What the writes are worth: written minus frozen"]
        lines += differences(found, frozen)
    text = [(a, b, a) for a, b in frozen]
    figure = dots(found, "comparison_frozen", "Validation loss, written minus frozen", text)
    lines += [study.save_figure(output, figure)] if figure else []
    lines += head_section(found, output)
    lines += longer_section(found)
    lines += dynamic_section(found, output)
    lines += positions_section(found, output)
    notes = Path(__file__).with_name(f"{output.stem}_notes.md")  # a page has notes of its own
    lines += ["", *losses_section(found, notes)]
    lines += ["", *changes_section(found, output)]
    lines += ["", *rates_section(found)]
    return [*lines, "", *missing_section(found)]


def main() -> int:
    """Train what is missing, write the page."""
    known = rows()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = study.flags(parser, "runs/comparison", "reports/comparison.md")
    add("--seeds", type=int, default=3, choices=range(1, 10), help="runs per row")
    add("--positions", action="store_true", help="measure finished blocks by position too")
    add("--dynamic", nargs="+", metavar="LABEL", help="let all of these finished blocks learn")
    add("--ways", nargs="+", choices=dynamic.WAYS, default=list(dynamic.WAYS), help="how")
    add("--only", nargs="*", metavar="LABEL", help=f"rows to train: {', '.join(known)}")
    args = parser.parse_args()
    for flag, named, choices in (("only", args.only, known), ("dynamic", args.dynamic, BLOCKS)):
        if wrong := sorted({*(named or ())} - {*choices}):
            parser.error(f"--{flag}: {', '.join(wrong)}; known: {', '.join(choices)}")
    chosen = [row for row in known.values() if args.only is None or row.label in args.only]
    args.runs = args.output.with_name(f"{args.output.stem}_runs.csv")
    lines = study_lines.read(args.runs, Key, Line)
    if not args.report_only:
        there = {key.name for key in lines}
        planned = [one for one in cells(chosen, args.seeds) if one.name not in there]
        study.run_cells(planned, args.root, jobs=args.jobs, extra=study.fixed(args))
    if args.positions:
        for row, seed in itertools.product(chosen, range(args.seeds)):
            if row.kind in ("block", "frozen"):
                positions.measure(args.root, f"{row.label}-s{seed}", args.data)
    for way, label, seed in itertools.product(args.ways, args.dynamic or (), range(args.seeds)):
        dynamic.measure(args.root, f"{label}-s{seed}", args.data, way)
    every = [Key(label, seed) for label in known for seed in range(args.seeds)]
    study_lines.write(args.runs, lines | gathered(args.root, every))
    lines = study_lines.read(args.runs, Key, Line)
    study.save_page(args.output, page(Found(args.root, args.seeds, known, lines), args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
