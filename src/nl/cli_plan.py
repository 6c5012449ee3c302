"""``nl plan``: what a run needs on many devices, before it is started there. Floor 8."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

from nl.bench.footprint import Footprint, footprint
from nl.bench.plan import GIB, Devices, check_devices, plan
from nl.bench.show import aligned
from nl.cli_page import docs_folder, write_page
from nl.config import ConfigError
from nl.config.hydra import compose, run_config
from nl.config.run import RunConfig

PAGE = "scaling.md"
CONFIGS = ("pilot", "mid", "target")
GPUS = (1, 8, 64, 256, 512)
COLUMNS = (
    ("strategy", "strategy", "{}"),
    ("gpus", "GPUs", "{}"),
    ("rows", "rows per GPU", "{}"),
    ("grad_accum", "micro-batches", "{}"),
    ("fixed", "GiB beside activations", "{:.1f}"),
    ("memory", "GiB in all", "{:.1f}"),
    ("sent", "GB sent per step", "{:.2f}"),
    ("compute_seconds", "s computing", "{:.2f}"),
    ("communication_seconds", "s sending", "{:.2f}"),
    ("tokens_per_s", "tokens/s", "{:,.0f}"),
)
HEAD = """# Scaling

Written by `nl plan --write-docs`; do not edit. Memory is counted on a step with fake tensors
(`nl.bench.footprint`; compared with measured memory in `reports/plan.md`), communication and speed
are the formulas of `nl.bench.plan`. They are plans, not measurements: a share of {share:.0%} of a
peak of {tflops:.0f} TFLOP/s (training FLOPs with writes), {bandwidth:.0f} GB/s per device, and
{usable:.0%} of {memory:.0f} GiB are assumed; `nl plan --help` names the flags that say otherwise.
Tokens per second are those of the slower of arithmetic and sending. "rows per GPU" 0: one row does
not fit. The rows of a step stay those of the configuration, so that every line is the same run.

What to read from it: sharding parameters pays where they, not activations, fill the device; with
many micro-batches per step it sends everything again and again, and with levels once more for every
tile of a row (`fsdp.reshard_after_forward=false` gathers units once). Strategies that refuse a run
are left out. Activations dominate: rows that
write their levels have weights of their own after every write, kept for the backward pass (about
2 d_h d numbers per row and write of a level of width d_h), which is why they grow faster than the
width.
"""


def show_plan(options: argparse.Namespace) -> int:
    """Print the plan of a run, or write the page of the configurations at size."""
    logging.getLogger("nl").setLevel(logging.WARNING)
    if options.write_docs:
        docs_folder()  # refused before the minutes that the page takes
        print(write_page(PAGE, page()))
        return 0
    counts = numbers(options.gpus)
    run = configured(options.config_name, options.overrides)
    names = ("memory", "tflops", "share", "bandwidth")
    chosen: dict[str, Any] = {name: getattr(options, name) for name in names}
    planned = [Devices(gpus=n, **chosen) for n in counts]
    for devices in planned:
        check_devices(run, devices)  # before the minute that counting takes
    found = footprint(run, build, lambda text: print(text, file=sys.stderr))
    rows = [row for devices in planned for row in plan(run, found, devices)]
    if options.json:
        print(json.dumps({"footprint": vars(found), "rows": rows}, indent=1))
    else:
        print(about(found))
        print(aligned(cells(rows)))
    return 0


def numbers(text: str) -> list[int]:
    """``8,64`` as numbers."""
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) for part in parts):
        raise ConfigError(f"--gpus: {text!r}; give whole numbers >= 1, separated by commas: 8,64.")
    return [int(part) for part in parts]


def configured(name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """A run as a launcher composes it."""
    import nl.assembly  # noqa: F401 - registers every part

    return run_config(compose(name, overrides))


def build(run: RunConfig) -> tuple[Any, Any]:
    """Objective and optimizer, as a launcher builds them."""
    from nl.assembly import build_objective
    from nl.dist.recompute import recompute_segments, recompute_units
    from nl.dist.serial import plain_name
    from nl.optim.policy import apply_policy
    from nl.optim.roles import parameter_roles

    config: Any = run
    objective: Any = build_objective(run)
    roles = parameter_roles(objective)
    apply_policy(objective, config.optim.policy, roles)
    if run.train.activation_checkpointing:
        recompute_units(objective.model)
    if run.train.recompute_every:
        recompute_segments(objective.model, run.train.recompute_every)
    named = [(plain_name(n), p) for n, p in objective.named_parameters() if p.requires_grad]
    return objective, config.optim.build(named, roles=roles)


def about(found: Footprint) -> str:
    """One line on the model."""
    rows = ", ".join(str(rows) for rows, _ in found.samples)
    sizes = ", ".join(f"{size / GIB:.2f}" for _, size in found.samples)
    return (
        f"{found.parameters:,} parameters, optimizer state {found.optimizer / GIB:.2f} GiB, "
        f"activations {sizes} GiB of {rows} rows, "
        f"{found.flops / 1e9:.2f} GFLOP per token"
    )


def cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The table as words, its head first."""
    return [
        [head for _, head, _ in COLUMNS],
        *([form.format(row[key]) for key, _, form in COLUMNS] for row in rows),
    ]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table for a page."""
    head, *body = cells(rows)
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page() -> str:
    """The text of ``docs/scaling.md``; takes minutes."""
    devices = Devices(gpus=1)
    text = HEAD.format(**vars(devices))
    for name in CONFIGS:
        run = configured(name)
        found = footprint(run, build)
        stream: Any = run.stream
        total = stream.batch_size * run.train.grad_accum
        fitting = [n for n in GPUS if total % n == 0]
        rows = [row for n in fitting for row in plan(run, found, Devices(gpus=n))]
        text += (
            f"\n## {name}\n\n`nl plan --config-name {name} --gpus {','.join(map(str, fitting))}`: "
        )
        text += f"{about(found)}; {total} rows of {stream.seq_len} tokens per step.\n\n"
        text += markdown(rows) + "\n"
    return text
