"""How fast is nl beside nested-learning 0.2.0, titans-pytorch 0.5.5 and a Transformer? One run.

Run it through benchmarks/peers.sh, which builds the environment with the peers. Every row's cells
take turns in one process per group, on one thread; times are CPU time, a row's number is the median
over rounds of the ratio within a round. Writes <output>.md, <output>.json and <output>.svg.

Example: bash benchmarks/peers.sh --quick --noisy --output artifacts/peers/speed
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import peer_cells as cells
import torch
from speed_page import page, picture

from nl.bench import BenchConfig, bench
from nl.bench.clock import PEAK_DRIFT, gemm_gflops, load_average, ratio, take_turns
from nl.bench.flops import selfmod_flops
from nl.bench.layers import randomize_zeros
from nl.bench.machine import machine
from nl.core.cpu import use_cpu
from nl.core.native import torch_only
from nl.nn.selfmod import SelfMod, SelfModConfig
from nl.report.dots import draw_dots
from nl.report.figures import standalone

Row = dict[str, Any]
PEERS = ("nested-learning", "titans-pytorch")
WIDTHS = (256, 512)
KEPT = ("hope_selfmod", "hope_attention", "titan_lmm")
"""Blocks whose memory kept for the backward pass has a gate; hope_hybrid has two mixers."""


def compared(
    name: str, steps: Mapping[str, cells.Step], tokens: int, gates: Mapping[str, float], rounds: int
) -> list[Row]:
    """One row per other cell: how many times faster ``ours`` is; ``gates`` by the cell's name."""
    seconds = take_turns(steps, rounds)
    rows = []
    for other, spent in seconds.items():
        if other.startswith("ours"):
            continue
        for own in (k for k in seconds if k.startswith("ours")):
            middle, least, largest = ratio(spent, seconds[own])
            rows.append(
                {
                    "row": name,
                    "ours": own,
                    "other": other,
                    "measured": middle,
                    "min": least,
                    "max": largest,
                    "gate": gates.get(other) if own in ("ours", "ours, compiled") else None,
                    "tokens_per_s": tokens / statistics.median(seconds[own]),
                    "other_tokens_per_s": tokens / statistics.median(spent),
                }
            )
    return rows


def hope_rows(
    block: str, gates: Mapping[str, float], args: argparse.Namespace, how: str = ""
) -> list[Row]:
    """Whole train steps against nested-learning, its own periods and ours."""
    shape = cells.Shape(seq_len=64 if args.quick else 256)
    same = tuple(shape.chunk * factor for factor in (1, 4, 16, 64))
    steps = {
        "nested-learning, periods 1/4/32/128": cells.nested_learning(
            block, shape, cells.PEER_PERIODS
        ),
        "nested-learning, periods of ours": cells.nested_learning(block, shape, same),
        "ours": (step := cells.ours(block, shape)),
        "ours, torch alone": torch_only()(step),
    }
    tokens = shape.batch * shape.seq_len
    return compared(f"{block}, train step{how}", steps, tokens, gates, args.rounds)


def selfmod_step(args: argparse.Namespace) -> list[Row]:
    return hope_rows("hope_selfmod", {"nested-learning, periods 1/4/32/128": 20.0}, args)


def attention_step(args: argparse.Namespace) -> list[Row]:
    return hope_rows("hope_attention", {"nested-learning, periods 1/4/32/128": 3.0}, args)


def kept_steps(args: argparse.Namespace) -> list[Row]:
    """The steps again with freed memory kept, for nested-learning, too."""
    use_cpu(1)
    rows = []
    for block in ("hope_attention", "hope_selfmod"):
        rows += hope_rows(block, {}, args, ", freed memory kept")
    return rows


def write_path(args: argparse.Namespace) -> list[Row]:
    batch, seq_len = 2, 256
    steps = cells.written_layers(128, batch, seq_len, 64)
    name = "self-modifying layer, forward with writes, C 64, d 128"
    return compared(name, steps, batch * seq_len, {"nested-learning": 24.0}, args.rounds)


def titans(args: argparse.Namespace) -> list[Row]:
    rows = []
    for chunk, gate in ((64, 1.5), (16, 2.0), (4, 4.0)):
        steps = cells.titan_layers(chunk, 1, 512, 4, 64)
        gates = {"titans-pytorch, boundary 128": gate}
        name = f"Titans memory 4 x 64, depth 2, forward and backward, chunk {chunk}"
        rows += compared(name, steps, 512, gates, args.rounds)
    return rows


def transformer(args: argparse.Namespace) -> list[Row]:
    """Train steps of models with equal parameters: speed, and memory kept per layer."""
    gates = {("hope_selfmod", 512): 0.5, ("hope_selfmod", 2048): 0.8, ("hope_attention", 512): 0.7}
    rows = []
    for dim in WIDTHS:
        for seq_len, batch in ((512, 4), (2048, 1)):
            rows += step_rows(("hope_hybrid", *KEPT), dim, seq_len, batch, args, gates)
            gated = [block for block, length in gates if length == seq_len]
            rows += step_rows(tuple(gated), dim, seq_len, batch, args, gates, ", both compiled")
    rows += step_rows(("hope_selfmod",), WIDTHS[0], 2048, 4, args, gates)
    rows += step_rows(("hope_selfmod",), WIDTHS[0], 2048, 4, args, gates, ", both compiled")
    with torch_only():
        rows += step_rows(KEPT, WIDTHS[0], 512, 4, args, {}, ", torch alone")
    return rows


def step_rows(
    blocks: tuple[str, ...],
    dim: int,
    seq_len: int,
    batch: int,
    args: argparse.Namespace,
    gates: Mapping[tuple[str, int], float],
    how: str = "",
) -> list[Row]:
    """The speed of every block, and as it is by default (no ``how``) the memory that it keeps."""
    config = BenchConfig(
        blocks=blocks,
        dim=dim,
        heads=dim // 64,
        seq_len=(seq_len,),
        batch_size=batch,
        rounds=args.rounds,
        compile="compiled" in how,
        noisy=True,
    )
    found = bench(config)["rows"]
    base = found[0]
    rows: list[Row] = []
    for row in found[1:]:
        place = f"{row['name']}, d {dim}, T {seq_len}, B {batch}"
        own = {"ours": row["name"], "other": "transformer"}
        rows.append(
            {
                "row": f"{place}{how}: tokens/s, Transformer = 1",
                "measured": row["ratio_to_transformer"],
                "min": row["ratio_min"],
                "max": row["ratio_max"],
                "gate": gates.get((row["name"], seq_len)),
                "tokens_per_s": row["tokens_per_s"],
                "other_tokens_per_s": base["tokens_per_s"],
                "share_model": row["share_model"],
                "share_algorithmic": row["share_algorithmic"],
                **own,
            }
        )
        if not how:
            rows.append(
                {
                    "row": f"{place}: memory kept per layer, Transformer = 1",
                    "measured": row["kept_ratio"],
                    "gate": 1.5 if row["name"] in KEPT else None,
                    "below": True,
                    **own,
                }
            )
    return rows


def gemm_share(args: argparse.Namespace) -> list[Row]:
    """The self-modifying layer's forward pass as a share of the GEMM peak measured beside it."""
    use_cpu(1)
    rows = []
    for dim in WIDTHS:
        torch.manual_seed(0)
        layer = SelfMod(SelfModConfig(), dim)
        randomize_zeros(layer)
        x = torch.randn(4, 512, dim)
        steps = {
            "ours": cells.forward_only(layer, x),
            "ours, compiled": cells.forward_only(layer, x, "inductor"),
            "ours, torch alone": torch_only()(cells.forward_only(layer, x)),
        }
        flops, peak = selfmod_flops(layer) * 4 * 512, gemm_gflops() * 1e9
        for name, seconds in take_turns(steps, args.rounds).items():
            rows.append(
                {
                    "row": f"self-modifying layer, forward, d {dim}, 4 x 512 tokens: share of GEMM",
                    "measured": flops / statistics.median(seconds) / peak,
                    "min": flops / max(seconds) / peak,
                    "max": flops / min(seconds) / peak,
                    "gate": None if "alone" in name else 0.4,
                    "ours": name,
                    "other": "GEMM peak",
                    "tokens_per_s": 4 * 512 / statistics.median(seconds),
                }
            )
    return rows


GROUPS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "titans": titans,
    "write": write_path,
    "attention": attention_step,
    "selfmod": selfmod_step,
    "kept": kept_steps,
    "transformer": transformer,
    "gemm": gemm_share,
}


def alone(name: str, args: argparse.Namespace) -> list[Row]:
    """The rows of a group, measured in a process of its own: what malloc was told ends with it."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(group_rows, name, args).result()


def group_rows(name: str, args: argparse.Namespace) -> list[Row]:
    torch.set_num_threads(1)
    return GROUPS[name](args)


def measure(args: argparse.Namespace, data: Path) -> dict[str, Any]:
    """All chosen groups, the GEMM peak before, between and after; written after each group."""
    torch.set_num_threads(1)
    started, load, peaks = time.time(), load_average(), [gemm_gflops()]
    facts = machine(1, "cpu")  # before the first file: a page of its own is not a change
    rows: list[Row] = []
    result: dict[str, Any] = {}
    for name in args.only:
        print(f"{name} ...", flush=True)
        for row in alone(name, args):
            rows.append({"group": name, **row})
            print(f"  {row['row']} | {row['ours']} / {row['other']}: {row['measured']:.2f}")
        peaks.append(gemm_gflops())
        result = {
            "command": " ".join(["bash benchmarks/peers.sh", *sys.argv[1:]]),
            "rows": rows,
            "rounds": args.rounds,
            "quick": args.quick,
            "gemm_gflops": peaks,
            "steady": max(peaks) - min(peaks) <= PEAK_DRIFT * max(peaks),
            "load": [load, load_average()],
            "minutes": (time.time() - started) / 60,
            "peers": {name: metadata.version(name) for name in PEERS},
            **facts,
        }
        data.write_text(json.dumps(result, indent=1) + "\n")
    return result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag = parser.add_argument
    flag("--output", type=Path, default=Path("reports/speed"), help="default: %(default)s")
    flag("--rounds", type=int, default=5, help="measured turns per row; default: %(default)s")
    flag("--quick", action="store_true", help="one round and shorter steps: to try, not to quote")
    flag("--noisy", action="store_true", help="exit code 0 although the GEMM peak moved")
    flag("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="default: all groups")
    flag("--page-only", action="store_true", help="measure nothing, write the page from the JSON")
    args = parser.parse_args()
    args.rounds = 1 if args.quick else args.rounds
    data = args.output.with_suffix(".json")
    if not args.page_only:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of the peers
            data.parent.mkdir(parents=True, exist_ok=True)
            measure(args, data)
    result = json.loads(data.read_text())
    args.output.with_suffix(".md").write_text(page(result, args.output.stem))
    args.output.with_suffix(".svg").write_text(standalone(draw_dots(picture(result))))
    print(f"written: {args.output.with_suffix('.md')}")
    if not result["steady"] and not args.noisy:
        print("error: the GEMM peak moved by more than a tenth; run again on a quieter machine")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
