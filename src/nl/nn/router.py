"""Routers: scores of a token over experts, with a gradient in every weight for every k. Floor 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nl.nn.experts_config import GROUPED, ExpertsConfig
from nl.ops.routing import (
    Chosen,
    choose_experts,
    choose_pairs,
    expert_counts,
    keyed_normal,
    limit_groups,
    switch_loss,
)

LOGIT_STD = 0.3
"""Of the first logits: p starts near uniform, and who comes first is decided by little."""


class RouteContext(NamedTuple):
    """What the routers of one block are told, as tensors: other values compile nothing anew.

    Attributes:
        k: () int64, experts per token.
        temperature: () divides the logits.
        noise: () standard deviation; None outside training.
        keys: (B, T) int64, what the noise of a token is a function of; None without noise.
    """

    k: Tensor
    temperature: Tensor
    noise: Tensor | None = None
    keys: Tensor | None = None

    @classmethod
    def of(cls, config: ExpertsConfig, device: torch.device) -> RouteContext:
        """As configured for a layer, without noise."""
        k = torch.full((), config.k_of(0), dtype=torch.int64, device=device)
        return cls(k, torch.full((), config.temperature, device=device))


class Routing(NamedTuple):
    """What one layer's choices were, row by row; sums over tokens, so that cuts add up.

    Attributes:
        counts: (B, E) how often each expert was chosen.
        probs: (B, E) summed probabilities; None without switch_loss.
        z: (B, 2) summed squared logsumexp of the logits, and tokens; None without z_loss.
    """

    counts: Tensor
    probs: Tensor | None
    z: Tensor | None


class Router(nn.Module):
    """x (B, T, D) -> which experts read a token, with what weight.

    Weights are plain parameters: an optimizer for hidden matrices and low-precision copies are not
    for them. ``salt`` tells apart the noise of routers of one block. ``bias`` moves by the sign of
    how much less than the mean an expert was used (``rebalance``, after each optimizer step);
    ``load`` is what has been counted since.
    """

    def __init__(self, config: ExpertsConfig, dim: int, salt: int = 0) -> None:
        super().__init__()
        assert config.count is not None
        self.config, self.count, self.salt = config, config.count, salt
        std = LOGIT_STD * dim**-0.5
        if config.router == "product_key":
            size, width = round(self.count**0.5), config.key_size or max(dim // 2, 1)
            self.query = nn.Parameter(torch.randn(2, width, dim) * dim**-0.5)
            self.keys = nn.Parameter(torch.randn(2, size, width) * LOGIT_STD * (2 * width) ** -0.5)
        else:
            self.weight = nn.Parameter(torch.randn(self.count, dim) * std)
        if config.router == "hierarchical":
            assert config.groups is not None
            self.group = nn.Parameter(torch.randn(config.groups, dim) * std)
        self.bias: Tensor | None
        self.register_buffer("bias", torch.zeros(self.count) if config.balance else None)
        self.load: Tensor | None
        zeros = torch.zeros(self.count) if config.balance else None
        self.register_buffer("load", zeros, persistent=False)

    def forward(self, x_BTD: Tensor, route: RouteContext) -> tuple[Chosen, Routing]:
        """Choose for every token.

        Returns:
            ids and gates (B T, K), and what was counted.
        """
        rows, c = len(x_BTD), self.config
        with torch.autocast(x_BTD.device.type, enabled=False):
            x = x_BTD.flatten(0, 1).to(torch.promote_types(x_BTD.dtype, torch.float32))
            logits = [part / route.temperature for part in self._logits(x)]
            free = c.gate == "sigmoid" and not c.switch_loss
            probs = [] if free else [part.log_softmax(-1) for part in logits]
            values = self._joint(logits if c.gate == "sigmoid" else probs)
            scores = [self._noisy(part, route, i) for i, part in enumerate(values)]
            chosen = self._choose(values, scores, route.k)
            if c.scale != 1:
                chosen = chosen._replace(gates=chosen.gates * c.scale)
            counts = expert_counts(chosen.ids.view(rows, -1), self.count)
            summed = self._summed(probs, rows) if c.switch_loss else None
            z = self._z(logits, rows) if c.z_loss else None
        return chosen, Routing(counts, summed, z)

    def gates(self, x_BTD: Tensor, route: RouteContext) -> tuple[Tensor, Routing]:
        """The weight of every expert, zero where it does not read, (B, T, E); 1 for shared ones."""
        chosen, found = self(x_BTD, route)
        whole = chosen.gates.new_zeros(len(chosen.gates), self.count + 1)
        whole = whole.scatter(1, chosen.ids, chosen.gates)[:, : self.count]
        whole = torch.nn.functional.pad(whole, (0, self.config.shared), value=1.0)
        return whole.view(*x_BTD.shape[:2], -1), found

    def _logits(self, x: Tensor) -> list[Tensor]:
        """One score per expert; of group and of expert; or of both halves."""
        if self.config.router == "product_key":
            queries = [x @ query.T for query in self.query]
            return [q @ keys.T for q, keys in zip(queries, self.keys, strict=True)]
        own = x @ self.weight.T
        if self.config.router != "hierarchical":
            return [own]
        groups = x @ self.group.T
        return [groups, own.unflatten(-1, (groups.shape[-1], -1))]

    def _joint(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Over all experts: log p(group) + log p(expert | group); halves stay as they are."""
        if self.config.router == "hierarchical":
            return [(parts[0][..., None] + parts[1]).flatten(-2)]
        return list(parts)

    def _noisy(self, score: Tensor, route: RouteContext, part: int) -> Tensor:
        score = score.detach()
        if route.noise is not None:
            assert route.keys is not None
            salt = 2 * self.salt + part
            drawn = keyed_normal(route.keys.flatten(), score.shape[-1], salt)
            score = score + route.noise * drawn
        return score if self.bias is None else score + self.bias

    def _choose(self, values: Sequence[Tensor], scores: Sequence[Tensor], k: Tensor) -> Chosen:
        c = self.config
        if c.router == "product_key":
            left, right = values
            return choose_pairs(left, right, (scores[0], scores[1]), k, c.most, c.gate)
        score = scores[0]
        if c.router in GROUPED and c.group_limit is not None:
            assert c.groups is not None
            score = limit_groups(score, c.groups, c.group_limit)
        return choose_experts(values[0], score, k, c.most, c.gate)

    def _summed(self, logprobs: Sequence[Tensor], rows: int) -> Tensor:
        """Probabilities of every expert, summed over the tokens of a row, (B, E)."""
        probs = [part.exp().unflatten(0, (rows, -1)) for part in logprobs]
        if self.config.router == "product_key":
            return (probs[0].mT @ probs[1]).flatten(1)
        if self.config.router == "hierarchical":
            return (probs[0][..., None] * probs[1]).sum(1).flatten(1)
        return probs[0].sum(1)

    def _z(self, logits: Sequence[Tensor], rows: int) -> Tensor:
        total: Any = sum(part.logsumexp(-1).square().view(len(part), -1).mean(1) for part in logits)
        each = total.view(rows, -1)
        return torch.stack([each.sum(1), torch.ones_like(each).sum(1)], 1)

    def losses(self, found: Routing) -> Tensor | None:
        """The router's own loss per token, weighted; None without any."""
        c, terms = self.config, []
        if found.probs is not None:
            terms.append(c.switch_loss * switch_loss(found.counts, found.probs))
        if found.z is not None:
            terms.append(c.z_loss * (found.z[:, 0] / found.z[:, 1]).mean())
        return torch.stack(terms).sum() if terms else None

    @torch.no_grad()
    def counted(self, found: Routing) -> None:
        """Remember what was chosen, until ``rebalance``."""
        if self.load is not None:
            self.load += found.counts.sum(0)

    @torch.no_grad()
    def rebalance(self, load: Tensor | None) -> None:
        """After an optimizer step: move the bias by ``balance`` toward equal use.

        Args:
            load: choices of this step over all ranks; None: the step was refused.
        """
        assert self.bias is not None
        assert self.load is not None
        if load is not None:
            step = torch.sign(load.mean() - load)
            self.bias += self.config.balance * (step - step.mean()).to(self.bias.dtype)
        self.load.zero_()


def added(first: Routing, second: Routing) -> Routing:
    """The choices of two pieces of the same rows as those of one."""
    probs, z = (
        None if a is None or b is None else a + b
        for a, b in zip(first[1:], second[1:], strict=True)
    )
    return Routing(first.counts + second.counts, probs, z)
