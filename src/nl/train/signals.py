"""Signals: what one optimizer step does to text that it does not train on. Floor 5.

On the same held-out rows, with the same reading, before and after a step:

    delta  = L_before - L_after                     nats per token, positive where it helped
    sigma  = standard deviation over tokens of their loss before
    kl     = mean over tokens of KL(p_after || p_before); kl_reverse of KL(p_before || p_after)
    fisher_rao = sqrt(2 kl), the length of the step in the Fisher-Rao metric, to first order
    eta    = max(delta, 0) / (sigma fisher_rao + floor)

A change of distribution of this size can change the mean of a variable whose standard deviation is
sigma by about sigma sqrt(2 kl) (to first order; exactly at most that where it is sub-Gaussian), so
eta is the share of the possible improvement that a step makes. All three are measured on one set of
rows; ``eta_above_1`` counts how often the bound is exceeded all the same, which says how far the
first order can be trusted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nl.config.run import SignalsConfig
from nl.core.batch import IGNORE, Batch
from nl.dist.base import Strategy
from nl.train.state import TrainState

Rows = Callable[[int], tuple[Batch, Batch | None]]
"""Phase -> held-out rows of its task, and of the tasks before it where there are any."""


@dataclass(frozen=True)
class Before:
    """What the step is compared with."""

    phase: int
    batch: Batch
    log_probs: Tensor
    losses: Tensor
    memory: float | None
    seconds: float


class Signals:
    """Measures around every n-th step; every rank measures the same rows."""

    def __init__(self, config: SignalsConfig, strategy: Strategy, rows: Rows) -> None:
        self.config, self.strategy, self.rows = config, strategy, rows
        self._before: Before | None = None
        self._known: tuple[int, tuple[Batch, Batch | None]] | None = None

    def due(self, step: int) -> bool:
        """Whether the 1-based ``step`` is measured."""
        return step % self.config.every == 0

    def before(self, step: int, tags: Mapping[str, Any]) -> None:
        """Read the rows with the weights that step ``step`` (1-based) begins with."""
        self._before = None
        if not self.due(step):
            return
        begun = time.perf_counter()
        phase = int(tags.get("phase", 0))
        batch, memory = self._held(phase)
        log_probs, losses = self._read(batch)
        old = None if memory is None else float(self._read(memory)[1].mean())
        seconds = time.perf_counter() - begun
        self._before = Before(phase, batch, log_probs, losses, old, seconds)

    def after(self, state: TrainState, loss: float) -> dict[str, float]:
        """Numbers of the step that was just made, under ``signal/``; {} where it was not due.

        Args:
            state: keeps the moving averages and counts, so that a continued run has them.
            loss: of training, nats per token.
        """
        before, self._before = self._before, None
        if before is None:
            return {}
        begun = time.perf_counter()
        log_probs, losses = self._read(before.batch)
        kl, reverse = (
            divergence(log_probs, before.log_probs),
            divergence(before.log_probs, log_probs),
        )
        found = {
            "loss": float(losses.mean()),
            "delta": float(before.losses.mean() - losses.mean()),
            "sigma": float(before.losses.std()),
            "kl": kl,
            "kl_reverse": reverse,
            "fisher_rao": math.sqrt(2 * kl),
            "task": float(before.phase),
        }
        if before.memory is not None:
            _, memory = self._held(before.phase)
            assert memory is not None
            found["memory_loss"] = float(self._read(memory)[1].mean())
            found["memory_delta"] = before.memory - found["memory_loss"]
        found = self.strategy.broadcast(found)
        found |= self._averages(state.signals, found, loss)
        seconds = before.seconds + time.perf_counter() - begun
        return {f"signal/{k}": v for k, v in found.items()} | {"perf/signal_seconds": seconds}

    def _averages(
        self, kept: dict[str, float], found: Mapping[str, float], loss: float
    ) -> dict[str, float]:
        """Moving averages, eta and its audit."""
        keep = self.config.ema
        possible = found["sigma"] * found["fisher_rao"]
        kept["ema_loss"] = keep * kept.get("ema_loss", loss) + (1 - keep) * loss
        kept["possible"] = keep * kept.get("possible", possible) + (1 - keep) * possible
        floor = max(self.config.floor * kept["possible"], 1e-12)
        eta = max(found["delta"], 0.0) / (possible + floor)
        kept["measured"] = kept.get("measured", 0.0) + 1
        kept["above"] = kept.get("above", 0.0) + (eta > 1)
        return {
            "eta": eta,
            "eta_above_1": kept["above"] / kept["measured"],
            "ema_loss": kept["ema_loss"],
        }

    def _held(self, phase: int) -> tuple[Batch, Batch | None]:
        if self._known is None or self._known[0] != phase:
            current, memory = self.rows(phase)
            device = self.strategy.device
            self._known = phase, (current.to(device), None if memory is None else memory.to(device))
        return self._known[1]

    def _read(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities (n, V) and losses (n,) of the scored targets of the rows."""
        with self.strategy.evaluating() as objective:
            holder: Any = objective
            more = {} if batch.starts is None else {"starts": batch.starts}
            out = holder.model(batch.inputs, targets=batch.targets, **more)
            log_probs = out.pred.float().log_softmax(-1)
        scored = batch.targets != IGNORE
        chosen = log_probs[scored]
        return chosen, -chosen.gather(1, batch.targets[scored][:, None])[:, 0]


def divergence(p: Tensor, q: Tensor) -> float:
    """Mean over rows of KL(p || q) from log-probabilities (n, V), never below 0."""
    return max(0.0, float((p.exp() * (p - q)).sum(1).mean()))
