"""Does anything diverge? Training of every block at chunk 8 to 128, and streams of 65,536 tokens.

Trains each cell through train.py on the stdlib corpus (finished runs are kept): the chunk is the
period of every memory a block has and of the fastest continuum level (levels at 1, 2, 4 and 8
times the chunk); every logged loss and gradient norm must be finite. Then the trained models of
chunk 64 read random and constant tokens, with bf16 compute and fp32 state, while the norm of what
their memories hold is taken. Writes the page, figures and CSV from those files.

Example: python benchmarks/stability.py --root runs/stability --jobs 2
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
from pathlib import Path
from typing import Any

import study

from nl.report.figures import Figure, Line, smooth

PERIODS = (8, 16, 32, 64, 128)
STREAM_PERIOD = 64
SEGMENT = 512
"""Tokens per call while streaming: a multiple of every period but the slow levels'."""
INPUTS = ("random", "constant")


def blocks() -> list[str]:
    """Every registered block."""
    import nl.assembly  # noqa: F401 - registers the parts
    from nl.config import table

    return sorted(table("block"))


def periods(block: str) -> tuple[int, ...]:
    """Chunks that a block is trained at; attention and recurrent layers have none: one run."""
    import nl.assembly  # noqa: F401 - registers the parts
    from nl.config import lookup
    from nl.models import blocks

    whole = {blocks.attention, blocks.sliding_window, blocks.lstm, blocks.gru, blocks.quadratic_rnn}
    kind: Any = lookup("block", block, "block")
    chunked = kind.levels or not whole.issuperset(kind.mixers)
    return PERIODS if chunked else (STREAM_PERIOD,)


def name(block: str, period: int) -> str:
    """The directory of one run."""
    return f"{block}-c{period}"


def cell(block: str, period: int, args: argparse.Namespace) -> study.Cell:
    """One training run."""
    chain = ",".join(str(period * factor) for factor in (1, 2, 4, 8))
    overrides = (
        f"model.block={block}",
        f"model.dim={args.dim}",
        "model.selfmod.hidden=32",
        "model.titan.head_size=32",
        f"model.cms.periods=[{chain}]",
        "model.cms.allow_short_periods=true",
        f"model.selfmod.period={period}",
        f"model.titan.period={period}",
        f"model.gated_delta.chunk={period}",
        f"train.steps={args.steps}",
        f"stream.batch_size={args.batch_size}",
        "logging.every=1",
        "train.validate_every=0",
        "train.validate_batches=1",
        "checkpoint.every=0",
        "checkpoint.export=false",
        "schedule.warmup=20",
    )
    return study.Cell(name(block, period), overrides)


# Streams


def held(state: Any) -> list[Any]:
    """The tensors of a State without attention's keys and values, which only grow."""
    from torch import Tensor

    from nl.nn.attention import AttentionState

    if isinstance(state, AttentionState) or state is None or isinstance(state, int):
        return []
    if isinstance(state, Tensor):
        return [state]
    return [tensor for part in state for tensor in held(part)]


def read_stream(block: str, kind: str, args: argparse.Namespace) -> None:
    """Let a trained model read ``args.tokens`` tokens; norms and losses go into a file."""
    import torch

    from nl.assembly import load_model, register

    torch.set_num_threads(1)
    register()
    model: Any = load_model(args.root / name(block, STREAM_PERIOD))
    draw = torch.Generator().manual_seed(0)
    state = None
    rows: list[dict[str, float | None]] = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for end in range(SEGMENT, args.tokens + 1, SEGMENT):
            ids = torch.full((1, SEGMENT + 1), 17)
            if kind == "random":
                ids = torch.randint(model.config.vocab_size, ids.shape, generator=draw)
            nll, out = model.nll(ids[:, :-1], ids[:, 1:], state)
            state = out.state
            tensors = [t.double() for t in held(state.blocks)]
            norm = math.sqrt(sum(float(t.square().sum()) for t in tensors))
            largest = max((float(t.abs().max()) for t in tensors if t.numel()), default=0.0)
            row = {"position": end, "norm": norm, "largest": largest, "loss": float(nll.mean())}
            rows.append({key: v if math.isfinite(v) else None for key, v in row.items()})
    wrong = sorted({str(t.dtype) for t in held(state) if t.is_floating_point()} - {"torch.float32"})
    found = {"rows": rows, "not_fp32": wrong}
    stream_file(args.root, block, kind).write_text(json.dumps(found))


def stream_file(root: Path, block: str, kind: str) -> Path:
    """Where the numbers of one stream lie."""
    return root / f"stream-{block}-{kind}.json"


def run_streams(args: argparse.Namespace) -> None:
    """One process per block and input, finished ones are kept."""

    def one(job: tuple[str, str]) -> None:
        block, kind = job
        file = stream_file(args.root, block, kind)
        trained = study.result(args.root, name(block, STREAM_PERIOD)) is not None
        if file.is_file() or not trained:
            return
        flags = ["--root", str(args.root), "--tokens", str(args.tokens), "--read", block, kind]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(study.REPOSITORY / "src")}
        with file.with_suffix(".log").open("w") as log:
            command = [sys.executable, str(Path(__file__)), *flags]
            code = subprocess.run(command, env=env, stdout=log, stderr=log).returncode
        print(f"stream {block} {kind}: exit code {code}", flush=True)

    with ThreadPoolExecutor(max(1, args.jobs)) as pool:
        list(pool.map(one, [(block, kind) for block in args.only for kind in INPUTS]))


# The page


def finite(values: list[float]) -> bool:
    """Whether every value is a number."""
    return not any(math.isnan(value) for value in values)


def training_line(root: Path, block: str, period: int) -> list[str] | None:
    """One line of the table of runs; a run that failed says so."""
    run = name(block, period)
    if not (root / run / "metrics.jsonl").is_file():
        return None
    steps, losses = study.curve(root, run, "loss")
    norms = study.curve(root, run, "grad_norm")[1]
    fine = finite(losses) and finite(norms) and study.result(root, run) is not None
    last = losses[-20:]
    shown = [losses[0], sum(last) / len(last), max(losses[20:], default=math.nan)]
    shown += [statistics.median(norms), max(norms)]
    chunk = str(period) if len(periods(block)) > 1 else "-"
    digits = (3, 3, 3, 2, 2)
    numbers = [f"{value:.{n}f}" for value, n in zip(shown, digits, strict=True)]
    return [block, chunk, str(len(steps)), "yes" if fine else "NO", *numbers]


def training_figure(root: Path, block: str) -> Figure | None:
    """Loss over steps, a curve per chunk."""
    lines = []
    for number, period in enumerate(periods(block)):
        if (root / name(block, period) / "metrics.jsonl").is_file():
            x, y = study.curve(root, name(block, period), "loss")
            lines.append(Line(f"chunk {period}", x, smooth(y), colour=number))
    return Figure(f"stability_{block}", f"{block}: training loss", lines) if lines else None


def streams(root: Path, names: list[str], kind: str) -> tuple[list[list[str]], Figure | None]:
    """The table and the plot of norms of one kind of input."""
    body, lines = [], []
    for number, block in enumerate(names):
        file = stream_file(root, block, kind)
        if not file.is_file():
            continue
        found = json.loads(file.read_text())
        rows = found["rows"]
        fine = not any(value is None for row in rows for value in row.values())
        norms = [math.nan if row["norm"] is None else row["norm"] for row in rows]
        x = [float(row["position"]) for row in rows]
        half = len(norms) // 2
        early, late = max(norms[:half]), max(norms[half:])
        ratio = f"{late / early:.3f}" if early else "-"
        state = "fp32" if not found["not_fp32"] else ", ".join(found["not_fp32"])
        largest = max(row["largest"] or math.nan for row in rows) if early else 0.0
        parts = [f"{norms[0]:.3g}", f"{early:.3g}", f"{late:.3g}", ratio, f"{largest:.3g}", state]
        body.append([block, f"{x[-1]:,.0f}", "yes" if fine else "NO", *parts])
        if early:
            lines.append(Line(block, x, norms, colour=number))
    title = f"Norm of the memories' state, {kind} input"
    figure = Figure(f"stability_{kind}", title, lines, {}, "tokens read", "", True, "xy")
    return body, figure if lines else None


def page(args: argparse.Namespace) -> list[str]:
    """The lines of the page; figures are written next to it."""
    lines = [
        "# Stability: chunks of 8 to 128, streams of 65,536 tokens",
        "",
        "## Training",
        "",
        f"Made by `{study.call('stability')}`: config `pilot_smoke` at width {args.dim}, "
        f"{args.steps} steps of {args.batch_size} x 256 tokens, one seed; the chunk is the period "
        "of every memory of the block and of the fastest level (levels at 1, 2, 4 and 8 times the "
        "chunk; - where nothing has one). Losses in nats per token; gradients before clipping.",
    ]
    trained = [training_line(args.root, block, p) for block in args.only for p in periods(block)]
    names = [name(block, period) for block in args.only for period in periods(block)]
    lines[-1] += f" Commits: {', '.join(study.commits(args.root, names)) or 'none yet'}."
    head = ["block", "chunk", "steps", "all finite", "first loss", "mean of last 20"]
    head += ["largest after step 20", "median gradient norm", "largest"]
    lines += study.table(head, [line for line in trained if line])
    for block in args.only:
        drawn = training_figure(args.root, block)
        lines += [study.save_figure(args.output, drawn)] if drawn else []
    head = ["block", "tokens", "all finite", "norm at first", "largest, first half"]
    head += ["largest, second half", "ratio", "largest number", "state"]
    for kind in INPUTS:
        body, figure = streams(args.root, args.only, kind)
        if not body:
            continue
        lines += ["", f"## Streams, {kind} tokens", ""]
        lines += [
            f"The models trained at chunk {STREAM_PERIOD} read one row in calls of {SEGMENT} "
            "tokens, bf16 compute; the norm is that of all numbers in the state but the keys and "
            f"values of attention, taken every {SEGMENT} tokens."
        ]
        lines += study.table(head, body)
        lines += [study.save_figure(args.output, figure)] if figure else []
    return lines


def main() -> int:
    """Train what is missing, read the streams, write the page."""
    known = blocks()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = study.flags(parser, "runs/stability", "reports/stability.md")
    add("--steps", type=int, default=200, help="optimizer steps per run")
    add("--dim", type=int, default=64, help="width of the models")
    add("--batch-size", type=int, default=2, help="rows of 256 tokens per step")
    add("--tokens", type=int, default=65_536, help="length of the streams")
    add("--only", nargs="*", default=known, choices=known, help="blocks; default: all")
    add("--read", nargs=2, metavar=("BLOCK", "INPUT"), help="one stream in this process")
    args = parser.parse_args()
    if args.read:
        block, inputs = args.read
        read_stream(block, inputs, args)
        return 0
    if not args.report_only:
        cells = [cell(block, period, args) for block in args.only for period in periods(block)]
        study.run_cells(cells, args.root, jobs=args.jobs, extra=study.fixed(args))
        run_streams(args)
    study.save_page(args.output, page(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
