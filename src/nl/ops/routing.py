"""Which experts read a token, and with what weight. Floor 1.

A router gives log-probabilities l over the experts. Chosen are the largest of l + noise + bias; the
weight of an answer is a function of l alone, so that what only serves the choice has no gradient
and the weight has one for every k, k = 1 included. Everything is a function of one token: no row
and no cut can be seen.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Gate = Literal["normalised", "probability", "sigmoid"]


class Chosen(NamedTuple):
    """What was chosen: ids (N, K) int64, ``count`` where a slot is not used, and gates (N, K)."""

    ids: Tensor
    gates: Tensor


_MULTIPLIERS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
_GOLDEN = -0x61C8864680B583EB


def mix_bits(x: Tensor) -> Tensor:
    """A bijection of 64-bit integers that spreads every bit over all (SplitMix64's finaliser)."""
    x = (x ^ _shifted(x, 30)) * _MULTIPLIERS[0]
    x = (x ^ _shifted(x, 27)) * _MULTIPLIERS[1]
    return x ^ _shifted(x, 31)


def mix_bits_reference(x: int) -> int:
    """The same for one Python integer, signed 64 bits in and out."""
    whole = (1 << 64) - 1
    x &= whole
    x = ((x ^ (x >> 30)) * (_MULTIPLIERS[0] & whole)) & whole
    x = ((x ^ (x >> 27)) * (_MULTIPLIERS[1] & whole)) & whole
    x ^= x >> 31
    return x - (1 << 64) if x >> 63 else x


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right of signed integers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def token_keys(tokens_BT: Tensor, position: int, draw: int) -> Tensor:
    """A key (B, T) int64 per token: of its id, its position and the draw, and of nothing else.

    Args:
        tokens_BT: ids; the first of them stands at ``position``.
        position: tokens read before.
        draw: one number per step.
    """
    places = torch.arange(position, position + tokens_BT.shape[1], device=tokens_BT.device)
    keys = mix_bits(tokens_BT.long() + (draw & ((1 << 62) - 1)))
    return mix_bits(keys + places * _GOLDEN)


def keyed_normal(keys_N: Tensor, count: int, salt: int = 0) -> Tensor:
    """Standard normal numbers (N, count), a pure function of keys and salt; no generator moves."""
    columns = torch.arange(1, count + 1, device=keys_N.device) + salt * (1 << 32)
    bits = mix_bits(keys_N[:, None] + columns * _GOLDEN)
    uniform = (_shifted(bits, 41).to(torch.float32) + 0.5) / (1 << 23)
    return torch.erfinv(2 * uniform - 1) * math.sqrt(2)


def limit_groups(score_NE: Tensor, groups: int, limit: int) -> Tensor:
    """Scores with all but the ``limit`` best groups at minus infinity.

    A group of neighbouring experts is as good as its two best together: logsumexp of their scores
    (arXiv 2412.19437, section 2.1.2, adds up probabilities).
    """
    parts = score_NE.unflatten(-1, (groups, -1))
    worth = parts.topk(min(2, parts.shape[-1]), dim=-1).values.logsumexp(-1)
    kept = torch.zeros_like(worth, dtype=torch.bool)
    kept.scatter_(1, worth.topk(limit, dim=-1).indices, True)
    return parts.masked_fill(~kept[..., None], -torch.inf).flatten(-2)


def choose_experts(
    logprob_NE: Tensor, score_NE: Tensor, k: Tensor, most: int, gate: Gate
) -> Chosen:
    """The k experts with the largest scores.

    Args:
        logprob_NE: (N, E) log-probabilities; for sigmoid gates logits.
        score_NE: (N, E) what they are chosen by.
        k: () int64, at most ``most``; may change from call to call.
        most: slots K.
        gate: see ``gate_weights``.
    """
    ids = score_NE.detach().topk(most, dim=-1).indices
    used = torch.arange(most, device=ids.device) < k
    gates = gate_weights(logprob_NE.gather(-1, ids), used, gate)
    return Chosen(torch.where(used, ids, score_NE.shape[-1]), gates)


def choose_experts_reference(
    logprob_NE: Tensor, score_NE: Tensor, k: int, gate: Gate
) -> list[list[tuple[int, Tensor]]]:
    """The same token by token: (expert, gate) of the k best, best first."""
    found = []
    for logprob, score in zip(logprob_NE, score_NE.tolist(), strict=True):
        best = sorted(range(len(score)), key=lambda e: -score[e])[:k]
        values = [logprob[e].sigmoid() if gate == "sigmoid" else logprob[e].exp() for e in best]
        total = sum(float(v.detach()) for v in values) if gate == "normalised" else 1.0
        found.append([(e, v / total) for e, v in zip(best, values, strict=True)])
    return found


def choose_pairs(
    left_NS: Tensor,
    right_NS: Tensor,
    scores: tuple[Tensor, Tensor],
    k: Tensor,
    most: int,
    gate: Gate,
) -> Chosen:
    """Product keys: expert i S + j has the score of i plus that of j (arXiv 1907.05242).

    The best ``most`` sums are among those of the ``most`` best of either half, so that S^2 experts
    cost 2 S scores.

    Args:
        left_NS, right_NS: (N, S) log-probabilities of both halves; for sigmoid gates logits.
        scores: what they are chosen by, (N, S) each.
        k, most, gate: see ``choose_experts``.
    """
    size = left_NS.shape[-1]
    few = min(most, size)
    first, second = (score.detach().topk(few, dim=-1) for score in scores)
    sums = (first.values[:, :, None] + second.values[:, None, :]).flatten(1)
    best = sums.topk(most, dim=-1).indices
    i, j = first.indices.gather(1, best // few), second.indices.gather(1, best % few)
    used = torch.arange(most, device=best.device) < k
    gates = gate_weights(left_NS.gather(-1, i) + right_NS.gather(-1, j), used, gate)
    return Chosen(torch.where(used, i * size + j, size * size), gates)


def gate_weights(logprob_NK: Tensor, used_K: Tensor, gate: Gate) -> Tensor:
    """Weights of the chosen answers, zero in slots that are not used.

    ``probability``: p, over all experts. ``normalised``: p over what the used slots sum to; that
    sum counts as a constant, so that the gradient is that of p and one expert alone has one, too.
    ``sigmoid``: of the logits.
    """
    p = logprob_NK.sigmoid() if gate == "sigmoid" else logprob_NK.exp()
    p = torch.where(used_K, p, 0.0)
    if gate != "normalised":
        return p
    return p / p.detach().sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)


def expert_counts(ids_BM: Tensor, count: int) -> Tensor:
    """How often each expert was chosen in each row, (B, E) fp32; ``count`` stands for nobody."""
    found = torch.zeros(len(ids_BM), count + 1, device=ids_BM.device)
    return found.scatter_add_(1, ids_BM, torch.ones_like(ids_BM, dtype=found.dtype))[:, :count]


def switch_loss(counts_BE: Tensor, probs_BE: Tensor) -> Tensor:
    """E sum_e f_e P_e, mean over rows: 1 where experts are used alike (arXiv 2101.03961, Eq. 4).

    f: the share of a row's choices (no gradient), P: the mean of its probabilities. Taken row by
    row (arXiv 2412.19437, Eq. 17), it does not depend on how rows are shared among ranks.

    Args:
        counts_BE: choices.
        probs_BE: sums of probabilities.
    """
    f = counts_BE / counts_BE.sum(-1, keepdim=True).clamp(min=1)
    p = probs_BE / probs_BE.detach().sum(-1, keepdim=True).clamp(min=torch.finfo(f.dtype).tiny)
    return counts_BE.shape[-1] * (f * p).sum(-1).mean()


def effective_experts(counts_E: Tensor) -> Tensor:
    """exp(entropy) of how often experts are used: E where alike, 1 where always the same."""
    share = counts_E / counts_E.sum().clamp(min=1)
    return torch.exp(-torch.special.xlogy(share, share).sum())
