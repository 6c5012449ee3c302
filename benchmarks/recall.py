"""Does it recall? Every block on associative recall, equal parameters, several seeds.

Trains each cell through train.py (finished runs are kept), then writes the page, and next to it
the curves as SVG and CSV, from the run directories. The inner width of every block is chosen so
that all have as many parameters as the transformer.

Example: python benchmarks/recall.py --pairs 8 --steps 400 --seeds 3
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from nl.report.figures import Figure, Line, draw, figure_csv, standalone

T_95 = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776}
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
class Cell:
    """One run: a block or a variant of one, on P pairs for some steps."""

    label: str
    pairs: int
    steps: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.label}-p{self.pairs}-n{self.steps}-s{self.seed}"


def overrides(label: str) -> list[str]:
    """What makes the model of a label: a block, or a variant of hope_selfmod."""
    changes = VARIANTS.get(label)
    return [f"model.block={label}"] if changes is None else ["model.block=hope_selfmod", *changes]


def parameters(pairs: int, changes: list[str]) -> int:
    """Parameters of a model, without memory for them."""
    import torch

    import nl.assembly  # noqa: F401 - registers the parts
    from nl.config.hydra import compose, run_config

    run = run_config(compose("pilot_smoke", [f"experiment=recall/pairs{pairs}", *changes]))
    with torch.device("meta"):
        model = run.model.build()  # type: ignore[attr-defined]
    return sum(p.numel() for p in model.parameters())


def width(label: str, pairs: int) -> list[str]:
    """The override of the inner width that comes closest to the transformer's parameters."""
    import nl.assembly  # noqa: F401 - registers the parts
    from nl.config import lookup

    chosen = overrides(label)
    block = chosen[0].split("=")[1]
    levels = lookup("block", block, "block")().levels
    key = "model.cms.hidden" if levels else "model.mlp_hidden"
    goal = parameters(pairs, [f"model.block={REFERENCE}"])
    low, high = (parameters(pairs, [*chosen, f"{key}={n}"]) for n in (64, 65))
    return [f"{key}={max(1, 64 + round((goal - low) / (high - low)))}"]


def command(cell: Cell, args: argparse.Namespace) -> list[str]:
    """The command line of one run."""
    return [
        sys.executable,
        "train.py",
        "--config-name",
        "pilot_smoke",
        f"experiment=recall/pairs{cell.pairs}",
        *overrides(cell.label),
        *width(cell.label, cell.pairs),
        f"train.steps={cell.steps}",
        f"seed={cell.seed}",
        "checkpoint.export=false",
        f"run.dir={args.root / cell.name}",
        *args.override,
    ]


def train(cell: Cell, args: argparse.Namespace) -> None:
    """Run one cell unless it is finished."""
    home = args.root / cell.name
    if (home / "summary.json").is_file():
        return
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (args.root / f"{cell.name}.log").open("w") as log:
        code = subprocess.run(command(cell, args), env=env, stdout=log, stderr=log).returncode
    if code:
        raise SystemExit(f"{cell.name} failed; see {args.root / cell.name}.log")
    print(f"{cell.name}: {curve(args.root, cell)[1][-1]:.3f}", flush=True)


def curve(root: Path, cell: Cell) -> tuple[list[float], list[float]]:
    """Validation accuracy over steps."""
    text = (root / cell.name / "metrics.jsonl").read_text()
    rows = [r for r in map(json.loads, text.splitlines()) if r["split"] == "val"]
    return [float(r["step"]) for r in rows], [float(r["accuracy"]) for r in rows]


def interval(values: list[float]) -> str:
    """Mean and 95 % interval of the mean (Student)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    half = T_95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.3f} +- {half:.3f}"


def table(args: argparse.Namespace, pairs: int, steps: int) -> list[str]:
    """One row per label, best first."""
    rows = []
    for label in args.labels:
        cells = [Cell(label, pairs, steps, seed) for seed in range(args.seeds)]
        found = [curve(args.root, cell) for cell in cells]
        ends = [accuracy[-1] for _, accuracy in found]
        half = [
            next((f"{step:g}" for step, a in zip(*one, strict=True) if a >= 0.5), "-")
            for one in found
        ]
        summary = json.loads((args.root / cells[0].name / "summary.json").read_text())
        each = ", ".join(f"{end:.3f}" for end in ends)
        line = f"| {label} | {summary['parameters']:,} | {interval(ends)} | {each} |"
        rows.append((-statistics.fmean(ends), f"{line} {', '.join(half)} |"))
    head = "| model | parameters | accuracy | by seed | step at which half is right |"
    return [head, "|---|---|---|---|---|", *(text for _, text in sorted(rows))]


def figure(args: argparse.Namespace, pairs: int, steps: int) -> Figure:
    """Mean accuracy over seeds against steps, a curve per label."""
    lines = []
    for number, label in enumerate(args.labels):
        found = [curve(args.root, Cell(label, pairs, steps, s)) for s in range(args.seeds)]
        mean = [statistics.fmean(values) for values in zip(*(y for _, y in found), strict=True)]
        lines.append(Line(label, found[0][0], mean, colour=number))
    name = f"recall_p{pairs}_n{steps}"
    return Figure(name, "Validation accuracy", lines, alt="Mean over seeds.", wide=True)


def report(args: argparse.Namespace) -> str:
    """The page; figures are written next to it."""
    call = " ".join(["python", "benchmarks/recall.py", *sys.argv[1:]])
    lines = [
        "# Does it recall?",
        "",
        f"Made by `{call}`: P pairs of a key and a value, then every key again in another order; "
        f"accuracy on fresh rows after the last step, mean and 95 % interval over {args.seeds} "
        "seeds. Width 128, 2 layers, inner widths chosen for equal parameters; configs "
        "`experiment=recall/pairs<P>`.",
    ]
    for pairs, steps in itertools.product(args.pairs, args.steps):
        lines += ["", f"## {pairs} pairs, {steps} steps", "", *table(args, pairs, steps)]
        drawn = figure(args, pairs, steps)
        (args.output.parent / f"{drawn.name}.csv").write_text(figure_csv(drawn))
        (args.output.parent / f"{drawn.name}.svg").write_text(standalone(draw(drawn)))
        lines += ["", f"![accuracy over steps]({drawn.name}.svg)"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Train what is missing, write the page."""
    import nl.assembly  # noqa: F401 - registers the parts
    from nl.config import table as registered

    blocks = sorted(registered("block"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--root", type=Path, default=Path("runs/recall"), help="run directories")
    add("--output", type=Path, default=Path("reports/recall.md"), help="the page")
    add("--pairs", type=int, nargs="*", default=[8, 16], choices=(8, 16), help="P")
    add("--steps", type=int, nargs="*", default=[400, 2000], help="optimizer steps per run")
    add("--seeds", type=int, default=5, choices=range(1, 6), help="runs per cell, 1 to 5")
    known = [*blocks, *VARIANTS]
    add("--labels", nargs="*", default=blocks, choices=known, help="blocks and variants")
    add("--override", nargs="*", default=[], help="more Hydra overrides")
    args = parser.parse_args()
    args.root.mkdir(parents=True, exist_ok=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    for seed, pairs, steps in itertools.product(range(args.seeds), args.pairs, args.steps):
        for label in args.labels:
            train(Cell(label, pairs, steps, seed), args)
    args.output.write_text(report(args))
    print(f"written: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
