"""Options of sparse experts. Floor 2."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from nl.config import require
from nl.ops.routing import Gate

RouterKind = Literal["flat", "group_limited", "hierarchical", "product_key"]
GROUPED = ("group_limited", "hierarchical")


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """Many small feed-forward layers of which a token reads k, in the place of one."""

    form: Literal["none", "low_rank", "swiglu"] = "none"
    """none: dense layers. low_rank: phi(x A) B of a small rank. swiglu: experts that are themselves
    SwiGLU layers."""
    count: int | None = None
    """Experts of a layer."""
    rank: int | None = None
    """Hidden units of a low_rank expert."""
    width: int | None = None
    """Hidden units of a swiglu expert."""
    activation: Literal["relu", "silu", "gelu"] | None = None
    """phi of low_rank experts; null: relu. The levels of a continuum memory have their own."""
    k: int | tuple[int, ...] = 2
    """Experts that read a token; a list has one number per layer."""
    k_max: int | None = None
    """Most experts that a controller may ask for; null: the largest k."""
    shared: int = 0
    """Experts that read every token, beside the k."""
    first_dense: int = 0
    """Blocks at the beginning that stay dense."""
    router: RouterKind = "flat"
    """flat: a score per expert. group_limited: of the best group_limit groups only. hierarchical:
    p(group) p(expert | group), both learned. product_key: sums of two half scores."""
    groups: int | None = None
    """Groups of neighbouring experts, with group_limited and hierarchical."""
    group_limit: int | None = None
    """Groups that a token may use; null: all (hierarchical)."""
    key_size: int | None = None
    """Width of each half of the query, with product_key; null: half of model.dim."""
    gate: Gate = "normalised"
    """Weight of an answer. normalised: its probability over those of the chosen; probability: as it
    is; sigmoid: of its logit, and only what is chosen has a gradient."""
    scale: float = 1.0
    """Multiplies the weights."""
    temperature: float = 1.0
    """Divides the logits, for the choice and the weights."""
    noise: float = 0.0
    """Standard deviation of what is added to the logits for the choice, in training: a function of
    the step, the token and its position."""
    balance: float = 0.0
    """Step by which the bias of an expert moves after every optimizer step, up where it was used
    less than the mean (arXiv 2408.15664); it changes the choice only. 0: no bias."""
    switch_loss: float = 0.0
    """Weight of the load-balancing loss of every row (arXiv 2101.03961)."""
    z_loss: float = 0.0
    """Weight of the squared logsumexp of the logits (arXiv 2202.08906)."""

    def __post_init__(self) -> None:
        if self.form == "none":
            self._check_unused()
            return
        count = self.count
        require(
            count is not None and count >= 2,
            f"count: {count}; form={self.form} needs at least 2 experts.",
        )
        self._check_size("rank", "low_rank")
        self._check_size("width", "swiglu")
        require(
            self.activation is None or self.form == "low_rank",
            f"activation: {self.activation}; swiglu has its own: leave it out.",
        )
        self._check_k()
        self._check_router()
        require(self.shared >= 0, f"shared: {self.shared}; must be >= 0.")
        require(self.first_dense >= 0, f"first_dense: {self.first_dense}; must be >= 0.")
        for name in ("scale", "temperature"):
            value = getattr(self, name)
            require(value > 0, f"{name}: {value}; must be > 0.")
        for name in ("noise", "balance", "switch_loss", "z_loss"):
            value = getattr(self, name)
            require(value >= 0, f"{name}: {value}; must be >= 0.")

    @property
    def sparse(self) -> bool:
        """Whether there are experts."""
        return self.form != "none"

    @property
    def most(self) -> int:
        """Slots per token."""
        largest = self.k if isinstance(self.k, int) else max(self.k)
        return largest if self.k_max is None else self.k_max

    @property
    def hidden(self) -> int:
        """Hidden units of one expert."""
        return self.rank or self.width or 0

    def k_of(self, layer: int) -> int:
        """Experts that read a token in this layer."""
        return self.k if isinstance(self.k, int) else self.k[layer]

    def at(self, layer: int) -> ExpertsConfig:
        """What one layer is built by: dense, or with a number for k."""
        if not self.sparse or layer < self.first_dense:
            return ExpertsConfig()
        return replace(self, k=self.k_of(layer), k_max=self.most, first_dense=0)

    def _check_unused(self) -> None:
        for field in fields(self):
            value: Any = getattr(self, field.name)
            require(
                value == field.default,
                f"{field.name}: {value}; there are no experts with form=none: set "
                f"model.experts.form=low_rank (or swiglu) or leave {field.name} out.",
            )

    def _check_size(self, name: str, kind: str) -> None:
        value = getattr(self, name)
        if self.form == kind:
            require(
                value is not None and value >= 1,
                f"{name}: {value}; form={kind} needs at least 1 hidden unit per expert.",
            )
        else:
            require(
                value is None,
                f"{name}: {value}; form={self.form} does not read it: leave it out or set "
                f"model.experts.form={kind}.",
            )

    def _check_k(self) -> None:
        each = (self.k,) if isinstance(self.k, int) else self.k
        most = self.most if each else 0
        require(
            len(each) > 0 and min(each) >= 1 and max(each) <= most,
            f"k: {self.k}; must be from 1 to k_max ({most}).",
        )
        require(
            most <= (self.count or 0),
            f"{'k' if self.k_max is None else 'k_max'}: {most}; there are only {self.count} "
            "experts.",
        )

    def _check_router(self) -> None:
        kind, count = self.router, self.count or 0
        for name in ("groups", "group_limit"):
            require(
                kind in GROUPED or getattr(self, name) is None,
                f"{name}: {getattr(self, name)}; router={kind} has no groups: leave it out or set "
                "model.experts.router=group_limited (or hierarchical).",
            )
        require(
            kind == "product_key" or self.key_size is None,
            f"key_size: {self.key_size}; router={kind} has no keys: leave it out or set "
            "model.experts.router=product_key.",
        )
        if kind in GROUPED:
            self._check_groups(count)
        if kind == "product_key":
            require(
                math.isqrt(count) ** 2 == count,
                f"count: {count}; router=product_key needs a square number of experts.",
            )
            require(
                self.key_size is None or self.key_size >= 1,
                f"key_size: {self.key_size}; must be >= 1.",
            )
            require(
                self.balance == 0,
                f"balance: {self.balance}; a bias per expert is no sum of two halves: set "
                "model.experts.switch_loss instead, or another router.",
            )
        require(
            kind != "hierarchical" or self.gate != "sigmoid",
            "gate: sigmoid; router=hierarchical multiplies probabilities: set "
            "model.experts.gate=normalised or probability.",
        )

    def _check_groups(self, count: int) -> None:
        groups, limit = self.groups, self.group_limit
        require(
            groups is not None and groups >= 1 and count % groups == 0,
            f"groups: {groups}; router={self.router} needs a divisor of count ({count}).",
        )
        require(
            limit is not None or self.router == "hierarchical",
            "group_limit: null; router=group_limited needs the number of groups that a token may "
            "use.",
        )
        each = count // (groups or 1)
        require(
            limit is None or (1 <= limit <= (groups or 1) and limit * each >= self.most),
            f"group_limit: {limit}; must be from 1 to {groups} groups, which hold k_max "
            f"({self.most}) experts.",
        )
