"""Recurrent layers: LSTM, GRU and a normalised quadratic network, read token for token. Floor 2.

A hidden vector goes from token to token (``nl.ops.recurrent`` has the equations), a projection
leads back to the width of the stream. Frozen (``write=False``), every token is read by one step
from the hidden vector as it is, and leaves it so.

Weights of lstm and gru start as torch's do, uniform in +-F^-1/2; the forget gate is open. The
quadratic network starts from h_0 = 1, so that U h_0 is a learned beginning. With U of variance 1/F
its normalised step neither shrinks nor stretches a small change of h on average if d has variance
1/3 in (a + b)^2 (any variance in a b): 2 / sqrt(3 (1 + var d)) = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from nl.config import require
from nl.core.state import state_type
from nl.nn.init import init_linear, zeros_beside
from nl.nn.quadratic import scaled_normal
from nl.ops.recurrent import Transform, Weights, gru, lstm, quadratic

DRIVE_SCALE = 3**-0.5
"""Of what the inputs say, where a small change of the hidden vector keeps its size."""


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """The recurrent layer of a block: lstm, gru or quadratic_rnn."""

    hidden: int | None = None
    """Hidden units; null: model.dim."""
    forget_bias: float = 1.0
    """lstm: bias of the forget gate at initialisation."""
    transform: Transform = "quadratic"
    """quadratic_rnn: how state and input meet; quadratic: (a + b)^2, multiplicative: a b."""

    def __post_init__(self) -> None:
        require(
            self.hidden is None or self.hidden >= 1,
            f"hidden: {self.hidden}; must be >= 1, or null for model.dim.",
        )


@state_type
class RecurrentState(NamedTuple):
    """What the layer carries from token to token; batch first, at least fp32.

    Attributes:
        hidden: (B, F).
        cell: (B, F) of lstm, else None.
        frozen: tokens read with ``write=False``.
    """

    hidden: Tensor
    cell: Tensor | None
    frozen: int


class Recurrent(nn.Module):
    """What the three layers share: projection, State, and how frozen tokens are read.

    Args:
        config: see ``RecurrentConfig``.
        dim: width D of input and output.
        residual_scale: of the output projection at initialisation.
    """

    shortest_period = 0
    """Every token reads its own write."""
    memory_path: str
    first = 0.0
    """Every number of a fresh hidden vector."""

    def __init__(self, config: RecurrentConfig, dim: int, residual_scale: float) -> None:
        super().__init__()
        self.config, self.hidden = config, config.hidden or dim
        self.out = nn.Linear(self.hidden, dim, bias=False)
        init_linear(self.out, scale=residual_scale)

    def init_state(self, batch: int) -> RecurrentState:
        """The state before the first token, for ``batch`` rows."""
        hidden = zeros_beside(self.out.weight, batch, self.hidden) + self.first
        cell = torch.zeros_like(hidden) if isinstance(self, LSTM) else None
        return RecurrentState(hidden, cell, 0)

    def forward(
        self, x: Tensor, state: RecurrentState | None = None, *, position: int, write: bool = True
    ) -> tuple[Tensor, RecurrentState]:
        """Read T tokens.

        Args:
            x: (B, T, D), normalised by the caller.
            state: of the tokens before; None is the fresh state.
            position: tokens read before this call; a recurrence has no use for it.
            write: False reads every token from the hidden vector as it is.

        Returns:
            (B, T, D) and the state after the last token.
        """
        del position
        length = x.shape[1]
        state = self.init_state(len(x)) if state is None else state
        given = x.to(state.hidden.dtype)
        with torch.autocast(x.device.type, enabled=False):
            if write:
                out, new = self.step(given, state)
            else:
                spread = [
                    None if t is None else t.repeat_interleave(length, 0)
                    for t in (state.hidden, state.cell)
                ]
                assert spread[0] is not None
                single = RecurrentState(spread[0], spread[1], state.frozen)
                out = self.step(given.reshape(-1, 1, given.shape[2]), single)[0]
                out, new = out.view(*x.shape[:2], -1), state._replace(frozen=state.frozen + length)
        return self.out(out.to(x.dtype)), new

    def step(self, x: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """(B, T, D) in the state's precision -> hidden vectors (B, T, F) and the state."""
        raise NotImplementedError


class _Gated(Recurrent):
    """lstm and gru: weights and biases for the gates, all gates one below another, as in torch."""

    gates: int
    weight_ih: nn.Parameter
    weight_hh: nn.Parameter
    bias_ih: nn.Parameter
    bias_hh: nn.Parameter
    hidden_matrices: ClassVar[dict[str, bool]] = {"weight_ih": True, "weight_hh": True}

    def __init__(self, config: RecurrentConfig, dim: int, residual_scale: float) -> None:
        super().__init__(config, dim, residual_scale)
        rows, bound = self.gates * self.hidden, self.hidden**-0.5
        shapes = {"weight_ih": (rows, dim), "weight_hh": (rows, self.hidden)}
        for name, shape in {**shapes, "bias_ih": (rows,), "bias_hh": (rows,)}.items():
            setattr(self, name, nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))

    def weights(self, dtype: torch.dtype) -> Weights:
        """What the recurrence takes."""
        found = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        a, b, c, d = (weight.to(dtype) for weight in found)
        return a, b, c, d


class LSTM(_Gated):
    """Long short-term memory (Hochreiter and Schmidhuber 1997), with a forget gate."""

    gates = 4
    memory_path = "lstm"

    def __init__(self, config: RecurrentConfig, dim: int, residual_scale: float) -> None:
        super().__init__(config, dim, residual_scale)
        forget = slice(self.hidden, 2 * self.hidden)
        with torch.no_grad():
            self.bias_ih[forget], self.bias_hh[forget] = config.forget_bias, 0.0

    def step(self, x: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """T steps."""
        assert state.cell is not None
        out, hidden, cell = lstm(x, state.hidden, state.cell, self.weights(x.dtype))
        return out, state._replace(hidden=hidden, cell=cell)


class GRU(_Gated):
    """Gated recurrent unit (arXiv 1406.1078)."""

    gates = 3
    memory_path = "gru"

    def step(self, x: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """T steps."""
        out, hidden = gru(x, state.hidden, self.weights(x.dtype))
        return out, state._replace(hidden=hidden)


class QuadraticRNN(Recurrent):
    """h_t = phi(U h_{t-1}, W x_t) at mean square 1: every step multiplies and stays finite.

    Source of phi: arXiv 2602.03655.
    """

    memory_path = "quadratic_rnn"
    hidden_matrices: ClassVar[dict[str, bool]] = {"mix": True, "drive": True}
    first = 1.0

    def __init__(self, config: RecurrentConfig, dim: int, residual_scale: float) -> None:
        super().__init__(config, dim, residual_scale)
        self.mix = scaled_normal(self.hidden, self.hidden, 1.0)
        self.drive = scaled_normal(self.hidden, dim, DRIVE_SCALE)

    def step(self, x: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """T steps; what the inputs say is one product before them."""
        drive, mix = x @ self.drive.to(x.dtype).T, self.mix.to(x.dtype)
        out, hidden = quadratic(drive, state.hidden, mix, self.config.transform)
        return out, state._replace(hidden=hidden)
