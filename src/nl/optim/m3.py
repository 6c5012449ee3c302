"""M3, multi-scale momentum Muon (Nested Learning, Algorithm 1), decayed or as printed. Floor 1.

Two momenta, one of every step and one of every ``slow_chunk`` steps, both orthogonalised, over the
root of a second moment. As printed (``literal``), with the cubic NS and nothing ever forgotten:

    g = G + wd W            M1 += b1 g    V += b2 g^2    B += g
    W -= lr (NS(M1) + a O2) / (sqrt(V) + eps)
    every slow_chunk steps, after the step:  M2 += b3 B,  B = 0,  O2 = NS(M2)

V then only grows, so the steps shrink like 1 / sqrt(t), and they scale with 1 / |G|. Decayed, with
the quintic NS, V relative to its mean (the step no longer depends on the size of the gradient) and
the update's size that of AdamW, s = 0.2 sqrt(max(M, N)):

    M1 <- b1 M1 + (1 - b1) G     V <- b2 V + (1 - b2) G^2     B += G
    W <- (1 - lr wd) W - lr s (NS(M1) + a O2) / (sqrt(V / mean V) + floor) / (1 + a)
    every slow_chunk steps, after the step:  M2 <- b3 M2 + (1 - b3) B,  B = 0,  O2 = NS(M2)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nl.config import register, require
from nl.ops.orthogonal import CUBIC, orthogonalize
from nl.optim.muon import SMALLEST, MatrixConfig
from nl.optim.roles import NamedParameters

RMS_OF_ADAMW = 0.2
"""Root mean square of AdamW's updates at rate 1, as found in practice (arXiv:2502.16982)."""
LITERAL_STEPS = 3


@register("optim", "m3")
@dataclass(frozen=True, kw_only=True)
class M3Config(MatrixConfig):
    """Fast and slow orthogonalised momentum for hidden matrices, AdamW for the rest."""

    betas: tuple[float, ...] = (0.9, 0.999, 0.9)
    """Rates of the fast momentum, the second moment and the slow momentum."""
    alpha: float = 1.0
    """Weight of the slow momentum beside the fast one."""
    slow_chunk: int = 100
    """Steps between changes of the slow momentum."""
    steps: int = 5
    """Newton-Schulz steps (literal: always 3, nothing else can be set)."""
    eps: float = 1e-8
    """Added to the root of the second moment (literal only: floor otherwise)."""
    floor: float = 0.1
    """Added to the root of the second moment relative to its mean (literal: eps)."""
    literal: bool = False
    """The algorithm as printed: sums instead of averages, cubic Newton-Schulz, coupled decay."""

    def __post_init__(self) -> None:
        super().__post_init__()
        betas_fit = len(self.betas) == 3 and all(0 < b < 1 for b in self.betas)
        require(betas_fit, f"betas: {list(self.betas)}; three numbers in (0, 1).")
        require(self.alpha >= 0, f"alpha: {self.alpha}; must be >= 0.")
        require(self.slow_chunk >= 1, f"slow_chunk: {self.slow_chunk}; must be >= 1.")
        require(1 <= self.steps < 100, f"steps: {self.steps}; must be in 1..99.")
        printed = {"steps": (3, M3Config.steps), "floor": (M3Config.floor,)}
        for name, allowed in printed.items() if self.literal else ():
            require(
                getattr(self, name) in allowed,
                f"{name}: {getattr(self, name)}; literal=true is the algorithm as printed, which "
                "has three steps and eps: leave it out, or set optim.literal=false.",
            )
        for name in ("eps", "floor"):
            require(getattr(self, name) > 0, f"{name}: {getattr(self, name)}; must be > 0.")

    def over(self, matrices: NamedParameters) -> torch.optim.Optimizer:
        """See the base class."""
        return M3([{"name": "m3", "whole": True, "params": matrices}], self)


class M3(torch.optim.Optimizer):
    """See the module's equations. Parameters are matrices (M, N)."""

    def __init__(self, groups: list[dict[str, Any]], config: M3Config) -> None:
        self.config = config
        super().__init__(groups, {"lr": config.lr, "weight_decay": config.weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of every matrix that has a gradient.

        Raises:
            ValueError: a closure is given.
        """
        if closure is not None:
            raise ValueError("closure: M3 steps once with the gradients that are there")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group["lr"], group["weight_decay"])

    def _step(self, parameter: Tensor, grad: Tensor, lr: float, weight_decay: float) -> None:
        memory = self.state[parameter]
        if not memory:
            memory["step"] = 0
            for name in ("fast", "slow", "square", "buffer", "slow_direction"):
                memory[name] = torch.zeros_like(parameter)
        memory["step"] += 1
        update = self._literal if self.config.literal else self._decayed
        update(parameter, grad, memory, lr, weight_decay)
        if memory["step"] % self.config.slow_chunk == 0:
            beta = self.config.betas[2]
            memory["slow"].mul_(1.0 if self.config.literal else beta)
            memory["slow"].add_(memory["buffer"], alpha=beta if self.config.literal else 1 - beta)
            memory["buffer"].zero_()
            memory["slow_direction"].copy_(self._orthogonal(memory["slow"]))

    def _literal(
        self, parameter: Tensor, grad: Tensor, memory: dict[str, Any], lr: float, decay: float
    ) -> None:
        c = self.config
        grad = grad + decay * parameter
        memory["fast"].add_(grad, alpha=c.betas[0])
        memory["square"].addcmul_(grad, grad, value=c.betas[1])
        memory["buffer"].add_(grad)
        direction = self._orthogonal(memory["fast"]) + c.alpha * memory["slow_direction"]
        parameter.addcdiv_(direction, memory["square"].sqrt() + c.eps, value=-lr)

    def _decayed(
        self, parameter: Tensor, grad: Tensor, memory: dict[str, Any], lr: float, decay: float
    ) -> None:
        c = self.config
        memory["fast"].lerp_(grad, 1 - c.betas[0])
        square = memory["square"].mul_(c.betas[1]).addcmul_(grad, grad, value=1 - c.betas[1])
        memory["buffer"].add_(grad)
        direction = self._orthogonal(memory["fast"]) + c.alpha * memory["slow_direction"]
        mean = square.mean().clamp(min=torch.finfo(square.dtype).tiny)
        size = RMS_OF_ADAMW * max(parameter.shape) ** 0.5 / (1 + c.alpha)
        parameter.mul_(1 - lr * decay)
        parameter.addcdiv_(direction, (square / mean).sqrt() + c.floor, value=-lr * size)

    def _orthogonal(self, matrix: Tensor) -> Tensor:
        if self.config.literal:
            return orthogonalize(matrix, steps=LITERAL_STEPS, coefficients=CUBIC)
        return orthogonalize(matrix, steps=self.config.steps, smallest=SMALLEST)
