"""The numbers of a step: summed on the device, read once, timed on the host. Floor 5."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from nl.core.output import StepOut
from nl.core.state import tensors
from nl.dist.base import Strategy


class Totals:
    """Sums over the micro-batches of one step, on the device until ``read``."""

    def __init__(self) -> None:
        self.loss: Tensor | None = None
        self.metrics: dict[str, Tensor] = {}
        self.count = 0

    def add(self, out: StepOut) -> None:
        """Add one micro-batch (no device read)."""
        loss = out.loss.detach().double()
        self.loss = loss if self.loss is None else self.loss + loss
        for key, value in out.metrics.items():
            term = value.detach().double()
            self.metrics[key] = self.metrics[key] + term if key in self.metrics else term
        self.count += 1

    def read(self, strategy: Strategy, weight: float) -> dict[str, float]:
        """Loss and metrics over all ranks, in one reduction and one device read.

        Keys ending in ``_sum`` are divided by the global weight and lose the ending; the others
        are means over micro-batches and ranks.
        """
        assert self.loss is not None
        keys = sorted(self.metrics)
        stacked = torch.stack([self.loss, *(self.metrics[k] for k in keys)])
        total, *values = strategy.reduce(stacked).tolist()
        found = {"loss": total / weight}
        for key, value in zip(keys, values, strict=True):
            if key.endswith("_sum"):
                found[key.removesuffix("_sum")] = value / weight
            else:
                found[key] = value / (self.count * strategy.world)
        return found


def count_bad(loss: Tensor, norm: Tensor, state: object) -> Tensor:
    """How many of loss, gradient norm and carried State tensors are not finite; on the device."""
    values = [loss.double(), norm.detach().double()]
    values += [t.detach().sum().double() for t in tensors(state) if t.is_floating_point()]
    return (~torch.isfinite(torch.stack(values))).sum()


class Clock:
    """Wall time and throughput between two logged steps; saving and validating do not count."""

    def __init__(self, seconds: float) -> None:
        self._before = seconds
        self._start = time.perf_counter()
        self.restart()

    @property
    def seconds(self) -> float:
        """Training time over all resumes."""
        return self._before + time.perf_counter() - self._start

    def restart(self) -> None:
        """Begin a new window."""
        self._window = time.perf_counter()
        self._waited, self._tokens, self._steps = 0.0, 0, 0

    def waited(self, seconds: float) -> None:
        """Time spent waiting for data."""
        self._waited += seconds

    def stepped(self, tokens: int) -> None:
        """One step done over this many scored targets."""
        self._tokens += tokens
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Throughput of the window; begins a new one."""
        span = max(time.perf_counter() - self._window, 1e-9)
        found = {
            "perf/tokens_per_s": self._tokens / span,
            "perf/step_seconds": span / max(self._steps, 1),
            "perf/data_share": min(self._waited / span, 1.0),
        }
        self.restart()
        return found


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def stable(row: Mapping[str, float]) -> dict[str, float]:
    """The part of a row that a checkpoint keeps: finite, and no clock times, which never repeat."""
    return {
        k: v
        for k, v in row.items()
        if math.isfinite(v) and not k.startswith("perf/") and k != "time"
    }
