"""Inner optimizers: what a memory level does with the gradient of one period. Floor 2.

A level adds ``-rate * fast`` to its meta weights; a write moves ``fast`` by the step that an inner
optimizer makes of the summed gradient. Rows of the batch never see each other. ``sgd`` and
``momentum`` are proportional to the signal; ``adam``, ``muon`` and ``deep`` (momentum that is a
small MLP) are not: their step has a size of its own. ``delta`` works token by token (Nested
Learning, Eq. 57) inside the level.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nl.config import register, require
from nl.config.groups import InnerConfig
from nl.ops.orthogonal import orthogonalize

Slots = tuple[Tensor, ...]


class Inner(InnerConfig):
    """Interface: ``step`` turns a gradient (B, P, N) into a step of the same shape."""

    per_token: ClassVar[bool] = False
    """Whether the rule acts on every token instead of the period's sum."""
    differentiable: ClassVar[bool] = True
    """Whether a step has a gradient everywhere, also where there was no signal."""
    linear: ClassVar[bool] = False
    """Whether the step is the gradient itself and nothing is kept between writes."""

    @property
    def total(self) -> float | None:
        """What the summed gradient of a period adds over all steps, in units of itself.

        None: steps do not grow with the number of tokens in a period.
        """
        return None

    def step(
        self, grad: Tensor, slots: Slots | None, meta: Tensor, scale: float
    ) -> tuple[Tensor, Slots]:
        """One write.

        Args:
            grad: (B, P, N) gradient summed over the period.
            slots: what the last write left, None before the first.
            meta: (P, N) meta weights.
            scale: the fixed part of the rate: weights in force are meta - rate * scale * fast.

        Returns:
            The step that ``fast`` takes, and the new slots; slots that are zero are fresh ones.
        """
        raise TypeError("an inner optimizer defines step")


@register("inner", "sgd")
@dataclass(frozen=True, kw_only=True)
class SGD(Inner):
    """The gradient itself."""

    linear: ClassVar[bool] = True
    """It is."""

    @property
    def total(self) -> float | None:
        """Itself, once."""
        return 1.0

    def step(
        self, grad: Tensor, slots: Slots | None, meta: Tensor, scale: float
    ) -> tuple[Tensor, Slots]:
        return grad, ()


@register("inner", "delta")
@dataclass(frozen=True, kw_only=True)
class Delta(SGD):
    """W <- W (I - r x x^T) - r g x^T per token, unit x, r = rate / (1 + rate): contractive."""

    per_token: ClassVar[bool] = True
    """The level applies the rule itself, token by token."""
    linear: ClassVar[bool] = False
    """The step is that of the tokens one after the other."""

    @property
    def total(self) -> float | None:
        """Every token finds what those before it have written."""
        return None


@register("inner", "momentum")
@dataclass(frozen=True, kw_only=True)
class Momentum(Inner):
    """m <- beta m + g."""

    beta: float = 0.9
    """Share of the momentum that a write keeps."""

    def __post_init__(self) -> None:
        require(0 <= self.beta < 1, f"beta: {self.beta}; must be in [0, 1).")

    @property
    def total(self) -> float | None:
        """1 + beta + beta^2 + ..."""
        return 1 / (1 - self.beta)

    def step(
        self, grad: Tensor, slots: Slots | None, meta: Tensor, scale: float
    ) -> tuple[Tensor, Slots]:
        m = grad if slots is None else self.beta * slots[0] + grad
        return m, (m,)


@register("inner", "adam")
@dataclass(frozen=True, kw_only=True)
class Adam(Inner):
    """Adam per row (Kingma and Ba 2015), bias-corrected; a step has the size ``size``."""

    differentiable: ClassVar[bool] = False
    """The size of a step does not depend on the signal's, so it jumps at zero."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.99
    """Decay of the second moment."""
    eps: float = 1e-12
    """Added to the root of the second moment; signals are small."""
    size: float = 0.02
    """Change of the weights by one write at rate 1, relative to their root mean square."""

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name}: {value}; must be in [0, 1).")
        for name in ("eps", "size"):
            require(getattr(self, name) > 0, f"{name}: {getattr(self, name)}; must be > 0.")

    def step(
        self, grad: Tensor, slots: Slots | None, meta: Tensor, scale: float
    ) -> tuple[Tensor, Slots]:
        if slots is None:
            slots = (
                torch.zeros_like(grad),
                torch.zeros_like(grad),
                grad.new_zeros(len(grad), 1, 1),
            )
        m = self.beta1 * slots[0] + (1 - self.beta1) * grad
        v = self.beta2 * slots[1] + (1 - self.beta2) * grad.square()
        count = slots[2] + 1
        first, second = m / (1 - self.beta1**count), v / (1 - self.beta2**count)
        unit = first / (second.sqrt() + self.eps)
        return unit * (self.size * meta.square().mean().sqrt() / scale), (m, v, count)


@register("inner", "muon")
@dataclass(frozen=True, kw_only=True)
class Muon(Inner):
    """Orthogonalised momentum (Jordan et al. 2024), per row; a step has the size ``size``."""

    differentiable: ClassVar[bool] = False
    """The size of a step does not depend on the signal's, so it jumps at zero."""
    beta: float = 0.9
    """Share of the momentum that a write keeps."""
    iterations: int = 5
    """Newton-Schulz iterations."""
    size: float = 0.02
    """Norm of the change by one write at rate 1, relative to the norm of the weights."""

    def __post_init__(self) -> None:
        require(0 <= self.beta < 1, f"beta: {self.beta}; must be in [0, 1).")
        require(self.iterations >= 1, f"iterations: {self.iterations}; must be >= 1.")
        require(self.size > 0, f"size: {self.size}; must be > 0.")

    def step(
        self, grad: Tensor, slots: Slots | None, meta: Tensor, scale: float
    ) -> tuple[Tensor, Slots]:
        m = grad if slots is None else self.beta * slots[0] + grad
        unit = orthogonalize(m, steps=self.iterations)
        rank = min(m.shape[-2:])
        return unit * (self.size * meta.norm() / (rank**0.5 * scale)), (m,)


@register("inner", "deep")
@dataclass(frozen=True, kw_only=True)
class Deep(Inner):
    """Momentum as a small MLP over the gradient's rows (Nested Learning, deep momentum), per row.

    With x the rows of the gradient, of unit length on average, H hidden units and A fixed:
    m(x) = W1 silu(W2 x) / sqrt(H), L = mean over rows of |m(x) - x|^2 / 2,
    W1 <- a W1 - r dL/dW1, W2 <- A + a (W2 - A) - r dL/dW2, and the step is m(x) of the new memory,
    brought to the size ``size``: a row moves along the gradients that its own resembles.
    """

    differentiable: ClassVar[bool] = False
    """The size of a step does not depend on the signal's, so it jumps at zero."""

    hidden: int = 16
    """Hidden units of the memory."""
    retention: float = 0.9
    """Share of what it learned that the memory keeps per write."""
    rate: float = 0.5
    """Step size of the memory's own gradient descent."""
    size: float = 0.02
    """Change of the weights by one write at rate 1, relative to their root mean square."""

    def __post_init__(self) -> None:
        require(self.hidden >= 1, f"hidden: {self.hidden}; must be >= 1.")
        require(0 <= self.retention < 1, f"retention: {self.retention}; must be in [0, 1).")
        require(0 < self.rate <= 1, f"rate: {self.rate}; must be in (0, 1].")
        require(self.size > 0, f"size: {self.size}; must be > 0.")

    def step(
        self, grad: Tensor, slots: Slots | None, meta: Tensor, scale: float
    ) -> tuple[Tensor, Slots]:
        batch, rows, width = grad.shape
        # A pretended tensor (nl plan) belongs to its mode and is never handed to another call.
        draw = _features if type(grad) is Tensor else _features.__wrapped__
        start = draw(self.hidden, width, grad.dtype, grad.device)
        if slots is None:
            slots = (
                grad.new_zeros(batch, self.hidden, width),
                grad.new_zeros(batch, width, self.hidden),
            )
        moved, down = slots
        up = start + moved
        shrink, rate = self.hidden**-0.5, self.rate / rows
        x = grad / (_rms(grad) * width**0.5)
        z = x @ up.mT
        gate = torch.sigmoid(z)
        error = shrink * ((z * gate) @ down.mT) - x
        signal = shrink * (error @ down) * (gate * (1 + z * (1 - gate)))
        down = self.retention * down - rate * shrink * (error.mT @ (z * gate))
        moved = self.retention * moved - rate * (signal.mT @ x)
        recalled = F.silu(x @ (start + moved).mT) @ down.mT
        size = self.size * meta.square().mean().sqrt() / scale
        return recalled / _rms(recalled) * size, (moved, down)


def _rms(x_BPN: Tensor) -> Tensor:
    """Root mean square of each matrix (B, 1, 1), never zero, so that zeros stay zeros."""
    largest = x_BPN.detach().abs().amax((1, 2), keepdim=True)  # squares of small numbers are zero
    largest = largest.clamp(min=torch.finfo(x_BPN.dtype).tiny)
    rms = largest * (x_BPN / largest).square().mean((1, 2), keepdim=True).sqrt()
    return rms.clamp(min=torch.finfo(x_BPN.dtype).tiny)


@functools.lru_cache(maxsize=64)
def _features(hidden: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Where the first layer of a deep momentum starts and decays to: fixed, unit variance."""
    with torch.inference_mode(False):  # or it could be of no use to training later
        draw = torch.randn(hidden, width, generator=torch.Generator().manual_seed(hidden))
        return draw.to(device=device, dtype=dtype)
