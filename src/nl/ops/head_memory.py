"""A head that learns while it reads: logits and cross-entropy, in chunks. Floor 1.

The head's gradient of a token is (softmax - onehot) h^T, in closed form. A fast matrix S per row
gathers it, and is read beside the head's weight W by every token of a later chunk:

    logits_t = W h_t - rate * (S h_t),    S <- retention * S + sum over a chunk of r_s k_s^T

with r = softmax(logits) - onehot, k = h / D and one rate per word. Writes are constants of the
outer loss: no gradient flows into r, k and S. Within a block S is never formed: a later token
looks at the r of earlier chunks with weights h_t . k_s, which costs as much as attention would.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nl.core.batch import IGNORE
from nl.ops.head_walk import HeadBlock, HeadRule, HeadWalk, HeadWeights, HeadWrites


def head_logits(
    hidden: Tensor,
    head: HeadWeights,
    target: Tensor,
    writes: HeadWrites,
    start: int,
    rule: HeadRule,
) -> tuple[Tensor, Tensor, HeadWrites]:
    """Logits, differentiable in hidden and head, and what the head has learned from then.

    Args:
        hidden: (B, T, D) what the head reads.
        head: its weight and rates.
        target: (B, K) labels of the first K tokens, T or T - 1 of them; IGNORE writes nothing.
        writes: of the tokens before.
        start: position of the first token.
        rule: how it writes.

    Returns:
        (B, T, V), at least fp32; the teach signal (B, K, D) and the new writes of the labelled
        tokens, without gradient.
    """
    out, signals, (hidden, low) = [], [], _as_autocast(hidden, head)
    with torch.autocast(hidden.device.type, enabled=False):
        rate = head.rate()
        for begin, end, own in rule.blocks(start, hidden.shape[1]):
            part, label = hidden[:, begin:end], target[:, begin:end]
            with torch.no_grad():
                block = HeadBlock(label, writes, start + begin, own)
                walk = HeadWalk.read(part, low.weight, rate, block)
                signals.append(walk.signal(low.weight, rate))
            graph = torch.is_grad_enabled()
            out.append(_said_again(part, low.weight, rate, walk) if graph else walk.logits)
            writes = walk.after
    return torch.cat(out, 1), torch.cat(signals, 1), writes


def _as_autocast(hidden: Tensor, head: HeadWeights) -> tuple[Tensor, HeadWeights]:
    """What is multiplied outside the memory in the dtype of autocast, where it is on.

    Rates and all that is gathered stay as they are, at least fp32.
    """
    device = hidden.device.type
    if not torch.is_autocast_enabled(device):
        return hidden, head
    low = torch.get_autocast_dtype(device)
    return hidden.to(low), head._replace(weight=head.weight.to(low))


def _said_again(hidden: Tensor, weight: Tensor, rate: Tensor, walk: HeadWalk) -> Tensor:
    """The logits (B, T, V) of a block that was read, differentiable in hidden, weight and rate."""
    wide = hidden.to(walk.logits.dtype)
    logits = (hidden @ weight.mT).to(wide.dtype)
    if walk.fast is not None:
        fast = walk.fast.to(wide.dtype)
        logits = logits - rate * (wide @ fast.mT) * walk.plan.decay[:, None]
    look = (wide @ walk.keys.mT) * walk.plan.kept[:, : walk.keys.shape[1]]
    return logits - rate * (look @ walk.residuals)


def head_cross_entropy(
    hidden: Tensor,
    head: HeadWeights,
    target: Tensor,
    writes: HeadWrites,
    start: int,
    rule: HeadRule,
) -> tuple[Tensor, Tensor, Tensor, HeadWrites]:
    """Cross-entropy of a head that learns, its teach signal and its logits.

    Args: as ``head_logits``, with a label or IGNORE for every token.

    Returns:
        nll (B, T) in nats, at least fp32, 0 where unscored, differentiable in hidden and head;
        signal (B, T, D) = d nll_t / d hidden_t and logits (B, T, V), without gradient; the new
        writes.
    """
    found, (hidden, low) = [], _as_autocast(hidden, head)
    with torch.autocast(hidden.device.type, enabled=False):
        with torch.no_grad():
            rate = head.rate()
        graph = torch.is_grad_enabled()
        for begin, end, own in rule.blocks(start, hidden.shape[1]):
            block = HeadBlock(target[:, begin:end], writes, start + begin, own)
            walked: list[HeadWalk] = []
            nll, signal = _HeadCrossEntropy.apply(
                hidden[:, begin:end], *low[:3], (low, rate, block, walked, graph)
            )
            writes = walked[0].after
            found.append((nll, signal, walked[0].logits))
    nll, signal, logits = (
        parts[0] if len(parts) == 1 else torch.cat(parts, 1) for parts in zip(*found, strict=True)
    )
    return nll, signal, logits, writes


class _HeadCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        log_rate: Tensor,
        toward: Tensor,
        call: tuple[HeadWeights, Tensor, HeadBlock, list[HeadWalk], bool],
    ) -> tuple[Tensor, Tensor]:
        head, rate, block, walked, graph = call
        target = block.target
        walk = HeadWalk.read(hidden, weight, rate, block)
        walked.append(walk)
        scored = target != IGNORE
        index = torch.where(scored, target, 0)[..., None]
        nll = walk.total - walk.logits.gather(-1, index).squeeze(-1)
        nll, signal = torch.where(scored, nll, 0.0), walk.signal(weight, rate)
        ctx.mark_non_differentiable(signal)
        ctx.set_materialize_grads(False)
        if not (graph and any(ctx.needs_input_grad)):
            return nll, signal
        residual = walk.told()
        # Where it is a part of a buffer with what was gathered before, that is not to be kept.
        apart = len(residual[0]) < len(walk.residuals[0])
        by_rates: tuple[Tensor, ...] = ()
        if any(ctx.needs_input_grad[2:4]):
            by_z = (rate * (1 - rate / head.limit)).to(residual.dtype)
            by_rates = _rate_parts(residual, walk.moved, weight, by_z)
        ctx.save_for_backward(hidden, residual.to(hidden.dtype, copy=apart), signal, *by_rates)
        ctx.scale, ctx.types = head.scale, (log_rate.dtype, toward.dtype)
        return nll, signal

    @staticmethod
    def backward(ctx: Any, grad_nll: Tensor | None, _signal: Tensor | None) -> tuple[Any, ...]:
        if grad_nll is None:
            return (None,) * 5
        hidden, residual, signal, *by_rates = ctx.saved_tensors
        each = grad_nll[..., None]
        to_low = each.to(hidden.dtype)
        to_weight = to_rate = to_toward = None
        if ctx.needs_input_grad[1]:
            to_weight = residual.flatten(0, 1).mT @ (hidden * to_low).flatten(0, 1)
        if by_rates:
            by_all, by_toward = by_rates
            to_rate = (by_all * each).sum().reshape(1).to(ctx.types[0])
            to_toward = ctx.scale * (by_toward * each).flatten(0, 1).sum(0).to(ctx.types[1])
        return signal * to_low, to_weight, to_rate, to_toward, None


def _rate_parts(
    residual: Tensor, moved: Tensor | None, weight: Tensor, by_z: Tensor
) -> tuple[Tensor, Tensor]:
    """d nll_t by log_rate (B, T, 1) and by W toward, through W (B, T, D).

    ``by_z`` (V,): how fast rates grow with what they follow from.
    """
    if moved is None:
        nothing = residual.new_zeros(*residual.shape[:2], 1)
        return nothing, nothing.expand(*residual.shape[:2], weight.shape[1])
    each = residual * moved
    by_row = (-by_z[:, None] * weight).to(weight.dtype)
    return each @ -by_z[:, None], (each.to(weight.dtype) @ by_row).to(each.dtype)


def head_cross_entropy_reference(
    hidden: Tensor,
    head: HeadWeights,
    target: Tensor,
    writes: HeadWrites,
    start: int,
    rule: HeadRule,
) -> tuple[Tensor, Tensor, Tensor, HeadWrites]:
    """The same token by token, with S formed after every chunk and gradients by autograd."""
    waiting = (
        []
        if writes.keys is None or rule.gain is None
        else list(
            zip(writes.residuals.unbind(1), writes.keys.unbind(1), strict=True)  # type: ignore[union-attr]
        )
    )
    nll, signal, logits, fast = [], [], [], writes.fast
    for t in range(hidden.shape[1]):
        said, leaf = _said(hidden[:, t], head, fast), hidden[:, t].detach().requires_grad_()
        loss = F.cross_entropy(said, target[:, t], ignore_index=IGNORE, reduction="none")
        with torch.enable_grad():
            again = F.cross_entropy(
                _said(leaf, head, fast), target[:, t], ignore_index=IGNORE, reduction="sum"
            )
            told = torch.autograd.grad(again, leaf)[0]
        nll.append(loss)
        signal.append(told)
        logits.append(said.detach())
        if rule.gain is None:
            continue
        key = hidden[:, t].detach() * rule.gain / hidden.shape[2]
        chances, scored = said.detach().softmax(-1), target[:, t] != IGNORE
        meant = F.one_hot(target[:, t].clamp(min=0), len(head.weight))
        waiting.append(((chances - meant) * scored[:, None], key))
        if (start + t + 1) % rule.period == 0:
            new = sum(r[:, :, None] * k[:, None, :] for r, k in waiting)
            fast = new if fast is None else rule.retention * fast + new
            waiting = []
    after = writes
    if rule.gain is not None:
        both: list[Any] = [torch.stack(parts, 1) for parts in zip(*waiting, strict=True)] or [
            None,
            None,
        ]
        after = HeadWrites(fast, both[0], both[1], len(waiting))
    return torch.stack(nll, 1), torch.stack(signal, 1), torch.stack(logits, 1), after


def head_logits_reference(
    hidden: Tensor,
    head: HeadWeights,
    target: Tensor,
    writes: HeadWrites,
    start: int,
    rule: HeadRule,
) -> tuple[Tensor, Tensor, HeadWrites]:
    """The same token by token."""
    out, signals = [], [hidden[:, :0]]
    for t in range(hidden.shape[1]):
        out.append(_said(hidden[:, t], head, writes.fast))
        if t < target.shape[1]:
            step = hidden[:, t : t + 1], head, target[:, t : t + 1], writes, start + t, rule
            _, signal, _, writes = head_cross_entropy_reference(*step)
            signals.append(signal)
    return torch.stack(out, 1), torch.cat(signals, 1), writes


def _said(hidden_BD: Tensor, head: HeadWeights, fast: Tensor | None) -> Tensor:
    said = hidden_BD @ head.weight.mT
    if fast is None:
        return said
    return said - head.rate() * torch.einsum("bvd,bd->bv", fast, hidden_BD)
