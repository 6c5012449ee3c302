"""Writing fast MLP memories: one chunk in closed form, with a backward pass of its own. Floor 1.

Several banks are written from the same keys at the same rates. Letters as in ``nl.ops.fast_mlp``;
H heads share the initial weights, so N = rows times H. With W = B + D the weights at the chunk
start (B initial, D added; D = W where nothing is anchored), z = W2 k, a = phi(z), and per token t
    e = M(k) - target,  delta = (W1^T e) phi'(z)         (e = -target for the dot objective)
    D2 <- D2 (alpha I - s k k^T) - s delta k^T
    D1 <- alpha D1 - r e a^T                                   (``decay``)
    D1 <- D1 (alpha I - r x x^T) - r |a| e x^T, x = a / |a|    (``delta``)
    the same with (B1 a - (target - k)) / |a| for |a| e        (``delta_error``)
the chunk is, with l the cumulative log decay and X = (I + L)^-1 as in ``nl.ops.delta_rule``,
    D2_C = exp(l_C) D2 - (delta + exp(l_{t-1}) D2 K) diag(s) X_k^T diag(exp(l_C - l_t)) K^T
    D1_C = exp(l_C) D1 - (R X_x^T) diag(exp(l_C - l_t)) x^T,   R = r (exp(l_{t-1}) D1 x + g)
What the second factor of D2 needs is the same for every memory; D1 has a system per memory.

The backward pass is the adjoint of these equations (for a system U = R X^T: R' = U' X and
L' = -R'^T U). It keeps the inputs of the chunk and computes everything between them again.
Source: self-modifying Titans (Nested Learning, NeurIPS 2025); chunk form and adjoint derived here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from nl.ops.delta_rule import LOG_DECAY_MIN, ChunkDecay, chunk_decay, unit_lower_inverse
from nl.ops.fast_mlp import (
    Bank,
    FastWeights,
    WriteRule,
    WriteTokens,
    activation_and_slope,
    bend,
    in_force,
    slope_of,
)

NORM_EPS = 1e-6
"""Added to |a|^2, so that a zero feature vector divides by something."""

_FEW_OUTPUTS = 4
"""Up to so many outputs a triangular solve is cheaper than an inverse."""


class _Frame(NamedTuple):
    """What all memories written from the same keys share; see ``_frame``."""

    keys: Tensor
    rate: Tensor
    slow: Tensor
    decay: ChunkDecay
    gram: Tensor
    inverse: Tensor
    solved: Tensor
    spread: Tensor


class _Trace(NamedTuple):
    """What one bank computes on the way to its new weights; see ``_trace``."""

    weights: FastWeights
    added: FastWeights
    z: Tensor
    a: Tensor
    slope: Tensor
    kept: Tensor
    error: Tensor
    back: Tensor
    wanted: Tensor


class _OutputTrace(NamedTuple):
    """What the system of the second layers computes; see ``_output_trace``."""

    x: Tensor
    shrink: Tensor
    seen: Tensor
    taught: Tensor
    gram: Tensor
    system: Tensor
    update: Tensor


def _frame(tokens: WriteTokens) -> _Frame:
    """Decays, inner products of the keys and the system of the first layers.

    ``spread`` (N, C, K) is diag(s) X^T diag(after) K^T, ``solved`` the same without diag(s).
    """
    keys, rate, slow, log_decay = tokens
    decay = chunk_decay(log_decay)
    gram = keys.mT @ keys
    inverse = unit_lower_inverse((slow.unsqueeze(-1) * decay.ratio).mul_(gram))
    solved = inverse.mT @ (keys * decay.after.unsqueeze(1)).mT
    return _Frame(keys, rate, slow, decay, gram, inverse, solved, slow.unsqueeze(-1) * solved)


def _trace(bank: Bank, frame: _Frame, rule: WriteRule) -> _Trace:
    """Everything of a bank up to the wanted change of its first layers."""
    weights = FastWeights(*(in_force(b, d) for b, d in zip(bank.initial, bank.added, strict=True)))
    added = bank.added if rule.anchored else weights
    keys, (rows, memories) = frame.keys, bank.targets.shape[:2]
    z = weights.hidden @ keys
    a, slope, kept = slope_of(z, rule.activation)
    a = a.unflatten(1, (memories, -1))
    if rule.objective == "dot":
        error = -bank.targets
    else:
        error = (weights.output @ a).sub_(bank.targets)
        if bank.skip:
            error += keys.unsqueeze(1)
    back = (weights.output.mT @ error).view(rows, -1, keys.shape[-1])
    seen = z if added is weights else added.hidden @ keys
    wanted = torch.addcmul(back * slope, seen, frame.decay.before.unsqueeze(1))
    return _Trace(weights, added, z, a, slope, kept, error, back, wanted)


def _output_trace(trace: _Trace, frame: _Frame, rule: WriteRule) -> _OutputTrace:
    """The system of the second layers by the delta rule."""
    a, decay = trace.a, frame.decay
    shrink = a.square().sum(-2, keepdim=True).add_(NORM_EPS).rsqrt_()
    x = a * shrink
    seen, before = trace.added.output @ x, decay.before[:, None, None]
    if rule.output == "delta":
        taught = torch.addcmul(trace.error / shrink, seen, before)
    else:
        taught = torch.addcmul(trace.error * shrink, seen, before - 1)
    gram = x.mT @ x
    system = (frame.rate.unsqueeze(-1) * decay.ratio).unsqueeze(1) * gram
    right = taught * frame.rate[:, None, None]
    if taught.shape[-2] > _FEW_OUTPUTS:
        system = unit_lower_inverse(system)
        update = right @ system.mT
    else:
        update = _solve(system, right)
    return _OutputTrace(x, shrink, seen, taught, gram, system, update)


def _solve(strict: Tensor, right: Tensor, adjoint: bool = False) -> Tensor:
    """R (I + L)^-T, or R (I + L)^-1, for few rows R (..., P, C)."""
    left = strict.mT if adjoint else strict
    solved = torch.linalg.solve_triangular(left, right.mT, upper=adjoint, unitriangular=True)
    return solved.mT


def _written(trace: _Trace, frame: _Frame, rule: WriteRule) -> tuple[Tensor, Tensor]:
    """The D of a bank after the chunk."""
    added, decay = trace.added, frame.decay
    hidden = added.hidden * decay.total[:, None, None]
    hidden = hidden.baddbmm_(trace.wanted, frame.spread, alpha=-1)
    after, total = decay.after[:, None, None], decay.total[:, None, None, None]
    if rule.output == "decay":
        change = (trace.error * (after * frame.rate[:, None, None])) @ trace.a.mT
    else:
        out = _output_trace(trace, frame, rule)
        change = (out.update * after) @ out.x.mT
    return hidden, torch.addcmul(-change, added.output, total)


class _SharedGrads:
    """Gradients of what the memories share, summed as the backward pass goes through them."""

    def __init__(self, frame: _Frame) -> None:
        self.keys = torch.zeros_like(frame.keys)
        self.rate = torch.zeros_like(frame.rate)
        self.slow = torch.zeros_like(frame.rate)
        self.before = torch.zeros_like(frame.rate)
        self.after = torch.zeros_like(frame.rate)
        self.total = torch.zeros_like(frame.decay.total)
        self.spread = torch.zeros_like(frame.spread)
        self.ratio = torch.zeros_like(frame.gram)  # times the ratio itself
        self.gram = torch.zeros_like(frame.gram)

    def close(self, frame: _Frame, log_decay: Tensor) -> tuple[Tensor, ...]:
        """Gradients of keys, rate, hidden rate and log decay."""
        decay = frame.decay
        self.slow += (self.spread * frame.solved).sum(-1)
        after_keys = frame.inverse @ (self.spread * frame.slow.unsqueeze(-1))
        by_system = -(frame.solved @ after_keys.mT)
        by_pull = (by_system * frame.gram).mul_(decay.ratio)
        self.slow += by_pull.sum(-1)
        self.ratio.addcmul_(by_pull, frame.slow.unsqueeze(-1))
        self.gram.addcmul_(by_system, frame.slow.unsqueeze(-1) * decay.ratio)
        self.keys.addcmul_(after_keys.mT, decay.after.unsqueeze(1))
        self.after += (after_keys.mT * frame.keys).sum(1)
        self.keys.baddbmm_(frame.keys, self.gram + self.gram.mT)
        before = (self.before * decay.before).add_(self.ratio.sum(-1)).double()
        after = (self.after * decay.after).double()
        sums = pad(before[..., 1:], (0, 1)) - after - self.ratio.sum(-2)
        sums[..., -1] += after.sum(-1) + self.total * decay.total
        sums = sums.sum(-1, keepdim=True) - sums.cumsum(-1) + sums
        by_log = sums.to(log_decay.dtype).masked_fill(log_decay < LOG_DECAY_MIN, 0.0)
        return self.keys, self.rate, self.slow, by_log


def _output_backward(
    grad: Tensor, trace: _Trace, frame: _Frame, rule: WriteRule, shared: _SharedGrads
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of D1, a and the error through the second layers' rule."""
    after, rate = frame.decay.after[:, None, None], frame.rate[:, None, None]
    added, error = trace.added.output, trace.error
    shared.total += (grad * added).sum((1, 2, 3))
    kept = grad * frame.decay.total[:, None, None, None]
    if rule.output == "decay":
        by_step = (grad @ trace.a).neg_()
        step = after * rate
        both = (by_step * error).sum((1, 2))
        shared.after += both * frame.rate
        shared.rate += both * frame.decay.after
        return kept, -(grad.mT @ (error * step)), by_step * step
    out = _output_trace(trace, frame, rule)
    by_update = (grad @ out.x).neg_()
    by_x = (grad.mT @ (out.update * after)).neg_()
    shared.after += (by_update * out.update).sum((1, 2))
    by_update *= after
    if out.update.shape[-2] > _FEW_OUTPUTS:
        by_right = by_update @ out.system
    else:
        by_right = _solve(out.system, by_update, adjoint=True)
    by_system = (by_right.mT @ out.update).neg_()
    shared.rate += (by_right * out.taught).sum((1, 2))
    by_taught = by_right * rate
    pull = frame.rate.unsqueeze(-1) * frame.decay.ratio
    by_pull = (by_system * out.gram).sum(1).mul_(frame.decay.ratio)
    shared.rate += by_pull.sum(-1)
    shared.ratio.addcmul_(by_pull, frame.rate.unsqueeze(-1))
    by_system *= pull.unsqueeze(1)
    by_x += out.x @ (by_system + by_system.mT)
    by_seen = by_taught * (frame.decay.before[:, None, None] - float(rule.output == "delta_error"))
    shared.before += (by_taught * out.seen).sum((1, 2))
    by_added = kept + by_seen @ out.x.mT
    by_x += added.mT @ by_seen
    # |a| enters as shrink = 1 / |a|, in x and in front of the error.
    by_scale = (by_taught * error).sum(-2, keepdim=True)
    along = (by_x * out.x).sum(-2, keepdim=True)
    if rule.output == "delta":
        by_a = torch.addcmul(by_x * out.shrink, out.x, by_scale - along * out.shrink)
        return by_added, by_a, by_taught / out.shrink
    by_a = (by_x * out.shrink).addcmul_(out.x, -(by_scale * out.shrink + along) * out.shrink)
    return by_added, by_a, by_taught * out.shrink


class _BankGrads(NamedTuple):
    """Gradients of one bank: of its initial weights, of what was added, of its targets."""

    initial: tuple[Tensor, Tensor]
    added: tuple[Tensor, Tensor]
    targets: Tensor


def _bank_backward(
    grads: tuple[Tensor, Tensor], bank: Bank, frame: _Frame, rule: WriteRule, shared: _SharedGrads
) -> _BankGrads:
    """The adjoint of ``_written`` and ``_trace``."""
    trace, (hidden, output), keys = _trace(bank, frame, rule), grads, frame.keys
    by_output, by_a, by_error = _output_backward(output, trace, frame, rule, shared)
    shared.total += (hidden * trace.added.hidden).sum((1, 2))
    shared.spread.baddbmm_(trace.wanted.mT, hidden, alpha=-1)
    by_wanted = (hidden @ frame.spread.mT).neg_()
    by_seen = by_wanted * frame.decay.before.unsqueeze(1)
    # seen = D2 k is not kept: its inner product with its gradient is that of k and D2^T gradient.
    pulled = trace.added.hidden.mT @ by_wanted
    shared.before += (pulled * keys).sum(1)
    shared.keys.addcmul_(pulled, frame.decay.before.unsqueeze(1))
    by_hidden = hidden * frame.decay.total[:, None, None]
    by_hidden = by_hidden.baddbmm_(by_seen, keys.mT)
    by_back = (by_wanted * trace.slope).view_as(trace.a)
    by_error = by_error + trace.weights.output @ by_back
    by_weight = trace.error @ by_back.mT
    if rule.objective == "l2":
        by_weight = by_weight + by_error @ trace.a.mT
        by_a = by_a + trace.weights.output.mT @ by_error
        if bank.skip:
            shared.keys += by_error.sum(1)
    by_z = (by_a.view_as(trace.slope) * trace.slope).addcmul_(
        by_wanted.mul_(trace.back),
        bend(trace.z, trace.a.view_as(trace.z), trace.slope, trace.kept, rule.activation),
    )
    by_weights = by_z @ keys.mT, by_weight
    shared.keys.baddbmm_(trace.weights.hidden.mT, by_z)
    added = by_hidden + by_weights[0], by_output + by_weights[1]
    initial = by_weights if rule.anchored else added
    heads = bank.initial.hidden.shape[0]
    summed = tuple(g.unflatten(0, (-1, heads)).sum(0) for g in initial)
    return _BankGrads((summed[0], summed[1]), added, -by_error)


class _Write(torch.autograd.Function):
    """``fast_mlp_write`` with flat arguments: rule, skips, tokens, then five tensors per bank."""

    @staticmethod
    def forward(ctx: Any, rule: WriteRule, skips: tuple[bool, ...], *given: Tensor) -> Any:
        ctx.rule, ctx.skips = rule, skips
        ctx.save_for_backward(*given)
        frame = _frame(WriteTokens(*given[:4]))
        new: list[Tensor] = []
        for bank in _banks(given, skips):
            new += _written(_trace(bank, frame, rule), frame, rule)
        return tuple(new)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        given, rule = ctx.saved_tensors, ctx.rule
        frame = _frame(WriteTokens(*given[:4]))
        shared = _SharedGrads(frame)
        found: list[Tensor] = []
        for i, bank in enumerate(_banks(given, ctx.skips)):
            own = _bank_backward((grads[2 * i], grads[2 * i + 1]), bank, frame, rule, shared)
            found += [*own.initial, *own.added, own.targets]
        return None, None, *shared.close(frame, given[3]), *found


def _banks(given: Sequence[Tensor], skips: tuple[bool, ...]) -> list[Bank]:
    parts = [given[4 + 5 * i : 9 + 5 * i] for i in range(len(skips))]
    return [
        Bank(FastWeights(*p[:2]), FastWeights(*p[2:4]), p[4], skip)
        for p, skip in zip(parts, skips, strict=True)
    ]


def fast_mlp_write(
    banks: Sequence[Bank], tokens: WriteTokens, rule: WriteRule
) -> list[FastWeights]:
    """What decays (the D of the module's equations) of every bank after one chunk.

    Args:
        banks: memories written from the same tokens.
        tokens: keys, rates, decays of the chunk, in the dtype of the memories.
        rule: activation, objective, rule of the second layer, what decays.

    Returns:
        Per bank what has been added to the initial weights, or, where nothing is anchored, the
        weights themselves. Differentiable once.
    """
    given = [t for b in banks for t in (*b.initial, *b.added, b.targets)]
    new = _Write.apply(rule, tuple(b.skip for b in banks), *tokens, *given)
    return [FastWeights(*pair) for pair in zip(new[::2], new[1::2], strict=True)]


def fast_mlp_write_reference(
    banks: Sequence[Bank], tokens: WriteTokens, rule: WriteRule
) -> list[FastWeights]:
    """The token loop that ``fast_mlp_write`` must equal; same arguments, same result."""
    written = []
    keys, rate, hidden_rate, log_decay = tokens
    for bank in banks:
        memories = bank.targets.shape[1]
        weights = FastWeights(*(in_force(b, d) for b, d in zip(*bank[:2], strict=True)))
        added = bank.added if rule.anchored else weights
        first = weights.hidden.unflatten(1, (memories, -1))
        hidden, output = added.hidden.unflatten(1, (memories, -1)), added.output
        base = weights.output - added.output
        for t in range(keys.shape[-1]):
            key, target = keys[:, None, :, t, None], bank.targets[..., t, None]
            gates = (rate, hidden_rate, log_decay.exp())
            step, slow, kept = (gate[:, t, None, None, None] for gate in gates)
            a, slope = activation_and_slope(first @ key, rule.activation)
            skip = key if bank.skip else torch.zeros_like(target)
            error = (skip + weights.output @ a if rule.objective == "l2" else 0) - target
            delta = (weights.output.mT @ error) * slope
            hidden = kept * hidden - slow * (hidden @ key + delta) @ key.mT
            if rule.output == "decay":
                output = kept * output - step * error @ a.mT
                continue
            norm = (a.square().sum(-2, keepdim=True) + NORM_EPS).sqrt()
            x = a / norm
            taught = norm * error if rule.output == "delta" else base @ x - (target - skip) / norm
            output = kept * output - step * (output @ x + taught) @ x.mT
        written.append(FastWeights(hidden.flatten(1, 2), output))
    return written
