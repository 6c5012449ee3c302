"""Levels one after another: y = MLP_L(... MLP_1(x)), and the signal of y at every level. Floor 1.

The equations of a level are those of ``nl.ops.level``; a level adds to what it reads, and the
signal at its input is that of its result, pulled back. Here the levels of a chain have one form,
and may be one autograd node and one call of a kernel.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nl.ops.level import (
    Again,
    LevelForm,
    LevelWeights,
    _branch_adjoints,
    level_branch,
    level_branch_reference,
    level_gradients,
    level_gradients_reference,
    level_hidden_signal,
    level_pull_back,
)
from nl.ops.level_chain_native import _back_native, _moves_native, _read_native, _signals_native

Pair = tuple[Tensor, Tensor]


class ChainForm(NamedTuple):
    """What the levels of a chain share.

    Attributes:
        form: see ``LevelForm``.
        scales: of both layers, the fixed parts of their rates.
    """

    form: LevelForm
    scales: tuple[float, float]


class Link(NamedTuple):
    """One level of a chain: see ``LevelWeights``. The rates are exp(``log_rates``) (2,) * scales.

    It has no biases, and rows of the batch have ``fast_up`` and ``fast_down`` of their own.
    """

    up: Tensor
    down: Tensor
    fast_up: Tensor | None
    fast_down: Tensor | None
    log_rates: Tensor

    def weights(self, chain: ChainForm) -> LevelWeights:
        """The same as a level by itself has them."""
        rates = self.log_rates.exp().unbind()
        up, down = (rate * scale for rate, scale in zip(rates, chain.scales, strict=True))
        return LevelWeights(*self[:4], up, down, form=chain.form)


class LinkTokens(NamedTuple):
    """What a level has read, and what is to be gathered of it.

    Attributes:
        link: the level.
        x, z: (B, T, D) and (B, T, F), as ``level_chain`` gives them.
        wanted: whether the sums of gradients go on with these tokens.
        sums: (B, F, D) and (B, D, F) before them; None: nothing yet.
    """

    link: Link
    x: Tensor
    z: Tensor
    wanted: bool
    sums: Pair | None


class LinkSignals(NamedTuple):
    """What a level is told: signals (B, T, D) at its result, (B, T, F) at z; the new sums."""

    signal: Tensor
    hidden_signal: Tensor
    sums: Pair | None


_PLACES = len(Link._fields)
AT_ONCE = 1 << 22
"""Numbers of weights, over rows and levels, whose gradients are made in one go."""


class _Chain(torch.autograd.Function):
    """What a kernel has read of a chain, as one node that gives the last result.

    Given are form, results and z of all levels, what their fast weights are made of, then x and the
    tensors of the links.
    """

    @staticmethod
    def forward(ctx: Any, chain: ChainForm, results: Any, zs: Any, again: Any, *given: Any) -> Any:
        kept = list(given)
        for k, one in enumerate(again):
            if one is not None:
                kept[1 + _PLACES * k + 2 : 1 + _PLACES * k + 4] = None, None
        made = [() if one is None else one.tensors for one in again]
        ctx.chain = chain
        ctx.again = [None if one is None else (one.make, len(one.tensors)) for one in again]
        ctx.save_for_backward(*results[:-1], *zs, *kept, *(t for part in made for t in part))
        return results[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        saved: Any = ctx.saved_tensors  # once: checkpoints hand them out once
        wanted = ctx.needs_input_grad[5:]
        with torch.autocast(grad.device.type, enabled=False):
            return (
                None,
                None,
                None,
                None,
                *_chain_adjoints(ctx.chain, ctx.again, saved, grad, wanted),
            )


def _chain_adjoints(
    chain: ChainForm,
    again: Sequence[Any],
    saved: Sequence[Any],
    grad: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of x and of the tensors of the links, from the last on, as many as have room."""
    count = len(again)
    results, zs = saved[: count - 1], saved[count - 1 : 2 * count - 1]
    inputs, tensors = [saved[2 * count - 1], *results], saved[2 * count :]
    ends = itertools.accumulate((one[1] if one else 0 for one in again), initial=_PLACES * count)
    makings = [tensors[a:b] for a, b in itertools.pairwise(ends)]
    each = len(grad) * (tensors[0].numel() + tensors[1].numel())
    size = max(1, min(count, AT_ONCE // max(each, 1)))
    found: list[list[Tensor | None]] = []
    for end in range(count, 0, -size):
        part = range(max(0, end - size), end)
        links = []
        for k in part:
            link, one = Link(*tensors[_PLACES * k : _PLACES * (k + 1)]), again[k]
            fast = (link.fast_up, link.fast_down) if one is None else one[0](makings[k])
            links.append(link._replace(fast_up=fast[0], fast_down=fast[1]))
        given = [inputs[k] for k in part], [zs[k] for k in part]
        places = [wanted[_PLACES * k + 2 : _PLACES * k + 4] for k in part]
        native = _back_native(chain, links, *given, grad)
        if native is None:
            grad, more = _levels_back(chain, links, *given, grad, places)
        else:
            more = [_of_link(chain, *one) for one in zip(links, native[1], places, strict=True)]
            grad = native[0]
        found = more + found
    return [grad, *(t for one in found for t in one)]


def _of_link(
    chain: ChainForm, link: Link, by: Sequence[Tensor], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of a link from those of the weights in force and log rates, row by row."""
    up, down, log_rates = (t[0] if len(t) == 1 else t.sum(0) for t in by)
    if link.fast_up is None:
        return [up, down, None, None, None]
    rates = zip(wanted, link.log_rates.exp().unbind(), chain.scales, by[:2], strict=True)
    return [up, down, *(-(r * s) * b if on else None for on, r, s, b in rates), log_rates]


def _levels_back(
    chain: ChainForm,
    links: Sequence[Link],
    inputs: Sequence[Tensor],
    zs: Sequence[Tensor],
    grad: Tensor,
    wanted: Sequence[Sequence[bool]],
) -> tuple[Tensor, list[list[Tensor | None]]]:
    """The same by torch's operations: gradients of x and of the links."""
    found: list[list[Tensor | None]] = []
    for link, x, z, on in zip(links[::-1], inputs[::-1], zs[::-1], wanted[::-1], strict=True):
        w = link.weights(chain)
        spec = chain.form, on[0], on[1]
        by = _branch_adjoints(spec, grad, None, x, z, None, *w.tensors(), tokens=x.shape[1])
        rates = None if by[6] is None else torch.stack([by[6] * w.rate_up, by[7] * w.rate_down])
        found.insert(0, [*by[2:6], rates])
        grad = grad + by[0]
    return grad, found


def level_chain(
    x_BTD: Tensor, links: Sequence[Link], chain: ChainForm, again: Sequence[Again | None]
) -> tuple[Tensor, list[Pair]]:
    """Read a chain of levels.

    Args:
        x_BTD: (B, T, D) input of the first.
        links: the levels in the order in which they read.
        chain: what they share.
        again: per level, what its fast weights are made of; see ``level_branch``.

    Returns:
        (B, T, D), once differentiable, and per level its input and z, without gradients.
    """
    read = _read_native(chain, links, x_BTD)
    if read is not None:
        out = _Chain.apply(chain, *read, tuple(again), x_BTD, *(t for link in links for t in link))
        inputs = [x_BTD.detach(), *read[0][:-1]]
        return out, list(zip(inputs, read[1], strict=True))
    tokens: list[Pair] = []
    out = x_BTD
    for link, made in zip(links, again, strict=True):
        y, z = level_branch(out, link.weights(chain), None, made)
        tokens.append((out.detach(), z.detach()))
        out = out + y
    return out, tokens


def level_chain_reference(
    x_BTD: Tensor, links: Sequence[Link], chain: ChainForm
) -> tuple[Tensor, list[Pair]]:
    """The same level by level, by autograd."""
    tokens: list[Pair] = []
    out = x_BTD
    for link in links:
        y, z = level_branch_reference(out, link.weights(chain))
        tokens.append((out.detach(), z.detach()))
        out = out + y
    return out, tokens


def level_chain_signals(
    signal_BTD: Tensor, parts: Sequence[LinkTokens], chain: ChainForm
) -> list[LinkSignals]:
    """The signal at every level of a chain, and what the wanted ones gather of it.

    Args:
        signal_BTD: (B, T, D) dL/dy per token at the result of the first part.
        parts: levels from the last of a chain on, without gaps.
        chain: what they share.

    Returns:
        One per part.
    """
    found = _signals_native(chain, signal_BTD, parts)
    if found is not None:
        return [LinkSignals(*one) for one in found]
    told: list[LinkSignals] = []
    signal = signal_BTD
    for k, (link, x, z, wanted, sums) in enumerate(parts):
        w = link.weights(chain).to(signal.dtype)
        hidden = level_hidden_signal(z, signal, w)
        if wanted:
            grads = level_gradients(x, z, signal, hidden, chain.form)
            sums = grads if sums is None else (sums[0] + grads[0], sums[1] + grads[1])
        told.append(LinkSignals(signal, hidden, sums if wanted else None))
        if k < len(parts) - 1:
            signal = level_pull_back(x, signal, hidden, w)
    return told


def level_chain_signals_reference(
    signal_BTD: Tensor, parts: Sequence[LinkTokens], chain: ChainForm
) -> list[LinkSignals]:
    """The same by autograd, row by row."""
    told: list[LinkSignals] = []
    signal = signal_BTD
    for link, x, z, wanted, sums in parts:
        leaf = z.detach().clone().requires_grad_()
        w = link.weights(chain)
        force = [w.up.expand(len(x), -1, -1), w.down.expand(len(x), -1, -1)]
        if w.fast_up is not None and w.fast_down is not None:
            force = [force[0] - w.rate_up * w.fast_up, force[1] - w.rate_down * w.fast_down]
        with torch.enable_grad():
            y = torch.nn.functional.silu(leaf) @ force[1].mT
            (hidden,) = torch.autograd.grad((y * signal).sum(), leaf)
        up, down, below = level_gradients_reference(x, signal, force[0], force[1], chain.form)
        if sums is not None:
            up, down = sums[0] + up, sums[1] + down
        told.append(LinkSignals(signal, hidden, (up, down) if wanted else None))
        signal = below
    return told


class Moves(NamedTuple):
    """How rows take a write: factors (B, 1, 1) of what they have and of the steps of both layers.

    new = kept * fast + shrink * step
    """

    kept: Tensor
    shrink_up: Tensor
    shrink_down: Tensor


def level_moves(sums: Pair, link: Link, chain: ChainForm, lost: float, clip: float) -> Moves:
    """How large a write of summed gradients is; rows without any signal stay as they are.

    Args:
        sums: (B, F, D) and (B, D, F), the steps.
        link: the level, with what is in force.
        chain: its form.
        lost: share of what was written that a write loses.
        clip: largest norm of a step times its rate, relative to the norm of its meta weights; 0: as
            large as it is.
    """
    found = _moves_native(chain, sums, link, lost, clip)
    if found is not None:
        return Moves(*found)
    on = heard(sums).to(sums[0].dtype)
    shrinks = [on, on]
    if clip:
        w = link.weights(chain).to(on.dtype)
        pairs = zip(sums, (w.up, w.down), (w.rate_up, w.rate_down), strict=True)
        shrinks = [on * shrunk(step, meta, rate, clip) for step, meta, rate in pairs]
    return Moves(1 - lost * on, *shrinks)


def level_moves_reference(
    sums: Pair, link: Link, chain: ChainForm, lost: float, clip: float
) -> Moves:
    """The same row by row, number by number."""
    rows = []
    for pair in zip(*sums, strict=True):
        on = any(bool(x != 0) for side in pair for x in side.flatten())
        factors = [1 - lost * on, float(on), float(on)]
        for k, (side, scale) in enumerate(zip(pair, chain.scales, strict=True)):
            size = side.norm() * link.log_rates[k].exp() * scale
            limit = clip * link[k].norm()  # type: ignore[union-attr]
            if clip and on and size > limit:
                factors[k + 1] = float(limit / size)
        rows.append(factors)
    return Moves(*(t[:, None, None] for t in sums[0].new_tensor(rows).unbind(1)))


def heard(sums: Pair) -> Tensor:
    """(B, 1, 1) rows with any signal."""
    up, down = (s.detach().abs().amax((1, 2)) for s in sums)
    return (up + down > 0)[:, None, None]


def shrunk(step: Tensor, meta: Tensor, rate: Tensor, clip: float) -> Tensor:
    """(B, 1, 1) min(1, limit / norm), with a finite gradient where nothing is to be written."""
    norm = step.flatten(1).norm(dim=1) * rate
    limit = clip * meta.norm()
    least = torch.maximum(norm, limit).clamp(min=torch.finfo(norm.dtype).tiny)
    return (limit / least)[:, None, None]
