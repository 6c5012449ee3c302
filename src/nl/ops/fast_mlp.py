"""Fast two-layer memories M(x) = x + W1 phi(W2 x): activations and reading. Floor 1.

A bank holds memories of one kind that are written together from the same keys: K -> K with an
identity skip (where asked for), or K -> 1 without. Letters: N rows times heads, M memories, F
hidden, K head size, P outputs (K or 1), C tokens. Tokens are the LAST dimension throughout: every
product is then batched over contiguous blocks. ``nl.ops.fast_write`` has the writes.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from nl.core.state import state_type

Activation = Literal["silu", "gelu"]
Objective = Literal["l2", "dot"]
OutputRule = Literal["delta_error", "delta", "decay"]


@state_type
class FastWeights(NamedTuple):
    """The weights of a bank, or what has been added to them.

    Attributes:
        hidden: (N, M * F, K) first layers W2, stacked.
        output: (N, M, P, F) second layers W1.
    """

    hidden: Tensor
    output: Tensor


class WriteRule(NamedTuple):
    """How memories learn; see ``nl.ops.fast_write``.

    ``anchored``: only what was added decays. ``clip``: the largest move of a hidden unit's input
    that a token asks of a first layer.
    """

    activation: Activation = "silu"
    objective: Objective = "l2"
    output: OutputRule = "delta_error"
    anchored: bool = True
    clip: float = math.inf


class Bank(NamedTuple):
    """Memories of one kind and what they are taught.

    Attributes:
        initial: (H, ...) initial weights B.
        added: (N, ...) what has been added to them, so that B + added is in force.
        targets: (N, M, P, C).
        skip: whether answers contain the input.
    """

    initial: FastWeights
    added: FastWeights
    targets: Tensor
    skip: bool


def in_force(initial: Tensor, added: Tensor) -> Tensor:
    """Initial weights (H, ...) plus what was added to them (N, ...) -> (N, ...)."""
    return (initial + added.unflatten(0, (-1, initial.shape[0]))).flatten(0, 1)


def slope_of(z: Tensor, name: Activation) -> tuple[Tensor, Tensor, Tensor]:
    """phi(z), phi'(z) and what ``bend`` needs beside them, without autograd."""
    if name == "silu":
        gate = torch.sigmoid(z)
        value = z * gate
        rest = 1 - gate
        return value, gate.addcmul_(value, rest), rest
    share = torch.erf(z * math.sqrt(0.5)).add_(1).mul_(0.5)
    density = (z * z).mul_(-0.5).exp_().mul_(1 / math.sqrt(2 * math.pi))
    return z * share, share.addcmul_(z, density), density


def bend(z: Tensor, value: Tensor, slope: Tensor, kept: Tensor, name: Activation) -> Tensor:
    """phi''(z) from what ``slope_of`` was given and returned.

    SiLU with gate g: (1 - g) (2 phi' - phi). GELU with n the normal density: n(z) (2 - z^2).
    """
    if name == "silu":
        return torch.sub(slope, value, alpha=0.5).mul_(kept).mul_(2)
    return torch.addcmul(kept * 2, kept, z * z, value=-1)


class _ActivationAndSlope(torch.autograd.Function):
    """(phi, phi') in one node."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, name: Activation) -> tuple[Tensor, Tensor]:
        value, slope, kept = slope_of(z, name)
        ctx.name = name
        ctx.save_for_backward(value if name == "silu" else z, slope, kept)
        return value, slope

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor, grad_slope: Tensor) -> tuple[Tensor, None]:
        first, slope, kept = ctx.saved_tensors
        curve = bend(first, first, slope, kept, ctx.name)
        return (grad_value * slope).addcmul_(grad_slope, curve), None


def activation_and_slope(z: Tensor, name: Activation) -> tuple[Tensor, Tensor]:
    """phi(z) and phi'(z), differentiable once more."""
    value, slope = _ActivationAndSlope.apply(z, name)
    return value, slope


def fast_mlp(weights: FastWeights, x: Tensor, name: Activation, skip: bool = True) -> Tensor:
    """Read a bank.

    Args:
        weights: of the bank.
        x: (N, M, K, C), an input for every memory, or (N, 1, K, C), one for all.
        name: activation.
        skip: add the input to outputs of its size.

    Returns:
        (N, M, P, C), computed in the dtype of the weights or as autocast says.
    """
    memories = weights.output.shape[1]
    x = x.to(weights.hidden.dtype)
    if x.shape[1] == 1:
        z = (weights.hidden @ x.squeeze(1)).unflatten(1, (memories, -1))
    else:
        z = weights.hidden.unflatten(1, (memories, -1)) @ x
    y = weights.output @ (silu(z) if name == "silu" else gelu(z))
    return y + x if skip and _fits(weights) else y


def _fits(weights: FastWeights) -> bool:
    """Whether outputs have the size of inputs, so that an identity skip can be."""
    return weights.output.shape[2] == weights.hidden.shape[2]


def fast_mlp_reference(
    weights: FastWeights, x: Tensor, name: Activation, skip: bool = True
) -> Tensor:
    """The loop over memories and tokens that ``fast_mlp`` must equal; same arguments."""
    rows, memories, outputs, hidden = weights.output.shape
    y = x.new_zeros(rows, memories, outputs, x.shape[-1])
    for m in range(memories):
        first = weights.hidden[:, m * hidden : (m + 1) * hidden]
        for t in range(x.shape[-1]):
            given = x[:, m if x.shape[1] > 1 else 0, :, t, None]
            z = first @ given
            made = weights.output[:, m] @ (silu(z) if name == "silu" else gelu(z))
            y[:, m, :, t] = (made + given if skip and _fits(weights) else made).squeeze(-1)
    return y
