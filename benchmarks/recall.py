"""Does it recall? Every block on associative recall, equal parameters, several seeds.

Trains each cell through train.py, gathers the finished runs into a CSV file next to the page (what
is in it is not trained again), and from that writes the page, with the curves as SVG and CSV. The
inner width of every block is chosen so that all have as many parameters as the transformer.

Example: python benchmarks/recall.py --pairs 8 --steps 400 --seeds 3
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
from typing import NamedTuple

import study
import study_lines
from recall_runs import Key, Line, gathered

from nl.config import ConfigError
from nl.report import figures
from nl.report.figures import Figure

REFERENCE = "transformer"
VARIANTS: dict[str, tuple[str, ...]] = {
    "selfmod-skip": ("model.selfmod.skip=true",),
    "selfmod-blind-gates": ("model.selfmod.direct_gates=false",),
    "selfmod-target-self": ("model.selfmod.target=self",),
    "selfmod-others-still": ("model.selfmod.rate_other=1e-6",),
    "selfmod-features-still": ("model.selfmod.rate_hidden=1e-6",),
    "selfmod-hidden-2x": ("model.selfmod.hidden=64",),
    "selfmod-frozen": ("objective.write=false",),
}
"""Changes of hope_selfmod, one at a time."""


class Task(NamedTuple):
    """P pairs, trained for some steps."""

    pairs: int
    steps: int

    @property
    def experiment(self) -> str:
        """The configuration."""
        return f"experiment=recall/pairs{self.pairs}"


def overrides(label: str, task: Task) -> tuple[str, ...]:
    """What makes the model of a label: a block or a variant of hope_selfmod, and its width."""
    changes = VARIANTS.get(label)
    block = label if changes is None else "hope_selfmod"
    chosen = (task.experiment, f"model.block={block}", *(changes or ()))
    try:
        goal = study.parameters((task.experiment, f"model.block={REFERENCE}"))
        return (*chosen, study.width(block, chosen, goal))
    except ConfigError:  # a key that this checkout does not have; the runner says which
        return chosen


def cell(key: Key) -> study.Cell:
    """One run."""
    told = (f"train.steps={key.steps}", f"seed={key.seed}", "checkpoint.export=false")
    return study.Cell(key.name, (*overrides(key.label, Task(key.pairs, key.steps)), *told))


def of_label(lines: dict[Key, Line], label: str, task: Task) -> list[Line]:
    """The runs of one row, by seed."""
    return [lines[key] for key in sorted(lines) if key[:3] == (label, *task)]


def rows(args: argparse.Namespace, lines: dict[Key, Line], task: Task) -> list[str]:
    """One row per label with finished runs, best first."""
    table = []
    for label in args.labels:
        found = of_label(lines, label, task)
        if not found:
            continue
        ends = [line.accuracy[-1] for line in found]
        known = [line.cpu_seconds for line in found if not math.isnan(line.cpu_seconds)]
        row = [
            label,
            f"{found[0].parameters:,}",
            f"{len(found)} of {args.seeds}",
            study.interval(ends, 3),
            ", ".join(f"{end:.3f}" for end in ends),
            ", ".join(line.half() for line in found),
            f"{statistics.fmean(known):.0f}" if known else "-",
        ]
        table.append((-statistics.fmean(ends), row))
    head = ["model", "parameters", "seeds", "accuracy", "by seed", "step at which half is right"]
    return study.table([*head, "CPU s of a run"], [row for _, row in sorted(table)])


def figure(args: argparse.Namespace, lines: dict[Key, Line], task: Task) -> Figure | None:
    """Mean accuracy over seeds against steps, a curve per label."""
    drawn = []
    for number, label in enumerate(args.labels):
        if found := of_label(lines, label, task):
            columns = zip(*(line.accuracy for line in found), strict=True)
            mean = [statistics.fmean(values) for values in columns]
            drawn.append(figures.Line(label, list(found[0].at), mean, colour=number))
    name = f"recall_p{task.pairs}_n{task.steps}"
    made = Figure(name, "Validation accuracy", drawn, alt="Mean over seeds.", wide=True)
    return made if drawn else None


def page(args: argparse.Namespace, lines: dict[Key, Line], tasks: list[Task]) -> list[str]:
    """The lines of the page; figures are written next to it."""
    commits = ", ".join(sorted({line.commit for line in lines.values()}))
    text = [
        "# Does it recall?",
        "",
        f"Made by `{study.call('recall')}`: P pairs of a key and a value, then every key again in "
        "another order; accuracy on fresh rows after the last step, mean and 95 % interval over "
        "the seeds that the row names. Width 128, 2 layers, inner widths chosen for equal "
        f"parameters; configs `experiment=recall/pairs<P>`. Every run: [{args.runs.name}]"
        f"({args.runs.name}), made with {commits or 'no commit'}.",
    ]
    for task in tasks:
        text += ["", f"## {task.pairs} pairs, {task.steps} steps", *rows(args, lines, task)]
        drawn = figure(args, lines, task)
        text += [study.save_figure(args.output, drawn)] if drawn else ["No finished run."]
    return text


def main() -> int:
    """Train what is missing, write the page."""
    import nl.assembly  # noqa: F401 - registers the parts
    from nl.config import table as registered

    blocks = sorted(registered("block"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = study.flags(parser, "runs/recall", "reports/recall.md")
    add("--pairs", type=int, nargs="*", default=[8, 16], choices=(8, 16), help="P")
    add("--steps", type=int, nargs="*", default=[400, 2000], help="optimizer steps per run")
    add("--seeds", type=int, default=5, choices=range(1, 10), help="runs per cell")
    known = [*blocks, *VARIANTS]
    add("--labels", nargs="*", default=blocks, choices=known, help="blocks and variants")
    args = parser.parse_args()
    args.runs = args.output.with_name(f"{args.output.stem}_runs.csv")
    tasks = [Task(pairs, steps) for pairs in args.pairs for steps in args.steps]
    plan = itertools.product(range(args.seeds), tasks, args.labels)
    keys = [Key(label, *task, seed) for seed, task, label in plan]
    lines = study_lines.read(args.runs, Key, Line)
    if not args.report_only:
        cells = (cell(key) for key in keys if key not in lines)
        study.run_cells(cells, args.root, jobs=args.jobs, extra=study.fixed(args))
    lines |= gathered(args.root, keys)
    study_lines.write(args.runs, lines)
    lines = study_lines.read(args.runs, Key, Line)
    shown = {key: line for key, line in lines.items() if key in keys}
    study.save_page(args.output, page(args, shown, tasks))
    return 0


if __name__ == "__main__":
    sys.exit(main())
