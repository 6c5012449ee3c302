"""The network of the learned controller, its actions and what it sees. Floor 6."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Beta, Categorical

from nl.control.ranges import LEAST, KnobRanges

SIGNALS = ("signal/loss", "signal/memory_loss", "signal/delta", "signal/sigma", "signal/fisher_rao")
EDGE = 1e-4
"""Shares are kept this far from 0 and 1, where the density of a Beta may be infinite."""
LIMIT = 5.0
"""Normalised inputs are cut off here."""


@dataclass(frozen=True)
class Action:
    """Place of every turned knob in its range, 0 to 1."""

    shares: dict[str, float]


class Heads(NamedTuple):
    """What the policy says: logits of whole numbers, two Beta parameters per share, the value."""

    logits: Tensor | None
    shapes: Tensor
    value: Tensor


class Policy(nn.Module):
    """GRU over turns -> Categorical for experts_k, Beta for every other knob, and a value."""

    def __init__(self, ranges: KnobRanges, hidden: int) -> None:
        super().__init__()
        turned = ranges.turned()
        self.inputs = len(SIGNALS) + len(LEAST)
        self.count = 0
        if ranges.experts_k is not None:
            self.count = ranges.experts_k[1] - ranges.experts_k[0] + 1
        self.shares = tuple(name for name in turned if name != "experts_k")
        self.read = nn.Linear(self.inputs, hidden)
        self.cell = nn.GRUCell(hidden, hidden)
        self.value = nn.Linear(hidden, 1)
        self.logits = nn.Linear(hidden, max(self.count, 1))
        self.shapes = nn.Linear(hidden, 2 * max(len(self.shares), 1))
        for layer in (self.value, self.logits, self.shapes):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Heads]:
        """Inputs (F,) and hidden (1, H) -> the next hidden and the heads."""
        hidden = self.cell(self.read(inputs)[None].tanh(), hidden)
        return hidden, self.heads(hidden)

    def heads(self, hidden: Tensor) -> Heads:
        """What a hidden state means."""
        logits = self.logits(hidden)[0] if self.count else None
        shapes = nn.functional.softplus(self.shapes(hidden)[0].view(-1, 2)) + 1
        return Heads(logits, shapes[: len(self.shares)], self.value(hidden)[0, 0])

    def draw(self, heads: Heads, rng: np.random.Generator) -> Action:
        """An action drawn with ``rng``."""
        found = {}
        if heads.logits is not None:
            odds = heads.logits.double().softmax(0).numpy()
            place = min(int(np.searchsorted(np.cumsum(odds), rng.random())), self.count - 1)
            found["experts_k"] = self._share(place)
        for name, (a, b) in zip(self.shares, heads.shapes.tolist(), strict=True):
            found[name] = min(max(float(rng.beta(a, b)), EDGE), 1 - EDGE)
        return Action(found)

    def greedy(self, heads: Heads) -> Action:
        """The most likely whole number, and the mean of every share."""
        found = {}
        if heads.logits is not None:
            found["experts_k"] = self._share(int(heads.logits.argmax()))
        for name, (a, b) in zip(self.shares, heads.shapes.tolist(), strict=True):
            found[name] = a / (a + b)
        return Action(found)

    def _share(self, place: int) -> float:
        return place / max(self.count - 1, 1)

    def log_prob(self, heads: Heads, action: Action) -> Tensor:
        """Log-density of an action, a scalar."""
        total = torch.zeros(())
        if heads.logits is not None:
            place = torch.tensor(round(action.shares["experts_k"] * (self.count - 1)))
            total = total + Categorical(logits=heads.logits).log_prob(place)  # type: ignore[no-untyped-call]
        if self.shares:
            shares = torch.tensor([action.shares[name] for name in self.shares])
            found = Beta(heads.shapes[:, 0], heads.shapes[:, 1])
            total = total + found.log_prob(shares).sum()  # type: ignore[no-untyped-call]
        return total

    def entropy(self, heads: Heads) -> Tensor:
        """Of the policy at these heads, a scalar."""
        total = torch.zeros(())
        if heads.logits is not None:
            total = total + Categorical(logits=heads.logits).entropy()  # type: ignore[no-untyped-call]
        if self.shares:
            found = Beta(heads.shapes[:, 0], heads.shapes[:, 1])
            total = total + found.entropy().sum()  # type: ignore[no-untyped-call]
        return total


def features(observations: Mapping[str, float], shares: Mapping[str, float]) -> list[float]:
    """What the policy is told: signals (0 where there is none yet) and where the knobs stand."""
    found = [observations.get(name, 0.0) for name in SIGNALS]
    return [*found, *(shares.get(name, 0.0) for name in LEAST)]


class Normalizer:
    """Running mean and variance of what was seen (Welford 1962)."""

    def __init__(self, size: int) -> None:
        self.count, self.mean, self.square = 0, [0.0] * size, [0.0] * size

    def __call__(self, values: list[float]) -> Tensor:
        """Take ``values`` in, then scale them; fixed from then on, whatever is seen later."""
        self.count += 1
        found = []
        for i, value in enumerate(values):
            before = value - self.mean[i]
            self.mean[i] += before / self.count
            self.square[i] += before * (value - self.mean[i])
            variance = self.square[i] / max(self.count - 1, 1)
            scaled = (value - self.mean[i]) / math.sqrt(variance + 1e-5)
            found.append(min(max(scaled, -LIMIT), LIMIT))
        return torch.tensor(found)

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"count": self.count, "mean": self.mean, "square": self.square}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse."""
        self.count = int(state["count"])
        self.mean, self.square = list(state["mean"]), list(state["square"])
