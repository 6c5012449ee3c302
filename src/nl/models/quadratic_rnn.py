"""The quadratic recurrent network for group composition. Floor 3.

h_2 = phi(W_in x_1, W_drive x_2); h_t = phi(W_mix h_{t-1}, W_drive x_t); y_t = W_out h_t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nl.config import register, require
from nl.config.groups import ModelConfig
from nl.core.output import Knobs, Output
from nl.nn.quadratic import QuadraticCell, scaled_normal
from nl.ops.recurrent import Transform


@register("model", "quadratic_rnn")
@dataclass(frozen=True, kw_only=True)
class QuadraticRNNConfig(ModelConfig):
    """A recurrent network without biases; every step multiplies."""

    row_kind: ClassVar[str] = "words"
    """Elements of a group."""

    size: int = 5
    """Numbers per input vector and per output vector: the order of the group."""
    hidden: int = 48
    """Hidden neurons."""
    init_scale: float = 0.1
    """Scale of the initial weights: smaller lingers longer on each plateau."""
    transform: Transform = "quadratic"
    """quadratic: (a + b)^2. multiplicative: a b."""
    readout: Literal["last", "prefixes"] = "last"
    """last: one output (B, P). prefixes: one per input from the second on (B, T - 1, P)."""

    def __post_init__(self) -> None:
        for name in ("size", "hidden"):
            value = getattr(self, name)
            require(value >= 1, f"{name}: {value}; must be >= 1.")
        require(self.init_scale > 0, f"init_scale: {self.init_scale}; must be > 0.")

    def build(self) -> QuadraticRNN:
        """The model with weights drawn from torch's global generator."""
        return QuadraticRNN(self)


class QuadraticRNN(nn.Module):
    """inputs (B, T, P), T >= 2 -> pred (B, P) or (B, T - 1, P)."""

    may_skip_parameters = True
    """Words of length 2 never use ``cell.mix``."""
    neuron_axes: ClassVar[dict[str, int]] = {"first": 0, "cell.drive": 0, "out": 1}
    """Neuron i reads with row i of the embeddings and writes with column i of the readout."""
    neuron_degree = 3
    """Of words of length 2: two inputs and a readout. In longer words a neuron comes back, and
    ``optim.exponent`` may be set lower."""

    def __init__(self, config: QuadraticRNNConfig) -> None:
        super().__init__()
        self.config = config
        self.first = scaled_normal(config.hidden, config.size, config.init_scale)
        self.cell = QuadraticCell(config.size, config.hidden, config.init_scale, config.transform)
        self.out = scaled_normal(config.size, config.hidden, config.init_scale)

    def forward(self, inputs: Tensor, state: Any = None, knobs: Knobs | None = None) -> Output:
        if inputs.shape[1] < 2:
            raise ValueError(f"inputs: {inputs.shape[1]} elements; composition needs at least 2")
        hidden = self.cell.join(F.linear(inputs[:, 0], self.first), inputs[:, 1])
        outputs = [hidden]
        for step in range(2, inputs.shape[1]):
            hidden = self.cell(hidden, inputs[:, step])
            outputs.append(hidden)
        if self.config.readout == "last":
            return Output(F.linear(hidden, self.out))
        return Output(F.linear(torch.stack(outputs, dim=1), self.out))

    def init_state(self, batch: int) -> None:
        """None: a word is read whole, nothing is carried to the next batch."""

    def shard_units(self) -> Sequence[nn.Module]:
        """The recurrent cell."""
        return [self.cell]

    def flops_per_token(self) -> int:
        """Forward FLOPs per input vector, the recurrent step with its readout."""
        hidden, size = self.config.hidden, self.config.size
        return 2 * hidden * (hidden + 2 * size)
