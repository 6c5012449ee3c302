"""What the writes are worth: every block with its memories written and frozen, several seeds.

Trains each cell through train.py on the stdlib corpus (finished runs are kept), then writes
reports/first_run.md from the summaries and metrics of those runs.

Example: python benchmarks/first_run.py --root runs/first_run --jobs 2
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

T_95 = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776}
BLOCKS = ("transformer", "hope_attention", "hope_selfmod")


@dataclass(frozen=True)
class Cell:
    """One run."""

    block: str
    write: bool
    seed: int

    @property
    def name(self) -> str:
        return f"{self.block}-{'written' if self.write else 'frozen'}-s{self.seed}"


def cells(seeds: int) -> list[Cell]:
    """The baseline has no memories: it runs once per seed."""
    return [
        Cell(block, write, seed)
        for seed in range(seeds)
        for block in BLOCKS
        for write in ((True,) if block == "transformer" else (True, False))
    ]


def command(cell: Cell, args: argparse.Namespace) -> list[str]:
    """The command line of one run."""
    return [
        sys.executable,
        "train.py",
        "--config-name",
        "pilot_smoke",
        f"model.block={cell.block}",
        f"objective.write={str(cell.write).lower()}",
        f"seed={cell.seed}",
        f"train.steps={args.steps}",
        f"stream.batch_size={args.batch_size}",
        "train.validate_every=0",
        f"train.validate_batches={args.validate_batches}",
        "checkpoint.every=0",
        f"schedule.warmup={args.steps // 10}",
        f"run.dir={args.root / cell.name}",
        *args.override,
    ]


def train(cell: Cell, args: argparse.Namespace) -> None:
    """Run one cell unless it is finished."""
    home = args.root / cell.name
    if (home / "summary.json").is_file():
        return
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    home.parent.mkdir(parents=True, exist_ok=True)
    with (args.root / f"{cell.name}.log").open("w") as log:
        code = subprocess.run(command(cell, args), env=env, stdout=log, stderr=log).returncode
    print(f"{cell.name}: exit code {code}", flush=True)
    if code:
        raise SystemExit(f"{cell.name} failed; see {args.root / cell.name}.log")


def summary(root: Path, cell: Cell) -> dict[str, float]:
    """Final numbers of one run."""
    data = json.loads((root / cell.name / "summary.json").read_text())
    final: dict[str, float] = data["final"]
    return {**final, "parameters": data["parameters"], "tokens": data["tokens"]}


def interval(values: list[float]) -> str:
    """Mean and 95 % interval of the mean (Student)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.4f}"
    half = T_95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.4f} +- {half:.4f}"


def paired(root: Path, block: str, seeds: int, key: str) -> list[float]:
    """Written minus frozen per seed: below zero, the writes help."""
    return [
        summary(root, Cell(block, True, s))[key] - summary(root, Cell(block, False, s))[key]
        for s in range(seeds)
    ]


def report(args: argparse.Namespace) -> str:
    """The page."""
    baselines = json.loads((args.root / "baselines.json").read_text())["unigram"]
    keys = ["val/loss", "val/prose/loss", "val/code/loss"]
    lines = ["# First run: what the writes are worth", ""]
    one = summary(args.root, Cell("hope_attention", True, 0))
    lines += [
        f"Made by `{' '.join(['python', 'benchmarks/first_run.py', *sys.argv[1:]])}`: config "
        f"`pilot_smoke`, {args.steps} steps of {args.batch_size} x 256 tokens "
        f"({one['tokens']:,} in all), {args.seeds} seeds, validation loss in nats per token, mean "
        "and 95 % interval over seeds. `frozen` trains and validates the same model with every "
        "memory frozen (`objective.write=false`).",
        "",
        "| model | parameters | " + " | ".join(keys) + " |",
        "|---|---|" + "---|" * len(keys),
        "| unigram | | " + " | ".join(f"{baselines[k[:-5]]:.4f}" for k in keys) + " |",
    ]
    for block in BLOCKS:
        for write in (True, False) if block != "transformer" else (True,):
            found = [summary(args.root, Cell(block, write, s)) for s in range(args.seeds)]
            label = (
                block if block == "transformer" else f"{block}, {'written' if write else 'frozen'}"
            )
            values = " | ".join(interval([f[k] for f in found]) for k in keys)
            lines.append(f"| {label} | {found[0]['parameters']:,} | {values} |")
    lines += ["", "Written minus frozen, paired by seed (below zero: the writes help):", ""]
    lines += ["| model | " + " | ".join(keys) + " | seeds that gain (val) |"]
    lines += ["|---|" + "---|" * len(keys) + "---|"]
    for block in BLOCKS[1:]:
        gaps = {k: paired(args.root, block, args.seeds, k) for k in keys}
        gain = sum(g < 0 for g in gaps["val/loss"])
        values = " | ".join(interval(gaps[k]) for k in keys)
        lines.append(f"| {block} | {values} | {gain} of {args.seeds} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Train what is missing, write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path("runs/first_run"), help="run directories")
    parser.add_argument(
        "--output", type=Path, default=Path("reports/first_run.md"), help="the page"
    )
    parser.add_argument("--steps", type=int, default=250, help="optimizer steps per run")
    parser.add_argument("--batch-size", type=int, default=8, help="rows of 256 tokens per step")
    parser.add_argument("--validate-batches", type=int, default=16, help="per validation split")
    parser.add_argument("--seeds", type=int, default=3, help="2 to 5")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time, one core each")
    parser.add_argument("--override", nargs="*", default=[], help="more Hydra overrides")
    args = parser.parse_args()
    args.root.mkdir(parents=True, exist_ok=True)
    from nl.data.unigram import unigram_losses

    losses = unigram_losses("data/stdlib", "val", verify=False)
    # Validation takes equally many windows of each domain.
    mean = statistics.fmean(v.pooled for v in losses.values())
    levels = {"val": mean, **{f"val/{d}": v.pooled for d, v in losses.items()}}
    (args.root / "baselines.json").write_text(json.dumps({"unigram": levels}))
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda cell: train(cell, args), cells(args.seeds)))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(report(args))
    print(f"written: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
