"""Titans memories of any depth: reading, and writing one chunk exactly. Floor 1.

A memory maps K -> K through L weights, x_0 = k:

    x_l = silu(W_l x_{l-1}) + x_{l-1}   (l < L; the sum where widths agree)     M(k) = W_L x_{L-1}

Per token t of a chunk (Titans, arXiv 2501.00663, equations 13 and 14), with u_t the gradient of
|M(k_t) - v_t|^2 / 2 at the weights of the chunk start, which for layer l is delta_t x_t^T:

    S <- eta_t S - theta_t u_t                 D <- kept_t D + S,  kept_t = 1 - alpha_t

where W = B + D and B is what the memory decays toward. With m and b the products of eta and kept,

    D_C = b_C D_0 + f_C S_0 - Delta^T diag(theta r) X     f_C = sum_i (b_C / b_i) m_i
    S_C = m_C S_0 - Delta^T diag(theta m_C / m) X         r_j = sum_{i >= j} (b_C / b_i) (m_i / m_j)

so that a chunk costs one product per weight for D and S together and never a gradient per token.
Every ratio is at most one: nothing is divided by a decay. The steps are

    plain         theta_t = rate_t
    normalised    theta_t = (1 - eta_t) rate_t / (max(|x_t|^2, sum_j rate_j |<x_t, x_j>|) + 0.01)

over the chunk's own inputs of the layer. With the second, the write of a chunk is a contraction
of the errors for every linear memory: rate^{1/2} X X^T rate^{1/2} over those sums has no
eigenvalue above 1 (Gershgorin). N rows times heads, C tokens; tokens are the last dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu

from nl.ops.delta_rule import LOG_DECAY_MIN
from nl.ops.fast_mlp import activation_and_slope

CROWD_EPS = 1e-2
"""Added to what a normalised step is divided by, so that steps on tiny inputs stay small."""


class TitansTokens(NamedTuple):
    """Tokens to write.

    Attributes:
        keys: (N, K, C).
        values: (N, K, C).
        rate: (N, C) step sizes of the last layer.
        log_kept: (N, C) log of the forget gate's complement, <= 0.
        log_inertia: (N, C) log of the momentum gate eta, <= 0; None without momentum.
    """

    keys: Tensor
    values: Tensor
    rate: Tensor
    log_kept: Tensor
    log_inertia: Tensor | None


class TitansMemory(NamedTuple):
    """One memory per row and head at a chunk start.

    Attributes:
        weights: L tensors (N, out, in), the weights W in force.
        added: L tensors, D; W - D is what the memory decays toward.
        surprise: L tensors, the momentum S; empty without momentum.
    """

    weights: tuple[Tensor, ...]
    added: tuple[Tensor, ...]
    surprise: tuple[Tensor, ...]


class ChunkScales(NamedTuple):
    """What a chunk's gates amount to at its end.

    Attributes:
        kept: (N,) b_C, of D at the chunk start.
        write: (N, C) r, of each token's step in D.
        carried: (N,) f_C, of S at the chunk start in D.
        inertia: (N,) m_C, of S at the chunk start.
        push: (N, C) m_C / m, of each token's step in S. The last three: None without momentum.
    """

    kept: Tensor
    write: Tensor
    carried: Tensor | None = None
    inertia: Tensor | None = None
    push: Tensor | None = None


def chunk_scales(log_kept: Tensor, log_inertia: Tensor | None) -> ChunkScales:
    """Products and sums of products of the gates of one chunk.

    Args:
        log_kept: (N, C) <= 0, -inf allowed.
        log_inertia: (N, C) <= 0, -inf allowed, or None.

    Returns:
        The scales in the dtype of ``log_kept``; sums of logs are kept in float64.
    """
    dtype = log_kept.dtype
    b = log_kept.clamp(min=LOG_DECAY_MIN).double().cumsum(-1)
    to_end = (b[..., -1:] - b).to(dtype).exp()
    total = b[..., -1].to(dtype).exp()
    if log_inertia is None:
        return ChunkScales(total, to_end)
    m = log_inertia.clamp(min=LOG_DECAY_MIN).double().cumsum(-1)
    size = log_kept.shape[-1]
    later = torch.ones(size, size, dtype=torch.bool, device=b.device).tril()
    gap = (m.unsqueeze(-1) - m.unsqueeze(-2)).to(dtype)
    ratio = gap.masked_fill(~later, float("-inf")).exp()
    end = to_end.unsqueeze(-2)
    inertia = m.to(dtype).exp()
    return ChunkScales(
        kept=total,
        write=(end @ ratio).squeeze(-2),
        carried=(to_end * inertia).sum(-1),
        inertia=inertia[..., -1],
        push=ratio[..., -1, :],
    )


def titans_read(weights: Sequence[Tensor], x: Tensor) -> Tensor:
    """M(x) for x (N, K, C) -> (N, K, C), in the dtype of the weights or as autocast says."""
    x = x.to(weights[0].dtype)
    for weight in weights[:-1]:
        y = silu(weight @ x)
        x = y + x if y.shape[-2] == x.shape[-2] else y
    return weights[-1] @ x


def gradient_factors(
    weights: Sequence[Tensor], keys: Tensor, values: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs x_{l-1} (N, in, C) and deltas (N, out, C) of every layer: u_t = delta_t x_t^T."""
    inputs, slopes = [keys], []
    for weight in weights[:-1]:
        x = inputs[-1]
        y, slope = activation_and_slope(weight @ x, "silu")
        inputs.append(y + x if y.shape[-2] == x.shape[-2] else y)
        slopes.append(slope)
    deltas = [weights[-1] @ inputs[-1] - values]
    back = weights[-1].mT @ deltas[0]
    for i in range(len(weights) - 2, -1, -1):
        deltas.insert(0, back * slopes[i])
        if i:
            below = weights[i].mT @ deltas[0]
            back = below + back if below.shape[-2] == back.shape[-2] else below
    return inputs, deltas


def crowd(inputs: Tensor, rate: Tensor) -> Tensor:
    """What a normalised step is divided by, (N, C); inputs (N, in, C), rate (N, C)."""
    gram = inputs.mT @ inputs
    shared = (gram.abs() @ rate.unsqueeze(-1)).squeeze(-1)
    return torch.maximum(gram.diagonal(dim1=-2, dim2=-1), shared) + CROWD_EPS


def titans_write(
    memory: TitansMemory, tokens: TitansTokens, hidden_share: Tensor | None, normalised: bool
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Write one chunk.

    Args:
        memory: at the chunk start.
        tokens: of the chunk.
        hidden_share: (N, 1), the rate of all layers but the last as a share of ``tokens.rate``;
            None for a memory of one layer.
        normalised: which step; see the module's equations.

    Returns:
        D and S (empty without momentum) at the chunk end.
    """
    scales = chunk_scales(tokens.log_kept, tokens.log_inertia)
    inputs, deltas = gradient_factors(memory.weights, tokens.keys, tokens.values)
    added, surprise = [], []
    for i, (x, delta) in enumerate(zip(inputs, deltas, strict=True)):
        theta = tokens.rate
        if hidden_share is not None and i < len(inputs) - 1:
            theta = theta * hidden_share
        if normalised:
            theta = theta / crowd(x, theta)
            if tokens.log_inertia is not None:
                theta = theta * -torch.expm1(tokens.log_inertia)
        old = memory.surprise[i] if memory.surprise else None
        more, momentum = _step(memory.added[i], old, theta, (delta, x), scales)
        added.append(more)
        if momentum is not None:
            surprise.append(momentum)
    return tuple(added), tuple(surprise)


def _step(
    added: Tensor,
    surprise: Tensor | None,
    theta: Tensor,
    gradient: tuple[Tensor, Tensor],
    scales: ChunkScales,
) -> tuple[Tensor, Tensor | None]:
    """D and S of one layer after the chunk; ``gradient`` holds delta and x."""
    delta, x = gradient
    kept = scales.kept[:, None, None] * added
    into = (theta * scales.write).unsqueeze(-2) * delta
    if surprise is None or scales.push is None:
        return torch.baddbmm(kept, into, x.mT, alpha=-1), None
    assert scales.carried is not None
    assert scales.inertia is not None
    push = (theta * scales.push).unsqueeze(-2) * delta
    change = torch.cat([into, push], dim=-2) @ x.mT
    to_added, to_surprise = change.split(delta.shape[-2], dim=-2)
    kept = torch.addcmul(kept, scales.carried[:, None, None], surprise)
    return kept - to_added, scales.inertia[:, None, None] * surprise - to_surprise


def titans_write_reference(
    memory: TitansMemory, tokens: TitansTokens, hidden_share: Tensor | None, normalised: bool
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The token loop that ``titans_write`` must equal, with inner gradients by autograd."""
    frozen = [w + 0 if w.requires_grad else w.clone().requires_grad_() for w in memory.weights]
    added = list(memory.added)
    surprise = list(memory.surprise) or [torch.zeros_like(d) for d in added]
    last = len(frozen) - 1
    share = 1 if hidden_share is None else hidden_share
    rates = [tokens.rate * (1 if i == last else share) for i in range(last + 1)]
    features = [_features_reference(frozen[:i], tokens.keys) for i in range(last + 1)]
    for t in range(tokens.keys.shape[-1]):
        key, value = tokens.keys[..., t, None], tokens.values[..., t, None]
        error = frozen[last] @ _features_reference(frozen[:last], key) - value
        loss = error.square().sum() / 2
        gradients = torch.autograd.grad(loss, frozen, create_graph=True)
        inertia = torch.zeros_like(tokens.rate[:, t])
        if tokens.log_inertia is not None:
            inertia = tokens.log_inertia[:, t].exp()
        for i, gradient in enumerate(gradients):
            theta = rates[i][:, t]
            if normalised:
                products = torch.einsum("nf,nfc->nc", features[i][..., t], features[i])
                shared = (products.abs() * rates[i]).sum(-1)
                theta = (1 - inertia) * theta
                theta = theta / (torch.maximum(products[:, t], shared) + CROWD_EPS)
            step, eta = theta[:, None, None], inertia[:, None, None]
            surprise[i] = eta * surprise[i] - step * gradient
            kept = tokens.log_kept[:, t, None, None].exp()
            added[i] = kept * added[i] + surprise[i]
    return tuple(added), tuple(surprise) if memory.surprise else ()


def _features_reference(weights: Sequence[Tensor], x: Tensor) -> Tensor:
    """The input of the layer after ``weights``."""
    for weight in weights:
        z = weight @ x
        y = z / (1 + torch.exp(-z))
        x = y + x if y.shape[-2] == x.shape[-2] else y
    return x
