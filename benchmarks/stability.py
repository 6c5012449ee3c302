"""Does training diverge at short chunks? Every memory block at chunk 8 to 128 on real text.

Trains each cell through train.py on the stdlib corpus (finished runs are kept), then writes
reports/stability.md from their metrics: every logged loss and gradient norm must be finite.

Example: python benchmarks/stability.py --root runs/stability --jobs 2
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BLOCKS = ("hope_attention", "hope_selfmod")
PERIODS = (8, 16, 32, 64, 128)


def command(block: str, period: int, args: argparse.Namespace) -> list[str]:
    """The command line of one run."""
    chain = ",".join(str(period * factor) for factor in (1, 2, 4, 8))
    return [
        sys.executable,
        "train.py",
        "--config-name",
        "pilot_smoke",
        f"model.block={block}",
        f"model.cms.periods=[{chain}]",
        "model.cms.allow_short_periods=true",
        f"model.selfmod.period={period}",
        f"train.steps={args.steps}",
        "stream.batch_size=4",
        "logging.every=1",
        "train.validate_every=0",
        "train.validate_batches=4",
        "checkpoint.every=0",
        "schedule.warmup=20",
        f"run.dir={args.root / f'{block}-{period}'}",
    ]


def train(cell: tuple[str, int], args: argparse.Namespace) -> None:
    """Run one cell unless it is finished; a run that diverges ends with a message of its own."""
    home = args.root / f"{cell[0]}-{cell[1]}"
    if (home / "summary.json").is_file():
        return
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (args.root / f"{home.name}.log").open("w") as log:
        code = subprocess.run(command(*cell, args), env=env, stdout=log, stderr=log).returncode
    print(f"{home.name}: exit code {code}", flush=True)


def rows(home: Path) -> list[dict[str, Any]]:
    """Training rows of one run."""
    lines = (home / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == "train"]


def line(block: str, period: int, root: Path) -> str:
    """One line of the table."""
    found = rows(root / f"{block}-{period}")
    numbers = [(row["loss"], row["grad_norm"]) for row in found]
    finite = all(loss is not None and norm is not None for loss, norm in numbers)
    losses = [loss for loss, _ in numbers if loss is not None]
    norms = [norm for _, norm in numbers if norm is not None]
    last = sum(losses[-20:]) / len(losses[-20:])
    return (
        f"| {block} | {period} | {len(found)} | {'yes' if finite else 'NO'} | {losses[0]:.3f} | "
        f"{last:.3f} | {max(losses[20:]):.3f} | {max(norms):.2f} |"
    )


def report(args: argparse.Namespace) -> str:
    """The page."""
    head = "| block | chunk | steps | all finite | first loss | mean of last 20 |"
    return "\n".join(
        [
            "# Stability: training at chunk 8 to 128",
            "",
            f"Made by `{' '.join(['python', 'benchmarks/stability.py', *sys.argv[1:]])}`: config "
            f"`pilot_smoke`, {args.steps} steps of 4 x 256 tokens, one seed; the chunk is the "
            "period of the self-modifying memory and of the fastest level (levels at 1, 2, 4 and "
            "8 times the chunk). Losses in nats per token.",
            "",
            head + " largest after step 20 | largest gradient norm |",
            "|---|---|---|---|---|---|---|---|",
            *(line(block, period, args.root) for block in BLOCKS for period in PERIODS),
            "",
        ]
    )


def main() -> int:
    """Train what is missing, write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path("runs/stability"), help="run directories")
    parser.add_argument("--output", type=Path, default=Path("reports/stability.md"), help="page")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps per run")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time, one core each")
    args = parser.parse_args()
    args.root.mkdir(parents=True, exist_ok=True)
    cells = [(block, period) for block in BLOCKS for period in PERIODS]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda cell: train(cell, args), cells))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(report(args))
    print(f"written: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
