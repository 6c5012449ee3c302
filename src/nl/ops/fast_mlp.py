"""Fast two-layer memories M(x) = x + W1 phi(W2 x): reading, and writing one chunk exactly. Floor 1.

A bank holds memories that are written together, from the same keys: ``full`` ones map K -> K with
an identity skip, ``scalar`` ones map K -> 1. Their first layers are one stacked matrix, so one
product serves all. Letters: N rows times heads, M memories (full first, then scalar), F hidden,
K head size, C tokens. Tokens are the LAST dimension throughout: every product is then batched
over contiguous blocks.

The write of one token, all of it at the weights of the chunk start (z = W2 k, a = phi(z)):
    e = M(k) - target,  delta = (W1^T e) phi'(z)         (e = -target for the dot objective)
    D2 <- D2 (alpha I - r k k^T) - r delta k^T,  W2 = base2 + D2
    D1 by ``output``:  decay        D1 <- alpha D1 - r e a^T
                       delta        D1 <- D1 (alpha I - r x x^T) - r |a| e x^T,   x = a/|a|
                       delta_error  the same with (base1 a - (target - k))/|a| for |a| e, that is
                                    with the error at the running W1 instead of the frozen one
where base is what the memory decays toward. Source: self-modifying Titans (Nested Learning,
NeurIPS 2025) with the preconditioner applied to both layers; chunk form: ``nl.ops.delta_rule``.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from nl.core.state import state_type
from nl.ops.delta_rule import ChunkDecay, delta_inverse

Activation = Literal["silu", "gelu"]
Objective = Literal["l2", "dot"]
OutputRule = Literal["delta_error", "delta", "decay"]

_NORM_EPS = 1e-6


@state_type
class FastWeights(NamedTuple):
    """The weights of a bank, or what was added to them.

    Attributes:
        hidden: (..., M * F, K) first layers W2, stacked.
        full: (..., m, K, F) second layers of the full memories.
        scalar: (..., s, 1, F) second layers of the scalar memories; None where there are none.
    """

    hidden: Tensor
    full: Tensor
    scalar: Tensor | None = None


class WriteRule(NamedTuple):
    """How a bank learns; see the module's equations."""

    activation: Activation = "silu"
    objective: Objective = "l2"
    output: OutputRule = "delta_error"


class WriteTokens(NamedTuple):
    """What a bank is taught in one chunk.

    Attributes:
        keys: (N, K, C).
        full: (N, m or 1, K, C) targets of the full memories.
        scalar: (N, s, 1, C) targets of the scalar memories, or None.
        rate: (N, C) step sizes.
    """

    keys: Tensor
    full: Tensor
    scalar: Tensor | None
    rate: Tensor


class _Silu(torch.autograd.Function):
    """(phi, phi') of SiLU in one node; the backward pass needs z only."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(z)
        gate = torch.sigmoid(z)
        value = z * gate
        return value, torch.addcmul(gate, value, 1 - gate)

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor, grad_slope: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        gate = torch.sigmoid(z)
        rest = 1 - gate
        slope = torch.addcmul(gate, z * gate, rest)
        bend = gate.mul_(rest).mul_((rest.mul_(2).sub_(1)).mul_(z).add_(2))
        return (grad_value * slope).addcmul_(grad_slope, bend)


class _Gelu(torch.autograd.Function):
    """(phi, phi') of the exact GELU in one node."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(z)
        share = 0.5 * (1 + torch.erf(z * math.sqrt(0.5)))
        density = torch.exp(-0.5 * z * z) * (1 / math.sqrt(2 * math.pi))
        return z * share, torch.addcmul(share, z, density)

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor, grad_slope: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        share = 0.5 * (1 + torch.erf(z * math.sqrt(0.5)))
        density = torch.exp(-0.5 * z * z) * (1 / math.sqrt(2 * math.pi))
        slope = torch.addcmul(share, z, density)
        return (grad_value * slope).addcmul_(grad_slope, density * (2 - z * z))


def activation(z: Tensor, name: Activation) -> Tensor:
    """The activation of the hidden layer."""
    return torch.nn.functional.silu(z) if name == "silu" else torch.nn.functional.gelu(z)


def activation_and_slope(z: Tensor, name: Activation) -> tuple[Tensor, Tensor]:
    """phi(z) and phi'(z); differentiable once more."""
    node = _Silu if name == "silu" else _Gelu
    value, slope = node.apply(z)
    return value, slope


def fast_mlp(weights: FastWeights, x: Tensor, name: Activation) -> tuple[Tensor, Tensor | None]:
    """Read a bank with an input of its own for every memory.

    Args:
        weights: of the bank, batch (N,).
        x: (N, M, K, C) inputs, or (N, 1, K, C) for one input shared by all.
        name: activation.

    Returns:
        (N, m, K, C) outputs of the full memories and (N, s, 1, C) of the scalar ones, or None.
    """
    memories = weights.full.shape[1]
    total = memories + (0 if weights.scalar is None else weights.scalar.shape[1])
    if x.shape[1] == 1:
        z = (weights.hidden @ x[:, 0]).unflatten(1, (total, -1))
    else:
        z = weights.hidden.unflatten(1, (total, -1)) @ x
    a = activation(z, name)
    full = x[:, :memories] + weights.full @ a[:, :memories]
    return full, None if weights.scalar is None else weights.scalar @ a[:, memories:]


def _write_output(
    added: Tensor,
    a: Tensor,
    error: Tensor,
    rate: Tensor,
    decay: ChunkDecay,
    rule: OutputRule,
) -> Tensor:
    """The new D1 (N, m, P, F) of one kind; ``a`` (N, m, F, C), ``error`` (N, m, P, C)."""
    step = rate[:, None, None, :]
    kept = decay.total[:, None, None, None] * added
    after = decay.after[:, None, None, :]
    if rule == "decay":
        return kept - (step * after * error) @ a.transpose(-1, -2)
    norm = (a.square().sum(-2, keepdim=True) + _NORM_EPS).sqrt()
    key = a / norm
    before = decay.before[:, None, None, :]
    if rule == "delta":
        wanted = before * (added @ key) + norm * error
    else:
        wanted = (before - 1) * (added @ key) + error / norm
    inverse = delta_inverse(key.transpose(-1, -2) @ key, decay.ratio[:, None], rate[:, None])
    update = (step * wanted) @ inverse.transpose(-1, -2)
    return kept - update @ (after * key).transpose(-1, -2)


def fast_mlp_write(
    weights: FastWeights,
    added: FastWeights,
    tokens: WriteTokens,
    decay: ChunkDecay,
    rule: WriteRule,
) -> FastWeights:
    """What has been added to a bank after one chunk (the D of the module's equations).

    Args:
        weights: W at the chunk start.
        added: D at the chunk start; W - D is what the memory decays toward.
        tokens: keys, targets and rates.
        decay: products of the chunk's decays, (N, ...).
        rule: activation, objective, rule of the second layer.

    Returns:
        D at the chunk end.
    """
    keys, rate = tokens.keys, tokens.rate
    memories = weights.full.shape[1]
    z = weights.hidden @ keys
    a, slope = activation_and_slope(z, rule.activation)
    total = z.shape[1] // weights.full.shape[-1]
    a = a.unflatten(1, (total, -1))
    hidden = a[:, :memories]
    error = -tokens.full
    if rule.objective == "l2":
        error = keys.unsqueeze(1) + weights.full @ hidden + error
    full = _write_output(added.full, hidden, error, rate, decay, rule.output)
    back = weights.full.transpose(-1, -2) @ error
    scalar = None
    if weights.scalar is not None and added.scalar is not None and tokens.scalar is not None:
        hidden = a[:, memories:]
        error = -tokens.scalar
        if rule.objective == "l2":
            error = weights.scalar @ hidden + error
        scalar = _write_output(added.scalar, hidden, error, rate, decay, rule.output)
        back = torch.cat([back, weights.scalar.transpose(-1, -2) * error], dim=1)
    grads = back.flatten(1, 2) * slope
    inverse = delta_inverse(keys.transpose(-1, -2) @ keys, decay.ratio, rate)
    seen = decay.before[:, None, :] * (added.hidden @ keys)
    update = (rate[:, None, :] * (seen + grads)) @ inverse.transpose(-1, -2)
    written = update @ (decay.after[:, None, :] * keys).transpose(-1, -2)
    first = decay.total[:, None, None] * added.hidden - written
    return FastWeights(first, full, scalar)
