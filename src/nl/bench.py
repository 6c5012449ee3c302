"""Speed of one train step per block kind, as ratios inside one run. Floor 8.

Every row is forward, backward, clipping and AdamW on random tokens, with the widths of memory or
feed-forward layers chosen so that all rows have the parameters of the Transformer. Rows take
turns, so that a busy machine slows all of them alike; times are CPU time of this process on CPU
and wall time on CUDA, and the median over rounds counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from nl.config import ConfigError, require, table
from nl.models.language import LanguageConfig
from nl.models.presets import count_parameters
from nl.nn.attention import AttentionConfig

BASELINE = "transformer"
PARAMETER_TOLERANCE = 0.02


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What is measured."""

    blocks: tuple[str, ...] = ()
    """Block kinds beside the baseline; empty: all registered."""
    dim: int = 256
    """Width."""
    layers: int = 2
    """Blocks."""
    heads: int = 4
    """Attention heads."""
    seq_len: int = 256
    """Tokens per row, T."""
    batch_size: int = 4
    """Rows, B."""
    vocab_size: int = 1024
    """Token ids."""
    rounds: int = 7
    """Measured turns per row, after one warm-up each."""
    threads: int = 1
    """CPU threads."""
    device: str = "cpu"
    """cpu or cuda."""

    def __post_init__(self) -> None:
        for name in ("dim", "layers", "heads", "seq_len", "batch_size", "rounds", "threads"):
            require(getattr(self, name) >= 1, f"{name}: {getattr(self, name)}; must be >= 1.")


def bench(config: BenchConfig) -> dict[str, Any]:
    """Measure; the result is plain data.

    Returns:
        ``rows`` (name, dim, layers, T, B, params, tokens_per_s, ratio_to_transformer, spread),
        ``gemm_gflops`` before and after, torch version, threads, clock.

    Raises:
        ConfigError: a block that is not registered, or one whose parameters cannot be matched.
    """
    torch.set_num_threads(config.threads)
    names = [BASELINE, *(b for b in config.blocks or table("block") if b != BASELINE)]
    steps = {name: train_step(matched(config, name), config) for name in names}
    before = gemm_gflops(config.device)
    seconds = take_turns({name: step for name, (step, _) in steps.items()}, config)
    base = statistics.median(seconds[BASELINE])
    tokens = config.batch_size * config.seq_len
    rows = []
    for name, (_, parameters) in steps.items():
        middle = statistics.median(seconds[name])
        rows.append(
            {
                "name": name,
                "dim": config.dim,
                "layers": config.layers,
                "T": config.seq_len,
                "B": config.batch_size,
                "params": parameters,
                "tokens_per_s": tokens / middle,
                "ratio_to_transformer": base / middle,
                "spread": (max(seconds[name]) - min(seconds[name])) / middle,
            }
        )
    return {
        "rows": rows,
        "gemm_gflops": [before, gemm_gflops(config.device)],
        "torch": torch.__version__,
        "threads": config.threads,
        "device": config.device,
        "clock": "wall" if config.device == "cuda" else "process",
    }


def matched(config: BenchConfig, block: str) -> LanguageConfig:
    """The model of one row, its inner width chosen for the baseline's parameter count."""
    model = LanguageConfig(
        vocab_size=config.vocab_size,
        dim=config.dim,
        layers=config.layers,
        block=block,
        attention=AttentionConfig(heads=config.heads),
    )
    target = count_parameters(replace(model, block=BASELINE))
    widened = widest(model, target)
    gap = count_parameters(widened) / target - 1
    if abs(gap) > PARAMETER_TOLERANCE:
        raise ConfigError(
            f"bench: {block} has {gap:+.1%} of the baseline's parameters at dim {config.dim}; "
            f"within {PARAMETER_TOLERANCE:.0%} is needed: choose a larger --dim."
        )
    return widened


def widest(model: LanguageConfig, target: int) -> LanguageConfig:
    """``model`` with the inner width (levels and feed-forward) that comes closest to ``target``."""

    def with_width(width: int) -> LanguageConfig:
        return replace(model, mlp_hidden=width, cms=replace(model.cms, hidden=width))

    one, two = count_parameters(with_width(8)), count_parameters(with_width(16))
    width = max(8, 8 + 8 * round((target - one) / (two - one)))
    return with_width(width)


def train_step(model: LanguageConfig, config: BenchConfig) -> tuple[Callable[[], None], int]:
    """A closure that takes one optimizer step, and the number of parameters."""
    torch.manual_seed(0)
    network = model.build().to(config.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    shape = (config.batch_size, config.seq_len + 1)
    tokens = torch.randint(0, config.vocab_size, shape, device=config.device)

    def step() -> None:
        nll, _ = network.nll(tokens[:, :-1], tokens[:, 1:], keep=False)
        nll.mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step, sum(p.numel() for p in network.parameters())


def take_turns(steps: dict[str, Callable[[], None]], config: BenchConfig) -> dict[str, list[float]]:
    """Seconds per round and row; the first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(config.rounds + 1):
        for name, step in steps.items():
            elapsed = timed(step, config.device)
            if turn:
                seconds[name].append(elapsed)
    return seconds


def timed(step: Callable[[], object], device: str) -> float:
    """Seconds one call takes: CPU time on CPU, wall time on CUDA."""
    if device != "cuda":
        start = time.process_time()
        step()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def gemm_gflops(device: str, size: int = 1024) -> float:
    """Best of five fp32 products of random square matrices, in GFLOP/s."""
    a, b = torch.randn(2, size, size, device=device).unbind()
    best = min(timed(lambda: torch.mm(a, b), device) for _ in range(5))
    return 2 * size**3 / best / 1e9


def as_table(result: dict[str, Any]) -> str:
    """The rows as aligned text."""
    head = ["name", "params", "tokens_per_s", "ratio_to_transformer", "spread"]
    lines: Sequence[Sequence[str]] = [
        (
            r["name"],
            f"{r['params']:,}",
            f"{r['tokens_per_s']:,.0f}",
            f"{r['ratio_to_transformer']:.2f}",
            f"{r['spread']:.0%}",
        )
        for r in result["rows"]
    ]
    widths = [max(len(str(row[i])) for row in [head, *lines]) for i in range(len(head))]
    return "\n".join(
        "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *lines]
    )
