"""Does a step need the memory that nl plan says? Planned and measured peaks of one process.

Every row is one train step in a process of its own on the CPU. Measured is the largest resident
size less that before the model was built, after a step of a tiny model of the same blocks has
loaded the code; large blocks go back to the system when they are freed (MALLOC_* in the
environment), so that the heap keeps none. Writes <output>.md and <output>.json.

Example: python benchmarks/plan_check.py --output reports/plan
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

CASES: tuple[tuple[str, ...], ...] = (
    ("model.block=transformer", "model.dim=256", "stream.seq_len=512"),
    ("model.block=hope_attention", "model.dim=384", "model.attention.heads=6"),
    ("model.block=hope_selfmod", "model.dim=256"),
    ("model.block=titan_lmm", "model.dim=256", "stream.seq_len=512"),
    ("model.block=hope_attention", "model.dim=384", "train.activation_checkpointing=true"),
    (
        "model.block=transformer",
        "model.dim=256",
        "stream.seq_len=512",
        "train.activation_checkpointing=true",
    ),
    ("model.block=transformer", "model.dim=256", "stream.seq_len=512", "optim=muon"),
)
CONFIG = "pilot_smoke"
RETURNED = {
    "MALLOC_MMAP_THRESHOLD_": "32768",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
}
MIB = 2**20


def run_of(overrides: Sequence[str]) -> Any:
    from nl.cli_plan import configured

    return configured(CONFIG, overrides)


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def step(run: Any) -> None:
    """One step as the plan takes it, on real tensors."""
    import torch

    from nl.bench.footprint import autocast
    from nl.cli_plan import build

    objective, optimizer = build(run)
    rows = run.stream.batch_size
    for parameter in objective.parameters():
        parameter.grad = torch.zeros_like(parameter)
    tokens = torch.randint(0, run.model.vocab_size, (rows, run.stream.seq_len + 1))
    with autocast(run):
        nll, _ = objective.model.nll(tokens[:, :-1], tokens[:, 1:], keep=False)
    nll.sum().backward()
    optimizer.step()


def measured(overrides: Sequence[str]) -> int:
    """Bytes at the peak of one step in this process."""
    import torch

    torch.set_num_threads(1)
    run = run_of(overrides)
    tiny = replace(run.model, dim=64, attention=replace(run.model.attention, heads=2))
    stream: Any = replace(run.stream, batch_size=1)
    step(replace(run, model=tiny, stream=stream))
    before = resident()
    step(run)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def planned(overrides: Sequence[str]) -> float:
    from nl.bench.footprint import footprint
    from nl.cli_plan import build

    run = run_of(overrides)
    return footprint(run, build).whole(run.stream.batch_size)


def in_child(overrides: Sequence[str]) -> int:
    command = [sys.executable, __file__, "--child", *overrides]
    done = subprocess.run(
        command, env={**os.environ, **RETURNED}, check=True, capture_output=True, text=True
    )
    return int(done.stdout.split()[-1])


def page(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# Planned and measured memory",
        "",
        f"Made by `python benchmarks/plan_check.py`: one step of `{CONFIG}` with the overrides of",
        "the row, everything in one process on the CPU, MiB.",
        "",
        "| overrides | planned | measured | planned / measured |",
        "|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| `{' '.join(row['overrides'])}` | {row['planned'] / MIB:.0f} | "
            f"{row['measured'] / MIB:.0f} | {row['planned'] / row['measured']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("reports/plan"))
    parser.add_argument("--child", nargs="+", metavar="KEY=VALUE", help="measure here and print")
    args = parser.parse_args()
    if args.child:
        print(measured(args.child))
        return 0
    rows = []
    for case in CASES:
        row: dict[str, Any] = {
            "overrides": case,
            "planned": planned(case),
            "measured": in_child(case),
        }
        rows.append(row)
        print(f"{' '.join(case)}: {row['planned'] / row['measured']:.3f}", flush=True)
    args.output.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    args.output.with_suffix(".md").write_text(page(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
