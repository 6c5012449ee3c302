"""Time in turns, and the GEMM peak that shares are shares of. Floor 8.

CPU time of this process on CPU (a busy machine then takes less from the numbers), wall time on
CUDA. Rows take turns, so that what slows the machine slows all of them alike; ratios are taken
within a round and their median counts.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping

import torch

from nl.config import ConfigError

WARM_UP = 2
"""Rounds before the first that counts."""
PEAK_DRIFT = 0.1
"""The GEMM peaks before and after a run may differ by this share of the larger one."""

Steps = Mapping[str, Callable[[], object]]


def timed(step: Callable[[], object], device: str = "cpu") -> float:
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


def take_turns(steps: Steps, rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds per round and row; what is run first warms up (or is compiled) and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(-WARM_UP, rounds):
        for name, step in steps.items():
            elapsed = timed(step, device)
            if turn >= 0:
                seconds[name].append(elapsed)
    return seconds


def ratio(slower: list[float], faster: list[float]) -> tuple[float, float, float]:
    """Median, least and largest of the ratios within a round: how many times faster is the second.

    Args:
        slower: seconds per round.
        faster: seconds of the same rounds.
    """
    each = [a / b for a, b in zip(slower, faster, strict=True)]
    return statistics.median(each), min(each), max(each)


def gemm_gflops(device: str = "cpu", size: int = 1024) -> float:
    """Best of nine fp32 products of random square matrices, in GFLOP/s."""
    a, b = torch.randn(2, size, size, device=device).unbind()
    best = min(timed(lambda: torch.mm(a, b), device) for _ in range(9))
    return 2 * size**3 / best / 1e9


def check_peak(before: float, after: float, noisy: bool) -> None:
    """Refuse a run during which the machine changed its speed.

    Raises:
        ConfigError: the peaks differ by more than ``PEAK_DRIFT``, and ``noisy`` is false.
    """
    drift = abs(before - after) / max(before, after)
    if drift > PEAK_DRIFT and not noisy:
        raise ConfigError(
            f"bench: the GEMM peak moved from {before:.1f} to {after:.1f} GFLOP/s ({drift:.0%}); "
            f"within {PEAK_DRIFT:.0%} is needed: run again on a quieter machine, or pass --noisy."
        )


def load_average() -> float | None:
    """Processes that wanted to run in the last minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
