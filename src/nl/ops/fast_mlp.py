"""Fast two-layer memories M(x) = x + W1 phi(W2 x): reading, and writing one chunk exactly. Floor 1.

A bank holds memories of one kind that are written together from the same keys: K -> K with an
identity skip (unless ``skip`` is false), or K -> 1 without. Letters: N rows times heads, M
memories, F hidden, K head size, P outputs (K or 1), C tokens. Tokens are the LAST dimension
throughout: every product is then batched over contiguous blocks.

The write of one token, its gradients at the weights of the chunk start (z = W2 k, a = phi(z)):
    e = M(k) - target,  delta = (W1^T e) phi'(z)         (e = -target for the dot objective)
    D2 <- D2 (alpha I - s k k^T) - s delta k^T           (s = r, or a smaller rate of its own)
    D1 by ``output``:  decay        D1 <- alpha D1 - r e a^T
                       delta        D1 <- D1 (alpha I - r x x^T) - r |a| e x^T,   x = a / |a|
                       delta_error  the same with (B1 a - (target - k)) / |a| for |a| e, that is
                                    with the error at the running W1 instead of the frozen one
where W = B + D and B is what the memory decays toward. Source: self-modifying Titans (Nested
Learning, NeurIPS 2025), here with the preconditioner on both layers; chunk form as in
``nl.ops.delta_rule``, with every per-token factor moved onto a C x C matrix.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from nl.core.state import state_type
from nl.ops.delta_rule import ChunkDecay, chunk_decay, unit_lower_inverse

Activation = Literal["silu", "gelu"]
Objective = Literal["l2", "dot"]
OutputRule = Literal["delta_error", "delta", "decay"]

NORM_EPS = 1e-6
"""Added to |a|^2, so that a zero feature vector divides by something."""


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
    """How a bank learns; see the module's equations."""

    activation: Activation = "silu"
    objective: Objective = "l2"
    output: OutputRule = "delta_error"
    skip: bool = True


class WriteFrame(NamedTuple):
    """What all writes from the same keys share, whatever their rates.

    Attributes:
        keys: (N, K, C).
        gram: (N, C, C) inner products of the keys.
        decay: products of the chunk's decays.
    """

    keys: Tensor
    gram: Tensor
    decay: ChunkDecay


class WriteSystem(NamedTuple):
    """What all banks written from the same keys at the same rates share.

    Attributes:
        keys: (N, K, C).
        decay: products of the chunk's decays.
        pull: (N, C, C) r_t times the decay from token i to the one before t; L = pull * gram.
        reach: (N, C, C) at [i, t]: r_i times the decay from token t to the chunk end.
        spread: (N, C, C) turns right-hand sides (N, ., C) into updates of the first layers.
    """

    keys: Tensor
    decay: ChunkDecay
    pull: Tensor
    reach: Tensor
    spread: Tensor


def write_frame(keys: Tensor, log_decay: Tensor) -> WriteFrame:
    """The frame of one chunk from its keys (N, K, C) and log decays (N, C)."""
    return WriteFrame(keys, keys.transpose(1, 2) @ keys, chunk_decay(log_decay))


def write_system(frame: WriteFrame, rate: Tensor, hidden_rate: Tensor | None = None) -> WriteSystem:
    """Solve the system of the first layers once.

    Args:
        frame: keys and decays of the chunk.
        rate: (N, C) step sizes of the second layers.
        hidden_rate: (N, C) step sizes of the first layers; None = ``rate``.
    """
    decay = frame.decay
    ratio, after = decay.ratio, decay.after.unsqueeze(-2)
    pull, reach = rate.unsqueeze(-1) * ratio, rate.unsqueeze(-1) * after
    if hidden_rate is None:
        spread = _spread(frame.gram, pull, reach)
    else:
        slow = hidden_rate.unsqueeze(-1)
        spread = _spread(frame.gram, slow * ratio, slow * after)
    return WriteSystem(frame.keys, decay, pull, reach, spread)


def _spread(gram: Tensor, pull: Tensor, reach: Tensor) -> Tensor:
    """diag(r) (I + L)^-T diag(decay to the end) for keys with these inner products."""
    inverse = unit_lower_inverse(gram * pull)
    return inverse.transpose(-1, -2) * reach


class _Silu(torch.autograd.Function):
    """(phi, phi') of SiLU in one node: with g the sigmoid, phi'' = (1 - g) (2 phi' - phi)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        gate = torch.sigmoid(z)
        value = z * gate
        rest = 1 - gate
        slope = gate.addcmul_(value, rest)
        ctx.save_for_backward(value, slope, rest)
        return value, slope

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor, grad_slope: Tensor) -> Tensor:
        value, slope, rest = ctx.saved_tensors
        half_bend = torch.sub(slope, value, alpha=0.5).mul_(rest)
        return (grad_value * slope).addcmul_(grad_slope, half_bend, value=2)


class _Gelu(torch.autograd.Function):
    """(phi, phi') of the exact GELU in one node: phi'' = n(z) (2 - z^2), n the normal density."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        share = 0.5 * (1 + torch.erf(z * math.sqrt(0.5)))
        density = torch.exp(-0.5 * z * z) * (1 / math.sqrt(2 * math.pi))
        slope = torch.addcmul(share, z, density)
        ctx.save_for_backward(z, slope, density)
        return z * share, slope

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor, grad_slope: Tensor) -> Tensor:
        z, slope, density = ctx.saved_tensors
        return (grad_value * slope).addcmul_(grad_slope, density * (2 - z * z))


def activation_and_slope(z: Tensor, name: Activation) -> tuple[Tensor, Tensor]:
    """phi(z) and phi'(z), differentiable once more."""
    value, slope = (_Silu if name == "silu" else _Gelu).apply(z)
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


def _write_output(
    added: Tensor, a: Tensor, error: Tensor, system: WriteSystem, rule: OutputRule
) -> Tensor:
    """The new D1: ``added`` (N, M, P, F), ``a`` (N, M, F, C), ``error`` (N, M, P, C)."""
    decay, reach = system.decay, system.reach.unsqueeze(1)
    kept = decay.total[:, None, None, None] * added
    if rule == "decay":
        step = reach.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
        return kept - (step * error) @ a.transpose(-1, -2)
    square = a.square().sum(-2, keepdim=True) + NORM_EPS
    shrink = square.rsqrt()
    x = a * shrink
    seen, before = added @ x, decay.before[:, None, None]
    if rule == "delta":
        wanted = before * seen + square.sqrt() * error
    else:
        wanted = torch.addcmul(shrink * error, seen, before - 1)
    gram = x.transpose(-1, -2) @ x
    update = wanted @ _spread(gram, system.pull.unsqueeze(1), reach)
    return kept - update @ x.transpose(-1, -2)


def fast_mlp_write(
    weights: FastWeights,
    added: FastWeights,
    targets: Tensor,
    system: WriteSystem,
    rule: WriteRule,
) -> FastWeights:
    """What has been added to a bank after one chunk (the D of the module's equations).

    Args:
        weights: W at the chunk start.
        added: D at the chunk start; W - D is what the memory decays toward.
        targets: (N, M, P, C), or (N, 1, P, C) for one target for all.
        system: keys, rates, decays.
        rule: activation, objective, rule of the second layer.

    Returns:
        D at the chunk end.
    """
    keys, decay = system.keys, system.decay
    z = weights.hidden @ keys
    value, slope = activation_and_slope(z, rule.activation)
    a = value.unflatten(1, (weights.output.shape[1], -1))
    error = -targets
    if rule.objective == "l2":
        error = weights.output @ a + error
        if rule.skip and _fits(weights):
            error = error + keys.unsqueeze(1)
    error = error.expand(-1, a.shape[1], -1, -1)
    back = (weights.output.transpose(-1, -2) @ error).flatten(1, 2)
    wanted = torch.baddbmm(back * slope, added.hidden, decay.before.unsqueeze(1) * keys)
    hidden = decay.total[:, None, None] * added.hidden
    hidden = torch.baddbmm(hidden, wanted @ system.spread, keys.transpose(1, 2), alpha=-1)
    return FastWeights(hidden, _write_output(added.output, a, error, system, rule.output))


def fast_mlp_write_reference(
    weights: FastWeights,
    added: FastWeights,
    targets: Tensor,
    tokens: tuple[Tensor, Tensor, Tensor, Tensor],
    rule: WriteRule,
) -> FastWeights:
    """The token loop that ``fast_mlp_write`` must equal, straight from the module's equations.

    ``tokens`` is (keys (N, K, C), rate (N, C), rate of the first layers (N, C), log decay (N, C));
    the other arguments and the result are those of ``fast_mlp_write``.
    """
    keys, rate, hidden_rate, log_decay = tokens
    memories = weights.output.shape[1]
    first = weights.hidden.unflatten(1, (memories, -1))
    hidden, output = added.hidden.unflatten(1, (memories, -1)), added.output
    base = weights.output - added.output
    for t in range(keys.shape[-1]):
        key, target = keys[:, None, :, t, None], targets[..., t, None]
        step, slow, kept = (v[:, t, None, None, None] for v in (rate, hidden_rate, log_decay.exp()))
        a, slope = activation_and_slope(first @ key, rule.activation)
        skip = key if rule.skip and _fits(weights) else torch.zeros_like(key[:, :, :1])
        error = (skip + weights.output @ a if rule.objective == "l2" else 0) - target
        delta = (weights.output.mT @ error) * slope
        hidden = kept * hidden - slow * (hidden @ key + delta) @ key.mT
        norm = (a.square().sum(-2, keepdim=True) + NORM_EPS).sqrt()
        x = a / norm
        if rule.output == "decay":
            output = kept * output - step * error @ a.mT
            continue
        taught = norm * error if rule.output == "delta" else base @ x - (target - skip) / norm
        output = kept * output - step * (output @ x + taught) @ x.mT
    return FastWeights(hidden.flatten(1, 2), output)
