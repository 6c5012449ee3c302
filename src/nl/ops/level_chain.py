"""Levels one after another: y = MLP_L(... MLP_1(x)), and the signal of y at every level. Floor 1.

The equations of a level are those of ``nl.ops.level``; a level adds to what it reads, and the
signal at its input is that of its result, pulled back. Here the levels of a chain have one form,
and may be one autograd node and one call of a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nl.ops.level import (
    Again,
    LevelForm,
    LevelWeights,
    level_branch,
    level_branch_reference,
    level_gradients,
    level_gradients_reference,
    level_hidden_signal,
    level_pull_back,
)
from nl.ops.level_chain_native import _chain_native, _moves_native, _signals_native

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
    found = _chain_native(chain, links, again, x_BTD)
    if found is not None:
        return found
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
        rates = link.log_rates.to(on.dtype).exp().unbind()
        pairs = zip(sums, link[:2], rates, chain.scales, strict=True)
        shrinks = [on * shrunk(step, meta, rate * s, clip) for step, meta, rate, s in pairs]
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
