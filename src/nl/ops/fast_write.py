"""Writing fast MLP memories: one chunk in closed form, with a backward pass of its own. Floor 1.

Several banks are written from the same keys. Letters as in ``nl.ops.fast_mlp``;
H heads share the initial weights, so N = rows times H. With W = B + D the weights at the chunk
start (B initial, D added; D = W where nothing is anchored), z = W2 k, a = phi(z), and per token t
    e = M(k) - target                                    (e = -target for the dot objective)
    delta = (W1^T e) phi'(z), every entry between -clip and clip
    D2 <- D2 (alpha I - s k k^T) - s delta k^T
    D1 <- alpha D1 - r e a^T                                   (``decay``)
    D1 <- D1 (alpha I - r x x^T) - r |a| e x^T, x = a / |a|    (``delta``)
    the same with (B1 a - (target - k)) / |a| for |a| e        (``delta_error``)
the chunk is, with l the cumulative log decay and X = (I + L)^-1 as in ``nl.ops.delta_rule``,
    D2_C = exp(l_C) D2 - (delta + exp(l_{t-1}) D2 K) diag(s) X_k^T diag(exp(l_C - l_t)) K^T
    D1_C = exp(l_C) D1 - (R X_x^T) diag(exp(l_C - l_t)) x^T,   R = r (exp(l_{t-1}) D1 x + g)
The system of D2 is the same for all memories with the same rates; D1 has one per memory.

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

from nl.core.program import Program
from nl.ops.delta_rule import unit_lower_inverse
from nl.ops.fast_mlp import Bank, FastWeights, WriteRule, activation_and_slope, in_force
from nl.ops.fast_write_native import _adjoints_native, _takes, _written_native
from nl.ops.fast_write_parts import NORM_EPS, BankWrite, Frame, Rates


class WriteGroup(NamedTuple):
    """Banks that learn at the same rates.

    Attributes:
        rate: (N, C) step sizes r of the second layers.
        hidden_rate: (N, C) step sizes s of the first layers; None: those of the second.
        banks: see ``Bank``.
    """

    rate: Tensor
    hidden_rate: Tensor | None
    banks: Sequence[Bank]


Shape = tuple[tuple[bool, tuple[bool, ...]], ...]
"""Per group: whether its layers share their rates, and per bank whether answers contain inputs."""


class _Chunk:
    """All parts of a chunk, ready to give new weights or gradients."""

    def __init__(self, rule: WriteRule, shape: Shape, given: Sequence[Tensor], keep: bool) -> None:
        parts = iter(given)
        self.frame = frame = Frame(next(parts), next(parts), keep)
        rows, size = frame.log_decay.shape
        rates = [(rate := next(parts), rate if same else next(parts)) for same, _ in shape]
        first = frame.gram.new_empty(len(shape) * rows, size, size)
        self.rates = [
            Rates(frame, *pair, first[i * rows : (i + 1) * rows], keep)
            for i, pair in enumerate(rates)
        ]
        self.banks: list[BankWrite] = []
        for own, (_, skips) in zip(self.rates, shape, strict=True):
            for skip in skips:
                w2, w1, d2, d1, targets = (next(parts) for _ in range(5))
                bank = Bank(FastWeights(w2, w1), FastWeights(d2, d1), targets, skip)
                self.banks.append(BankWrite(bank, frame, own, rule, keep))
        self._solve(first, keep)

    def _solve(self, first: Tensor, keep: bool) -> None:
        """Invert the systems of all parts at once."""
        counts = [len(r.rate) for r in self.rates] + [b.systems for b in self.banks]
        systems = first.new_empty(sum(counts), *first.shape[1:])
        systems[: len(first)] = first
        parts = systems.split(counts)[len(self.rates) :]
        for bank, part in zip(self.banks, parts, strict=True):
            if bank.systems:
                bank.system(part)
        inverses = list(unit_lower_inverse(systems).split(counts))
        for rates in self.rates:
            rates.finish(self.frame, inverses.pop(0))
        for bank in self.banks:
            bank.finish(inverses.pop(0), keep)


@Program
def _written(spec: Any, *given: Tensor) -> tuple[Tensor, ...]:
    """The D of every bank after the chunk; ``spec`` is (rule, shape)."""
    rule, shape = spec
    chunk = _Chunk(rule, shape, given, keep=False)
    return tuple(t for bank in chunk.banks for t in bank.written())


@Program
def _adjoints(spec: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Gradients of what ``_written`` was given, from those of its results and the same again."""
    rule, shape = spec
    results = 2 * sum(len(skips) for _, skips in shape)
    grads, given = tensors[:results], tensors[results:]
    chunk = _Chunk(rule, shape, given, keep=True)
    by_banks: list[Tensor] = []
    for bank, *pair in zip(chunk.banks, grads[::2], grads[1::2], strict=True):
        initial, added, targets = bank.adjoint(*pair)
        by_banks += [*initial, *added, targets]
    by_rates: list[Tensor] = []
    for rates, (same, _) in zip(chunk.rates, shape, strict=True):
        second, first = rates.adjoint(chunk.frame)
        by_rates += [second + first] if same else [second, first]
    return (*chunk.frame.adjoint(), *by_rates, *by_banks)


class _Write(torch.autograd.Function):
    """``fast_mlp_write`` with flat arguments: keys, log decay, rates, then five per bank."""

    @staticmethod
    def forward(ctx: Any, spec: Any, *given: Tensor) -> Any:
        ctx.spec, ctx.native = spec, _takes(spec, given)
        ctx.save_for_backward(*given)
        if ctx.native:
            return _written_native(spec, given)
        with torch.autocast(given[0].device.type, enabled=False):
            return _written(spec, *given, tokens=given[0].shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        given = ctx.saved_tensors
        if ctx.native:
            return None, *_adjoints_native(ctx.spec, grads, given)
        with torch.autocast(grads[0].device.type, enabled=False):
            return None, *_adjoints(ctx.spec, *grads, *given, tokens=given[0].shape[-1])


def fast_mlp_write(
    groups: Sequence[WriteGroup], keys: Tensor, log_decay: Tensor, rule: WriteRule
) -> list[FastWeights]:
    """What decays (the D of the module's equations) of every bank after one chunk.

    Args:
        groups: memories written from the same keys, by their rates.
        keys: (N, K, C), in the dtype of the memories like all the rest.
        log_decay: (N, C), <= 0.
        rule: activation, objective, rule of the second layer, what decays.

    Returns:
        Per bank, in order, what has been added to the initial weights, or, where nothing is
        anchored, the weights themselves. Differentiable once.
    """
    banks = [bank for group in groups for bank in group.banks]
    given = [t for b in banks for t in (*b.initial, *b.added, b.targets)]
    shape = tuple((g.hidden_rate is None, tuple(b.skip for b in g.banks)) for g in groups)
    rates = [t for group in groups for t in group[:2] if t is not None]
    new = _Write.apply((rule, shape), keys, log_decay, *rates, *given)
    return [FastWeights(*pair) for pair in zip(new[::2], new[1::2], strict=True)]


def fast_mlp_write_reference(
    groups: Sequence[WriteGroup], keys: Tensor, log_decay: Tensor, rule: WriteRule
) -> list[FastWeights]:
    """The token loop that ``fast_mlp_write`` must equal; same arguments, same result."""
    return [
        _write_reference(bank, (keys, group.rate, slow, log_decay.exp()), rule)
        for group in groups
        for slow in (group.rate if group.hidden_rate is None else group.hidden_rate,)
        for bank in group.banks
    ]


def _write_reference(bank: Bank, tokens: tuple[Tensor, ...], rule: WriteRule) -> FastWeights:
    keys, *gates = tokens
    memories = bank.targets.shape[1]
    weights = FastWeights(*(in_force(b, d) for b, d in zip(*bank[:2], strict=True)))
    added = bank.added if rule.anchored else weights
    first = weights.hidden.unflatten(1, (memories, -1))
    hidden, output = added.hidden.unflatten(1, (memories, -1)), added.output
    base = weights.output - added.output
    for t in range(keys.shape[-1]):
        key, target = keys[:, None, :, t, None], bank.targets[..., t, None]
        step, slow, kept = (gate[:, t, None, None, None] for gate in gates)
        a, slope = activation_and_slope(first @ key, rule.activation)
        skip = key if bank.skip else torch.zeros_like(target)
        error = (skip + weights.output @ a if rule.objective == "l2" else 0) - target
        delta = ((weights.output.mT @ error) * slope).clamp(-rule.clip, rule.clip)
        hidden = kept * hidden - slow * (hidden @ key + delta) @ key.mT
        if rule.output == "decay":
            output = kept * output - step * error @ a.mT
            continue
        norm = (a.square().sum(-2, keepdim=True) + NORM_EPS).sqrt()
        x = a / norm
        taught = norm * error if rule.output == "delta" else base @ x - (target - skip) / norm
        output = kept * output - step * (output @ x + taught) @ x.mT
    return FastWeights(hidden.flatten(1, 2), output)
