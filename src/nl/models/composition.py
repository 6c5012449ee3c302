"""Feed-forward networks for group composition. Floor 3.

sequential_mlp: y = W_out (W_in [x_1; ...; x_k])^k, the power taken element-wise. two_layer:
y = scale W^T phi(U x_1 + V x_2). No biases. Sources: arXiv 2602.03655; both are homogeneous in the
weights of one neuron, so ``optim=scaled_sgd`` applies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nl.config import register, require
from nl.config.groups import ModelConfig
from nl.core.output import Knobs, Output
from nl.nn.quadratic import scaled_normal

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "square": torch.square,
    "relu": F.relu,
    "linear": lambda x: x,
    "tanh": torch.tanh,
    "gelu": F.gelu,
}
DEGREES = {"square": 3, "relu": 2, "linear": 2}
"""Degree of a two-layer neuron's output in its own weights; others are not homogeneous."""


@register("model", "sequential_mlp")
@dataclass(frozen=True, kw_only=True)
class SequentialMLPConfig(ModelConfig):
    """One hidden layer over all elements at once, raised to their number."""

    row_kind: ClassVar[str] = "words"
    """Elements of a group."""

    size: int = 10
    """Numbers per input vector and per output vector: the order of the group."""
    length: int = 2
    """k, the number of elements; the power of the hidden layer."""
    hidden: int = 300
    """Hidden neurons."""
    init_scale: float = 0.01
    """Scale of the initial weights: smaller lingers longer on each plateau."""

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("hidden", 1), ("length", 2)):
            value = getattr(self, name)
            require(value >= least, f"{name}: {value}; must be >= {least}.")
        require(self.init_scale > 0, f"init_scale: {self.init_scale}; must be > 0.")

    @property
    def initial_norm(self) -> float:
        """Root mean square norm of a neuron's weights before training."""
        return self.init_scale * math.sqrt(1 + self.size / self.hidden)

    def build(self) -> SequentialMLP:
        """The model with weights drawn from torch's global generator."""
        return SequentialMLP(self)


class SequentialMLP(nn.Module):
    """inputs (B, k, P) -> pred (B, P)."""

    neuron_axes: ClassVar[dict[str, int]] = {"drive": 0, "out": 1}
    """Neuron i reads with row i and writes with column i."""

    def __init__(self, config: SequentialMLPConfig) -> None:
        super().__init__()
        self.config = config
        self.neuron_degree = config.length + 1
        inputs = config.length * config.size
        self.drive = scaled_normal(config.hidden, inputs, config.init_scale)
        self.out = scaled_normal(config.size, config.hidden, config.init_scale)

    def forward(self, inputs: Tensor, state: Any = None, knobs: Knobs | None = None) -> Output:
        _check_length(inputs, self.config.length)
        hidden = F.linear(inputs.flatten(1), self.drive)
        return Output(F.linear(hidden**self.config.length, self.out))

    def neurons(self) -> tuple[Tensor, Tensor, float]:
        """What every neuron reads (H, k, P) and writes (H, P), and the factor of the output."""
        return self.drive.unflatten(1, (self.config.length, -1)), self.out.T, 1.0

    def init_state(self, batch: int) -> None:
        """None: a word is read whole, nothing is carried to the next batch."""

    def shard_units(self) -> Sequence[nn.Module]:
        """None: two matrices."""
        return []

    def flops_per_token(self) -> int:
        """Forward FLOPs per input vector, its share of the readout included."""
        c = self.config
        return 2 * c.hidden * c.size * (c.length + 1) // c.length


@register("model", "two_layer")
@dataclass(frozen=True, kw_only=True)
class TwoLayerConfig(ModelConfig):
    """One hidden layer over two elements."""

    row_kind: ClassVar[str] = "words"
    """Elements of a group."""

    size: int = 6
    """Numbers per input vector and per output vector: the order of the group."""
    hidden: int = 180
    """Hidden neurons."""
    init_scale: float = 0.001
    """Scale of the initial weights."""
    activation: Literal["square", "relu", "linear", "tanh", "gelu"] = "square"
    """phi."""
    output_scale: float = 1.0
    """Factor of the output."""

    def __post_init__(self) -> None:
        for name in ("size", "hidden"):
            value = getattr(self, name)
            require(value >= 1, f"{name}: {value}; must be >= 1.")
        require(self.init_scale > 0, f"init_scale: {self.init_scale}; must be > 0.")
        require(self.output_scale != 0, "output_scale: 0; nothing could be learned.")

    @property
    def length(self) -> int:
        """Elements that are composed."""
        return 2

    @property
    def initial_norm(self) -> float | None:
        """Root mean square norm of a neuron's weights before training; None: not a square."""
        return math.sqrt(2) * self.init_scale if self.activation == "square" else None

    def build(self) -> TwoLayer:
        """The model with weights drawn from torch's global generator."""
        return TwoLayer(self)


class TwoLayer(nn.Module):
    """inputs (B, 2, P) -> pred (B, P)."""

    neuron_axes: ClassVar[dict[str, int]] = {"left": 0, "right": 0, "out": 0}
    """Neuron i has a row of every matrix."""

    def __init__(self, config: TwoLayerConfig) -> None:
        super().__init__()
        self.config = config
        if config.activation in DEGREES:
            self.neuron_degree = DEGREES[config.activation]
        half = config.init_scale / math.sqrt(2)
        self.left = scaled_normal(config.hidden, config.size, half)
        self.right = scaled_normal(config.hidden, config.size, half)
        self.out = scaled_normal(config.hidden, config.size, config.init_scale)

    def forward(self, inputs: Tensor, state: Any = None, knobs: Knobs | None = None) -> Output:
        _check_length(inputs, 2)
        drive = F.linear(inputs[:, 0], self.left) + F.linear(inputs[:, 1], self.right)
        hidden = ACTIVATIONS[self.config.activation](drive)
        return Output(self.config.output_scale * hidden @ self.out)

    def neurons(self) -> tuple[Tensor, Tensor, float]:
        """What every neuron reads (H, 2, P) and writes (H, P), and the factor of the output."""
        return torch.stack([self.left, self.right], dim=1), self.out, self.config.output_scale

    def init_state(self, batch: int) -> None:
        """None: a word is read whole, nothing is carried to the next batch."""

    def shard_units(self) -> Sequence[nn.Module]:
        """None: three matrices."""
        return []

    def flops_per_token(self) -> int:
        """Forward FLOPs per input vector, half of the readout included."""
        return 3 * self.config.hidden * self.config.size


def _check_length(inputs: Tensor, length: int) -> None:
    if inputs.shape[1] != length:
        raise ValueError(
            f"inputs: {inputs.shape[1]} elements; this model composes {length}: make stream.length "
            "and model.length equal"
        )
