"""The cells of one benchmark run, measured in turns, as plain data. Floor 8."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from nl.bench.clock import check_peak, gemm_gflops, load_average, ratio, take_turns
from nl.bench.config import BenchConfig
from nl.bench.flops import TRAINING, algorithmic_flops, layer_flops, model_flops
from nl.bench.layers import layer_steps
from nl.bench.machine import machine
from nl.bench.steps import BASELINE, kept_per_layer, language, matched, train_step
from nl.config import table
from nl.core.cpu import use_cpu

Rows = list[dict[str, Any]]


def bench(config: BenchConfig) -> dict[str, Any]:
    """Measure; the result is plain data.

    Returns:
        ``rows``: one per part, block, length and chunk, with tokens_per_s, ratio_to_transformer
        (median over rounds), its least and largest value and shares of the larger GEMM peak by the
        formulas of ``nl.bench.flops``; train steps also with parameters and the bytes kept per
        layer. Besides: GEMM peaks, load, commit, versions, processor.

    Raises:
        ConfigError: a block that is not registered, one whose parameters cannot be matched, or a
            machine whose GEMM peak moved by more than a tenth while ``noisy`` is false.
    """
    use_cpu(config.threads)
    torch.manual_seed(0)
    names = [BASELINE, *(b for b in config.blocks or table("block") if b != BASELINE)]
    load = load_average()
    before = gemm_gflops(config.device)
    rows: Rows = []
    for seq_len in config.seq_len:
        for chunk in config.chunk or (None,):
            if "step" in config.parts:
                rows += step_rows(config, names, seq_len, chunk)
            if "layer" in config.parts:
                rows += layer_rows(config, names, seq_len, chunk)
    after = gemm_gflops(config.device)
    check_peak(before, after, config.noisy)
    peak = max(before, after)
    for row in rows:
        for key in ("model", "algorithmic", "layer"):
            flops = row.pop(f"{key}_flops", None)
            if flops is not None:
                row[f"share_{key}"] = flops * row["tokens_per_s"] / peak / 1e9
    return {
        "rows": rows,
        "gemm_gflops": [before, after],
        "load": [load, load_average()],
        **machine(config.threads, config.device),
    }


def step_rows(config: BenchConfig, names: list[str], seq_len: int, chunk: int | None) -> Rows:
    """Whole train steps of models with equal parameters."""
    models = {name: matched(config, name, chunk) for name in names}
    built = {name: train_step(model, config, seq_len) for name, model in models.items()}
    steps = {name: step for name, (step, _) in built.items()}
    seconds = take_turns(steps, config.rounds, config.device)
    base_kept = kept_per_layer(models[BASELINE], config, seq_len)
    rows = []
    for name, (_, network) in built.items():
        kept = kept_per_layer(models[name], config, seq_len)
        rows.append(
            {
                **cell(config, "step", name, (seq_len, chunk)),
                **speed(config, seconds[name], seconds[BASELINE], seq_len),
                "params": sum(p.numel() for p in network.parameters()),
                "kept_bytes_per_layer": kept,
                "kept_ratio": kept / base_kept,
                "model_flops": model_flops(network, seq_len),
                "algorithmic_flops": algorithmic_flops(network, seq_len),
            }
        )
    return rows


def layer_rows(config: BenchConfig, names: list[str], seq_len: int, chunk: int | None) -> Rows:
    """Single blocks of equal width: forward, and forward with backward."""
    built = {
        name: layer_steps(language(config, name, chunk), name, config, seq_len) for name in names
    }
    steps = {f"{name}/{part}": step for name in names for part, step in built[name][0].items()}
    seconds = take_turns(steps, config.rounds, config.device)
    times = {"forward": 1, "both": TRAINING}
    return [
        {
            **cell(config, f"layer {part}", name, (seq_len, chunk)),
            **speed(config, seconds[f"{name}/{part}"], seconds[f"{BASELINE}/{part}"], seq_len),
            "layer_flops": times[part] * layer_flops(built[name][1], seq_len),
        }
        for part in times
        for name in names
    ]


def cell(
    config: BenchConfig, part: str, name: str, place: tuple[int, int | None]
) -> dict[str, Any]:
    """What a row is about; ``place`` is (T, chunk)."""
    return {
        "part": part,
        "name": name,
        "dim": config.dim,
        "layers": config.layers if part == "step" else 1,
        "T": place[0],
        "B": config.batch_size,
        "chunk": place[1],
    }


def speed(
    config: BenchConfig, own: list[float], base: list[float], seq_len: int
) -> dict[str, float]:
    """Tokens per second, and the ratio to the baseline within each round."""
    middle, least, largest = ratio(base, own)
    return {
        "tokens_per_s": config.batch_size * seq_len / statistics.median(own),
        "ratio_to_transformer": middle,
        "ratio_min": least,
        "ratio_max": largest,
    }
