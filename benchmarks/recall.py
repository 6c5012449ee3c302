"""Does it recall? Every block on associative recall, equal parameters, several seeds.

Trains each cell through train.py (finished runs are kept), then writes the page, and next to it
the curves as SVG and CSV, from the run directories. The inner width of every block is chosen so
that all have as many parameters as the transformer.

Example: python benchmarks/recall.py --pairs 8 --steps 400 --seeds 3
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from dataclasses import dataclass

import study

from nl.config import ConfigError
from nl.report.figures import Figure, Line

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


@dataclass(frozen=True)
class Task:
    """P pairs, trained for some steps."""

    pairs: int
    steps: int

    def name(self, label: str, seed: int) -> str:
        """The directory of one run."""
        return f"{label}-p{self.pairs}-n{self.steps}-s{seed}"

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


def cell(label: str, task: Task, seed: int) -> study.Cell:
    """One run."""
    told = (f"train.steps={task.steps}", f"seed={seed}", "checkpoint.export=false")
    return study.Cell(task.name(label, seed), (*overrides(label, task), *told))


def curves(
    args: argparse.Namespace, label: str, task: Task
) -> dict[int, tuple[list[float], list[float]]]:
    """Validation accuracy over steps of the finished runs, by seed."""
    names = {seed: task.name(label, seed) for seed in range(args.seeds)}
    return {
        seed: study.curve(args.root, name, "accuracy", split="val")
        for seed, name in names.items()
        if study.result(args.root, name) is not None
    }


def rows(args: argparse.Namespace, task: Task) -> list[str]:
    """One row per label with finished runs, best first."""
    lines = []
    for label in args.labels:
        found = curves(args, label, task)
        if not found:
            continue
        some = study.result(args.root, task.name(label, next(iter(found))))
        ends = [accuracy[-1] for _, accuracy in found.values()]
        half = [
            next((f"{step:g}" for step, a in zip(*one, strict=True) if a >= 0.5), "-")
            for one in found.values()
        ]
        each = ", ".join(f"{end:.3f}" for end in ends)
        size = "-" if some is None else f"{some.parameters:,}"
        seeds = f"{len(found)} of {args.seeds}"
        row = [label, size, seeds, study.interval(ends, 3), each, ", ".join(half)]
        lines.append((-statistics.fmean(ends), row))
    head = ["model", "parameters", "seeds", "accuracy", "by seed", "step at which half is right"]
    return study.table(head, [row for _, row in sorted(lines)])


def figure(args: argparse.Namespace, task: Task) -> Figure | None:
    """Mean accuracy over seeds against steps, a curve per label."""
    lines = []
    for number, label in enumerate(args.labels):
        found = list(curves(args, label, task).values())
        if found:
            mean = [statistics.fmean(values) for values in zip(*(y for _, y in found), strict=True)]
            lines.append(Line(label, found[0][0], mean, colour=number))
    name = f"recall_p{task.pairs}_n{task.steps}"
    drawn = Figure(name, "Validation accuracy", lines, alt="Mean over seeds.", wide=True)
    return drawn if lines else None


def page(args: argparse.Namespace, tasks: list[Task]) -> list[str]:
    """The lines of the page; figures are written next to it."""
    lines = [
        "# Does it recall?",
        "",
        f"Made by `{study.call('recall')}`: P pairs of a key and a value, then every key again in "
        "another order; accuracy on fresh rows after the last step, mean and 95 % interval over "
        "the seeds that the row names. Width 128, 2 layers, inner widths chosen for equal "
        "parameters; configs `experiment=recall/pairs<P>`.",
    ]
    for task in tasks:
        lines += ["", f"## {task.pairs} pairs, {task.steps} steps", *rows(args, task)]
        drawn = figure(args, task)
        lines += [study.save_figure(args.output, drawn)] if drawn else ["No finished run."]
    return lines


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
    tasks = [Task(pairs, steps) for pairs in args.pairs for steps in args.steps]
    if not args.report_only:
        plan = itertools.product(range(args.seeds), tasks, args.labels)
        cells = (cell(label, task, seed) for seed, task, label in plan)
        study.run_cells(cells, args.root, jobs=args.jobs, extra=study.fixed(args))
    study.save_page(args.output, page(args, tasks))
    return 0


if __name__ == "__main__":
    sys.exit(main())
