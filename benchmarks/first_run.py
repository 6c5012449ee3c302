"""What the writes are worth: every block with its memories written and frozen, several seeds.

Trains each cell through train.py on the stdlib corpus (finished runs are kept), then writes
reports/first_run.md from the summaries of those runs.

Example: python benchmarks/first_run.py --root runs/first_run --jobs 2
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import study

KEYS = ("val/loss", "val/prose/loss", "val/code/loss")
ROWS = {
    "transformer, written": ("transformer", True),
    "hope_attention, written": ("hope_attention", True),
    "hope_attention, frozen": ("hope_attention", False),
    "hope_selfmod, written": ("hope_selfmod", True),
    "hope_selfmod, frozen": ("hope_selfmod", False),
}
"""The baseline has no memories: it runs once per seed."""


def name(block: str, write: bool, seed: int) -> str:
    """The directory of one run."""
    return f"{block}-{'written' if write else 'frozen'}-s{seed}"


def cell(block: str, write: bool, seed: int, args: argparse.Namespace) -> study.Cell:
    """One run."""
    overrides = (
        f"model.block={block}",
        f"objective.write={str(write).lower()}",
        f"seed={seed}",
        f"train.steps={args.steps}",
        f"stream.batch_size={args.batch_size}",
        "train.validate_every=0",
        f"train.validate_batches={args.validate_batches}",
        "checkpoint.every=0",
        f"schedule.warmup={args.steps // 10}",
    )
    return study.Cell(name(block, write, seed), overrides)


def finals(args: argparse.Namespace, block: str, write: bool) -> dict[int, study.Result]:
    """Finished runs by seed."""
    found = {s: study.result(args.root, name(block, write, s)) for s in range(args.seeds)}
    return {seed: one for seed, one in found.items() if one is not None}


def unigram(args: argparse.Namespace) -> dict[str, float]:
    """Validation losses of the unigram model, written beside the runs; empty without data."""
    file = args.root / "baselines.json"
    data = args.data or Path("data/stdlib")
    if not args.report_only and data.is_dir():
        from nl.data.unigram import unigram_losses

        losses = unigram_losses(str(data), "val", verify=False)
        # Validation takes equally many windows of each domain.
        mean = statistics.fmean(v.pooled for v in losses.values())
        levels = {"val": mean, **{f"val/{d}": v.pooled for d, v in losses.items()}}
        args.root.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"unigram": levels}))
    return json.loads(file.read_text())["unigram"] if file.is_file() else {}


def levels_table(args: argparse.Namespace, baseline: dict[str, float]) -> list[str]:
    """Losses of every row."""
    lines = []
    if baseline:
        values = [f"{baseline[key.removesuffix('/loss')]:.4f}" for key in KEYS]
        lines.append(["unigram", "", "", *values])
    for label, (block, write) in ROWS.items():
        found = list(finals(args, block, write).values())
        if found:
            values = [study.interval([one.final[key] for one in found]) for key in KEYS]
            shown = block if block == "transformer" else label
            lines.append([shown, f"{found[0].parameters:,}", f"{len(found)}", *values])
    return study.table(["model", "parameters", "seeds", *KEYS], lines)


def gains_table(args: argparse.Namespace) -> list[str]:
    """Written minus frozen per seed: below zero, the writes help."""
    lines = []
    for block in ("hope_attention", "hope_selfmod"):
        written, frozen = finals(args, block, True), finals(args, block, False)
        seeds = sorted(written.keys() & frozen.keys())
        gaps = {k: [written[s].final[k] - frozen[s].final[k] for s in seeds] for k in KEYS}
        gain = f"{sum(gap < 0 for gap in gaps['val/loss'])} of {len(seeds)}"
        lines.append([block, *(study.interval(gaps[key]) for key in KEYS), gain])
    return study.table(["model", *KEYS, "seeds that gain (val)"], lines)


def page(args: argparse.Namespace) -> list[str]:
    """The lines of the page."""
    tokens = args.steps * args.batch_size * 256
    return [
        "# First run: what the writes are worth",
        "",
        f"Made by `{study.call('first_run')}`: config `pilot_smoke`, {args.steps} steps of "
        f"{args.batch_size} x 256 tokens ({tokens:,} in all), {args.seeds} seeds, validation loss "
        "in nats per token, mean and 95 % interval over seeds. `frozen` trains and validates the "
        "same model with every memory frozen (`objective.write=false`).",
        *levels_table(args, unigram(args)),
        "Written minus frozen, paired by seed (below zero: the writes help):",
        *gains_table(args),
    ]


def main() -> int:
    """Train what is missing, write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = study.flags(parser, "runs/first_run", "reports/first_run.md")
    add("--steps", type=int, default=250, help="optimizer steps per run")
    add("--batch-size", type=int, default=8, help="rows of 256 tokens per step")
    add("--validate-batches", type=int, default=16, help="per validation split")
    add("--seeds", type=int, default=3, choices=range(1, 10), help="runs per row")
    args = parser.parse_args()
    if not args.report_only:
        cells = [cell(*row, seed, args) for seed in range(args.seeds) for row in ROWS.values()]
        study.run_cells(cells, args.root, jobs=args.jobs, extra=study.fixed(args))
    study.save_page(args.output, page(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
