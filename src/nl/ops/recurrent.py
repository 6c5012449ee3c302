"""Recurrences over the tokens of a segment: LSTM, GRU and the normalised quadratic cell. Floor 1.

What reads the inputs is one product for all tokens, what is left waits token for token:

    lstm       i, f, g, o = W x_t + U h_{t-1} + b
               c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g)       h_t = sigmoid(o) tanh(c_t)
    gru        r, z = sigmoid(W x_t + U h_{t-1} + b)
               n = tanh(W_n x_t + b_n + r (U_n h_{t-1} + d))       h_t = (1 - z) n + z h_{t-1}
    quadratic  z_t = phi(U h_{t-1}, d_t)                           h_t = z_t / rms(z_t)

with phi(a, b) = (a + b)^2 or a b, element-wise, and rms(z)^2 = mean(z^2) + 1e-6. Sources:
Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000; Cho et al. 2014 (arXiv
1406.1078), the reset gate behind the product as in torch; arXiv 2602.03655 for phi, the norm is
ours. Shapes: B rows, T tokens, D inputs, F units.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

Transform = Literal["quadratic", "multiplicative"]
Weights = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of the input (G F, D), of the hidden vector (G F, F), and a bias (G F) for each; G gates."""

_EPS = 1e-6


def lstm(
    x_BTD: Tensor, hidden_BF: Tensor, cell_BF: Tensor, weights: Weights
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (B, T, F), the last hidden vector and the last cell; torch's fused kernel."""
    state = [hidden_BF[None].contiguous(), cell_BF[None].contiguous()]
    train = torch.is_grad_enabled()
    out, hidden, cell = torch.lstm(x_BTD, state, weights, True, 1, 0.0, train, False, True)
    return out, hidden[0], cell[0]


def lstm_reference(
    x_BTD: Tensor, hidden_BF: Tensor, cell_BF: Tensor, weights: Weights
) -> tuple[Tensor, Tensor, Tensor]:
    """The equations, token for token."""
    into, across, bias, other = weights
    outputs = []
    for x_BD in x_BTD.unbind(1):
        gates = x_BD @ into.T + bias + hidden_BF @ across.T + other
        enter, keep, new, leave = gates.chunk(4, dim=1)
        cell_BF = torch.sigmoid(keep) * cell_BF + torch.sigmoid(enter) * torch.tanh(new)
        hidden_BF = torch.sigmoid(leave) * torch.tanh(cell_BF)
        outputs.append(hidden_BF)
    return torch.stack(outputs, 1), hidden_BF, cell_BF


def gru(x_BTD: Tensor, hidden_BF: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, F) and the last hidden vector; torch's fused kernel."""
    state, train = hidden_BF[None].contiguous(), torch.is_grad_enabled()
    out, hidden = torch.gru(x_BTD, state, weights, True, 1, 0.0, train, False, True)
    return out, hidden[0]


def gru_reference(x_BTD: Tensor, hidden_BF: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """The equations, token for token."""
    into, across, bias, other = weights
    outputs = []
    for x_BD in x_BTD.unbind(1):
        read = (x_BD @ into.T + bias).chunk(3, dim=1)
        held = (hidden_BF @ across.T + other).chunk(3, dim=1)
        reset, stay = torch.sigmoid(read[0] + held[0]), torch.sigmoid(read[1] + held[1])
        new = torch.tanh(read[2] + reset * held[2])
        hidden_BF = (1 - stay) * new + stay * hidden_BF
        outputs.append(hidden_BF)
    return torch.stack(outputs, 1), hidden_BF


def quadratic(
    drive_BTF: Tensor, hidden_BF: Tensor, mix_FF: Tensor, transform: Transform = "quadratic"
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, F) and the last hidden vector.

    Args:
        drive_BTF: what the inputs say, d.
        hidden_BF: before the first token.
        mix_FF: U.
        transform: phi; quadratic is (a + b)^2, multiplicative a b.
    """
    out: Tensor = _Quadratic.apply(drive_BTF, hidden_BF, mix_FF, transform)
    return out, out[:, -1].clone()  # a view would keep all outputs alive


def quadratic_reference(
    drive_BTF: Tensor, hidden_BF: Tensor, mix_FF: Tensor, transform: Transform = "quadratic"
) -> tuple[Tensor, Tensor]:
    """The equations, token for token."""
    outputs = []
    for drive_BF in drive_BTF.unbind(1):
        mixed = hidden_BF @ mix_FF.T
        z = (mixed + drive_BF).square() if transform == "quadratic" else mixed * drive_BF
        hidden_BF = z / (z.square().mean(-1, keepdim=True) + _EPS).sqrt()
        outputs.append(hidden_BF)
    return torch.stack(outputs, 1), hidden_BF


class _Quadratic(torch.autograd.Function):
    """The recurrence as one node: the gradient of the matrix is one product behind the loop."""

    @staticmethod
    def forward(
        ctx: Any, drive_BTF: Tensor, hidden_BF: Tensor, mix_FF: Tensor, transform: Transform
    ) -> Tensor:
        turned, squared = mix_FF.T, transform == "quadratic"
        met, scales, outputs = [], [], [hidden_BF]
        for drive_BF in drive_BTF.unbind(1):
            past = outputs[-1]
            a = torch.addmm(drive_BF, past, turned) if squared else past @ turned
            z = a.square() if squared else a * drive_BF
            scale = torch.rsqrt(z.square().mean(-1, keepdim=True) + _EPS)
            met.append(a)
            scales.append(scale)
            outputs.append(z * scale)
        out = torch.stack(outputs, 1)
        ctx.squared = squared
        ctx.save_for_backward(drive_BTF, mix_FF, out, torch.stack(met, 1), torch.stack(scales, 1))
        return out[:, 1:]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        with torch.autocast(grads[0].device.type, enabled=False):
            return _Quadratic._adjoints(ctx, grads[0])

    @staticmethod
    def _adjoints(ctx: Any, grad_BTF: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        drive_BTF, mix_FF, out, met_BTF, scale_BT1 = ctx.saved_tensors
        now = out[:, 1:]
        # z is a^2 or a d: what a turn of z does to a and, for the product, to d.
        to_a = scale_BT1 * (2 * met_BTF if ctx.squared else drive_BTF)
        steps = zip(*(t.unbind(1) for t in (grad_BTF, now, to_a)), strict=True)
        carried, found, raw = torch.zeros_like(out[:, 0]), [], []
        for grad, hidden, factor in reversed(list(steps)):
            grad = grad + carried
            grad = grad - hidden * (grad * hidden).mean(-1, keepdim=True)
            mixed = grad * factor
            carried = mixed @ mix_FF
            raw.append(grad)
            found.append(mixed)
        mixed_BTF = torch.stack(found[::-1], 1)
        to_mix = mixed_BTF.flatten(0, 1).T @ out[:, :-1].flatten(0, 1)
        if ctx.squared:
            return mixed_BTF, carried, to_mix, None
        return torch.stack(raw[::-1], 1) * scale_BT1 * met_BTF, carried, to_mix, None
