"""A stream of 1,000,000 tokens through one State: does a token cost the same at its end?

Trains a small model of every block through train.py (finished runs are kept; --steps 0: untrained),
then reads real text as one row, forward only, in calls of 512 tokens, and records per bin of tokens
the CPU time, the resident memory, the bytes of the State and the loss. Writes the page, figures and
CSV from those files. Blocks with attention over everything read are left out unless named: their
State grows with the stream by design.

Example: python benchmarks/streaming.py --root runs/streaming --tokens 1000000
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import study

from nl.report.figures import Figure, Line
from nl.run.student import t_95

SEGMENT = 512
"""Tokens per call."""
BINS = 100
"""Points of the curves."""
GROUPS = 10
"""Batch means that the intervals are taken from: neighbouring bins are not independent."""
BOUNDED = ("hope_selfmod", "titan_mag", "gated_delta")


def cell(block: str, args: argparse.Namespace) -> study.Cell:
    """The training run of one block."""
    return study.Cell(block, (*shape(block, args), *schedule(args)))


def shape(block: str, args: argparse.Namespace) -> tuple[str, ...]:
    """Overrides that decide the model."""
    return (
        f"model.block={block}",
        f"model.dim={args.dim}",
        f"model.layers={args.layers}",
        "model.selfmod.head_size=32",
        "model.selfmod.hidden=32",
        "model.titan.head_size=32",
    )


def schedule(args: argparse.Namespace) -> tuple[str, ...]:
    """Overrides that decide the training."""
    return (
        f"train.steps={args.steps}",
        "stream.batch_size=4",
        "schedule.warmup=20",
        "train.validate_every=0",
        "train.validate_batches=1",
        "checkpoint.every=0",
    )


# Reading


def resident_bytes() -> int:
    """Resident memory of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def corpus_tokens(data: str, count: int) -> Any:
    """The first ``count`` + 1 training tokens of the code domain, then of the others."""
    import numpy as np

    from nl.data.manifest import read_manifest
    from nl.data.shards import open_shard

    manifest, root = read_manifest(data), Path(data)
    shards = [
        open_shard(root, info, manifest.tokenizer, verify=False).tokens
        for name in sorted(manifest.splits["train"])
        for info in manifest.splits["train"][name].shards
    ]
    ids = np.concatenate(shards)[: count + 1].astype("int64")
    if len(ids) <= count:
        raise SystemExit(f"--tokens: {count}, but {data} has {len(ids) - 1}; ask for fewer")
    return ids


def load(block: str, args: argparse.Namespace) -> tuple[Any, str]:
    """The trained model, or a fresh one; and the data directory."""
    import nl.assembly
    from nl.config.hydra import compose, run_config

    overrides = [*shape(block, args), *study.fixed(args)]
    run: Any = run_config(compose(study.CONFIG, overrides))
    if args.steps:
        return nl.assembly.load_model(args.root / block), run.stream.path
    return nl.assembly.build_model(study.CONFIG, overrides).eval(), run.stream.path


def read_stream(block: str, args: argparse.Namespace) -> None:
    """Read the stream in this process; one row per bin goes into a file."""
    import torch

    from nl.core.state import num_bytes

    torch.set_num_threads(1)
    model, data = load(block, args)
    ids = torch.from_numpy(corpus_tokens(data, args.tokens))
    size = max(SEGMENT, args.tokens // BINS // SEGMENT * SEGMENT)
    state: Any = None
    rows: list[dict[str, float | None]] = []
    with torch.no_grad():
        for begin in range(0, args.tokens - size + 1, size):
            nats, cpu, wall = 0.0, time.process_time(), time.perf_counter()
            for at in range(begin, begin + size, SEGMENT):
                x, y = ids[None, at : at + SEGMENT], ids[None, at + 1 : at + SEGMENT + 1]
                nll, out = model.nll(x, y, state)
                state = out.state
                nats += float(nll.sum())
            row = {
                "position": float(begin + size),
                "cpu_us": (time.process_time() - cpu) / size * 1e6,
                "wall_us": (time.perf_counter() - wall) / size * 1e6,
                "rss": float(resident_bytes()),
                "state": float(num_bytes(state)),
                "loss": nats / size,
            }
            rows.append({key: v if math.isfinite(v) else None for key, v in row.items()})
            stream_file(args.root, block).write_text(json.dumps({"rows": rows}))
            print(f"{block}: {begin + size} tokens, {row['cpu_us']:.0f} us of CPU each", flush=True)
    parameters = sum(p.numel() for p in model.parameters())
    done = {"rows": rows, "parameters": parameters, "tokens": args.tokens, "steps": args.steps}
    stream_file(args.root, block).write_text(json.dumps(done))


def stream_file(root: Path, block: str) -> Path:
    """Where the numbers of one stream lie."""
    return root / f"stream-{block}.json"


def run_streams(args: argparse.Namespace) -> None:
    """One process per block, one after another; a finished stream of this length is kept."""
    args.root.mkdir(parents=True, exist_ok=True)
    for block in args.only:
        file = stream_file(args.root, block)
        found = json.loads(file.read_text()) if file.is_file() else {}
        if (found.get("tokens"), found.get("steps")) == (args.tokens, args.steps):
            continue
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(study.REPOSITORY / "src")}
        command = [sys.executable, __file__, *sys.argv[1:], "--read", block]
        with file.with_suffix(".log").open("w") as log:
            code = subprocess.run(command, env=env, stdout=log, stderr=log).returncode
        print(f"stream {block}: exit code {code}", flush=True)


# Numbers


def groups(values: list[float]) -> list[float]:
    """Means of ``GROUPS`` stretches of equal length."""
    size = max(1, len(values) // GROUPS)
    return [statistics.fmean(values[i : i + size]) for i in range(0, size * GROUPS, size)]


def slope(x: list[float], y: list[float]) -> tuple[float, float]:
    """Least-squares slope and the half width of its 95 % interval (Student)."""
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    found = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    free = len(x) - 2
    left = sum((b - mean_y - found * (a - mean_x)) ** 2 for a, b in zip(x, y, strict=True))
    return found, t_95(free) * math.sqrt(left / free / spread)


def trend(rows: list[dict[str, float]], key: str) -> str:
    """Change over 1,000,000 tokens relative to the mean, in percent; the first bin warms up."""
    used = rows[1:]
    x, y = (groups([row[name] for row in used]) for name in ("position", key))
    found, half = slope(x, y)
    scale = 1e8 / statistics.fmean(y)
    return f"{found * scale:+.2f} +- {half * scale:.2f}"


def line(block: str, found: dict[str, Any]) -> list[str]:
    """One line of the table."""
    rows = found["rows"]
    tenth = max(1, len(rows) // 10)
    first, last = rows[1 : 1 + tenth], rows[-tenth:]

    def mean(part: list[dict[str, float]], key: str) -> float:
        return statistics.fmean(row[key] for row in part)

    mib = 2.0**20
    return [
        block,
        f"{found['parameters']:,}",
        f"{rows[-1]['position']:,.0f}",
        f"{statistics.median(row['cpu_us'] for row in rows):.0f}",
        trend(rows, "cpu_us"),
        f"{rows[0]['state'] / mib:.3f}",
        f"{rows[-1]['state'] / mib:.3f}",
        f"{mean(first, 'rss') / mib:.0f}",
        f"{mean(last, 'rss') / mib:.0f}",
        f"{mean(first, 'loss'):.3f}",
        f"{mean(last, 'loss'):.3f}",
    ]


# The page

CURVES = (
    ("cpu_us", "us of CPU per token"),
    ("rss", "resident bytes"),
    ("state", "bytes of the State"),
    ("loss", "nats per token"),
)


def page(args: argparse.Namespace) -> list[str]:
    """The lines of the page; figures are written next to it."""
    known = {
        b: json.loads(stream_file(args.root, b).read_text())
        for b in args.only
        if stream_file(args.root, b).is_file()
    }
    known = {block: found for block, found in known.items() if "parameters" in found}
    trained = f"trained for {args.steps} steps of 4 x 256 tokens" if args.steps else "untrained"
    lines = [
        f"# One stream of {args.tokens:,} tokens",
        "",
        f"Made by `{study.call('streaming')}`: config `pilot_smoke` at width {args.dim}, "
        f"{args.layers} layers, {trained}; the training tokens of the stdlib corpus as one row, "
        f"forward only, fp32, calls of {SEGMENT} tokens, State carried, documents ignored. CPU "
        "time of the process on one thread. The slope is that of least squares over "
        f"{GROUPS} batch means, without the first bin, in percent of the mean per 1,000,000 "
        "tokens, with its 95 % interval. First and last: means over a tenth of the stream, the "
        "first bin left out.",
    ]
    head = ["block", "parameters", "tokens", "us per token (median)", "slope of it, % per 1M"]
    head += ["State at first, MiB", "at last", "resident at first, MiB", "at last"]
    head += ["loss at first", "at last"]
    lines += study.table(head, [line(block, found) for block, found in known.items()])
    for key, label in CURVES:
        drawn = [
            Line(
                block,
                [row["position"] for row in found["rows"]],
                [math.nan if row[key] is None else row[key] for row in found["rows"]],
                colour=number,
            )
            for number, (block, found) in enumerate(known.items())
        ]
        if drawn:
            title = f"{label[0].upper()}{label[1:]} over the stream"
            name = f"streaming_{key.removesuffix('_us')}"
            whole = key != "loss"
            figure = Figure(name, title, drawn, {}, "tokens read", wide=True, from_zero=whole)
            lines += [study.save_figure(args.output, figure)]
    return lines


def main() -> int:
    """Train what is missing, read the streams, write the page."""
    import nl.assembly  # noqa: F401 - registers the parts
    from nl.config import table

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = study.flags(parser, "runs/streaming", "reports/streaming.md")
    add("--tokens", type=int, default=1_000_000, help="length of the stream")
    add("--steps", type=int, default=200, help="training steps before it; 0: untrained")
    add("--dim", type=int, default=64, help="width of the models")
    add("--layers", type=int, default=2, help="blocks of the models")
    add("--only", nargs="*", default=list(BOUNDED), choices=sorted(table("block")), help="blocks")
    add("--read", help="one stream in this process")
    args = parser.parse_args()
    if args.tokens < 2 * GROUPS * SEGMENT:
        parser.error(f"--tokens: {args.tokens}; at least {2 * GROUPS * SEGMENT}")
    if args.read:
        read_stream(args.read, args)
        return 0
    if not args.report_only:
        if args.steps:
            cells = [cell(block, args) for block in args.only]
            study.run_cells(cells, args.root, jobs=args.jobs, extra=study.fixed(args))
        run_streams(args)
    study.save_page(args.output, page(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
