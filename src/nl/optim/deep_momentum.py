"""Deep momentum gradient descent: the momentum of a matrix is a small MLP. Floor 1.

Nested Learning reads momentum as a memory m that compresses gradients by its own gradient descent
and makes it deep: W <- W + m(u), m <- alpha m - eta grad L(m; u), u the gradient of W. Plain
momentum is the memory that is one tensor. Here, per hidden matrix W (M, N) with gradient G, rows

    x = G / (rms(G) sqrt(N))                       unit length on average, whatever the loss's scale
    m(x) = W1 phi(W2 x) / sqrt(F)                  phi = SiLU, F hidden units, W1 = 0 at first
    L = mean over rows of |m(x) + x|^2 / 2  (l2)   or of <m(x), x>  (dot: only ever adds)
    W1 <- alpha W1 - eta dL/dW1                    W2 <- A + alpha (W2 - A) - eta dL/dW2
    W <- (1 - lr wd) W + lr sigma(m(x))

with the new memory in the last line. W2 decays toward its initial value A: toward zero, as printed,
it would lose its features. sigma gives the update the size of AdamW's, 0.2 m(x) / rms(m(x)), or
makes it orthogonal, 0.2 sqrt(max(M, N)) NS5(m(x)) (the paper's view of Muon). A row moves along
the gradients, new and old, that its own resembles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import silu

from nl.config import register, require
from nl.ops.orthogonal import orthogonalize
from nl.optim.m3 import RMS_OF_ADAMW
from nl.optim.muon import MatrixConfig
from nl.optim.roles import NamedParameters

Output = Literal["rms", "orthogonal"]


@register("optim", "dmgd")
@dataclass(frozen=True, kw_only=True)
class DeepMomentumConfig(MatrixConfig):
    """Momentum as an MLP over gradients for hidden matrices, AdamW for the rest."""

    hidden: int = 64
    """Hidden units of every memory."""
    retention: float = 0.9
    """alpha: share of what it learned that a memory keeps per step."""
    inner_rate: float = 0.5
    """eta: step size of a memory's own gradient descent."""
    objective: Literal["l2", "dot"] = "l2"
    """Inner loss: squared error to the step down the gradient, or inner product."""
    output: Output = "rms"
    """Size of an update: unit root mean square times 0.2, or orthogonalised."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.hidden >= 1, f"hidden: {self.hidden}; must be >= 1.")
        require(0 <= self.retention < 1, f"retention: {self.retention}; must be in [0, 1).")
        require(0 < self.inner_rate <= 1, f"inner_rate: {self.inner_rate}; must be in (0, 1].")

    def over(self, matrices: NamedParameters) -> torch.optim.Optimizer:
        """See the base class."""
        return DeepMomentum([{"name": "dmgd", "whole": True, "params": matrices}], self)


class DeepMomentum(torch.optim.Optimizer):
    """See the module's equations. Parameters are matrices (M, N)."""

    def __init__(self, groups: list[dict[str, Any]], config: DeepMomentumConfig) -> None:
        self.config = config
        super().__init__(groups, {"lr": config.lr, "weight_decay": config.weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of every matrix that has a gradient.

        Raises:
            ValueError: a closure is given.
        """
        if closure is not None:
            raise ValueError("closure: DeepMomentum steps once with the gradients that are there")
        for group in self.param_groups:
            for index, parameter in enumerate(group["params"]):
                if parameter.grad is None:
                    continue
                memory = self.state[parameter]
                if not memory:
                    memory.update(self._fresh(parameter, index))
                update = self._recall(memory, parameter.grad)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=group["lr"])

    def _fresh(self, parameter: Tensor, index: int) -> dict[str, Tensor]:
        """W2 drawn by the parameter's place in the list (the same on every rank), W1 zero."""
        size, width = self.config.hidden, parameter.shape[1]
        draw = torch.randn(size, width, generator=torch.Generator().manual_seed(index))
        start = draw.to(parameter)
        return {"start": start, "up": start.clone(), "down": parameter.new_zeros(width, size)}

    def _recall(self, memory: dict[str, Tensor], grad: Tensor) -> Tensor:
        """Write the gradient into the memory, then read it (M, N)."""
        rows, width = grad.shape
        x = grad / (_rms(grad) * math.sqrt(width))
        up, down = memory["up"], memory["down"]
        hidden, slope = _silu(x @ up.mT)
        scale = 1 / math.sqrt(self.config.hidden)
        error = x + scale * (hidden @ down.mT) if self.config.objective == "l2" else x
        signal = scale * (error @ down) * slope
        keep, rate = self.config.retention, self.config.inner_rate / rows
        down.mul_(keep).sub_(error.mT @ hidden, alpha=rate * scale)
        up.lerp_(memory["start"], 1 - keep).sub_(signal.mT @ x, alpha=rate)
        recalled = scale * (silu(x @ up.mT) @ down.mT)
        if self.config.output == "orthogonal":
            return RMS_OF_ADAMW * math.sqrt(max(grad.shape)) * orthogonalize(recalled)
        return RMS_OF_ADAMW * recalled / _rms(recalled)


def _rms(x: Tensor) -> Tensor:
    """Root mean square, never zero, so that zeros stay zeros."""
    tiny = torch.finfo(x.dtype).tiny
    largest = x.abs().amax().clamp(min=tiny)  # squares of small numbers are zero
    return (largest * (x / largest).square().mean().sqrt()).clamp(min=tiny)


def _silu(z: Tensor) -> tuple[Tensor, Tensor]:
    """SiLU and its derivative."""
    gate = torch.sigmoid(z)
    value = z * gate
    return value, gate + value * (1 - gate)
