"""Options of the continuum memory. Floor 2."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any, Literal

from nl.config import require
from nl.config.groups import InnerConfig
from nl.nn.inner import SGD
from nl.nn.surprise import SurpriseConfig

SMALLEST_PERIOD = 16


@dataclass(frozen=True, kw_only=True)
class CMSConfig:
    """Levels in the order of the chain: the first is closest to the sequence mixer."""

    periods: tuple[int, ...] = (64, 256, 1024, 4096)
    """Tokens between writes of each level; every one a multiple of the smallest."""
    arrangement: Literal["sequential", "nested", "independent"] = "sequential"
    """sequential: a chain. nested: a chain whose slower level owns what the faster one starts from
    again after each of its writes. independent: all levels read the same input, learned gains."""
    hidden: int | None = None
    """Hidden width of every level; None: model.dim, so that four levels weigh as much as an MLP."""
    activation: Literal["silu", "swiglu", "gelu", "gelu_tanh"] = "silu"
    """Between the two layers of a level; swiglu has a gate beside the first."""
    norm: Literal["rms", "layer"] = "rms"
    """What a level's input is divided by: its rms, or its deviation from the mean."""
    norm_eps: float = 1e-6
    """Added to the variance there."""
    bias: bool = False
    """Biases of both layers; no write changes them."""
    scope: Literal["row", "batch"] = "row"
    """row: every row has a memory of its own. batch: one memory for all rows, in training of all
    ranks (for models whose memories are too large per row); rows then see each other."""
    signal: Literal["head", "block", "self"] = "head"
    """What a write descends on. head: the loss of every token, as the head sees it. block: the
    loss of the tile as the output of the block moves it, by autograd inside the step. self: a level
    learns to answer learned keys of its own input with learned values; no label is needed."""
    write_gradient: Literal["stop", "through"] = "stop"
    """stop: what a write adds is a constant of the outer loss. through: the outer loss is
    differentiated through the writes, signals included."""
    bptt_chunks: int = 0
    """With through: every so many writes of a level, 2 or more, one is cut off from what it was
    computed from; 0: none."""
    rate: float = 1.0
    """Initial inner learning rate of the levels, relative to the size of their input (learned). A
    level that sums the gradients of more than dim / 4 tokens, or has momentum, starts lower
    (``first_rate``)."""
    retention: float = 0.9
    """Share of the fast weights that a write keeps; 1 never forgets."""
    clip: float = 0.1
    """Largest norm of one write relative to the norm of the meta weights; 0 switches it off."""
    inner: InnerConfig = field(default_factory=SGD)
    """Inner optimizer of every level: sgd, momentum, delta, adam, muon or deep."""
    surprise: SurpriseConfig = field(default_factory=SurpriseConfig)
    """Which tokens may write."""
    recompute: bool = True
    """Make what was written by sgd again in the backward pass, where a write has at least six
    times the numbers of what it is made of (wide levels of short periods); false keeps it all."""
    allow_short_periods: bool = False
    """Allow periods below 16, which run an order of magnitude slower."""

    def __post_init__(self) -> None:
        require(len(self.periods) > 0, "periods: []; name at least one period.")
        smallest = min(self.periods)
        require(smallest >= 1, f"periods: {list(self.periods)}; every period must be >= 1.")
        require(
            all(p % smallest == 0 for p in self.periods),
            f"periods: {list(self.periods)}; every period must be a multiple of the smallest, "
            f"{smallest}.",
        )
        require(
            smallest >= SMALLEST_PERIOD or self.allow_short_periods,
            f"periods: {smallest} is below {SMALLEST_PERIOD}; set "
            "model.cms.allow_short_periods=true if you mean it.",
        )
        require(
            self.arrangement != "nested" or _nests(self.periods),
            f"periods: {list(self.periods)}; in arrangement=nested every period must be a larger "
            "multiple of the one before it.",
        )
        require(self.hidden is None or self.hidden >= 1, f"hidden: {self.hidden}; must be >= 1.")
        self._check_writes()
        require(self.norm_eps > 0, f"norm_eps: {self.norm_eps}; must be > 0.")
        require(self.rate > 0, f"rate: {self.rate}; must be > 0.")
        require(0 < self.retention <= 1, f"retention: {self.retention}; must be in (0, 1].")
        require(self.clip >= 0, f"clip: {self.clip}; must be >= 0.")

    def first_rate(self, period: int, dim: int) -> float:
        """What the learned rate of a level starts from: ``rate`` * min(1, dim / (4 period)) / S.

        A write by ``sgd`` or ``momentum`` sums the steps of its tokens. Inputs of root mean square
        1 in random directions add up to a largest curvature of (1 + sqrt(period / dim))^2 times
        that of one token, 2.25 at dim / 4 tokens: from there on it grows with the period, and past
        2 / rate a step overshoots, so that rounding errors grow from write to write. Momentum adds
        each gradient S = 1 / (1 - beta) times; S is 1 for ``sgd``. The others have steps of their
        own size: they start from ``rate``.
        """
        inner: Any = self.inner
        total: float | None = inner.total
        return self.rate if total is None else self.rate / total * min(1.0, dim / (4 * period))

    @property
    def rebuilds(self) -> bool:
        """Whether what a write adds can be, and may be, made again from its tokens."""
        inner: Any = self.inner
        alone = self.arrangement != "nested" and self.scope == "row"
        return self.recompute and inner.linear and alone and self.write_gradient == "stop"

    @property
    def links(self) -> bool:
        """Whether the levels are a chain that nothing but gradient descent writes into."""
        inner: Any = self.inner
        plain = inner.linear and not self.bias and self.write_gradient == "stop"
        chained = self.arrangement == "sequential" and self.signal != "self"
        return plain and chained and self.scope == "row"

    @property
    def requires(self) -> dict[str, str]:
        """Capabilities of a strategy that the writes need, and what to do without."""
        if self.signal == "block":
            return {"inner_autograd": "set model.cms.signal=head or launch train.py"}
        if self.write_gradient == "through" and self.signal != "self":
            return {"grad_through_write": "set model.cms.write_gradient=stop or launch train.py"}
        return {}

    def _check_writes(self) -> None:
        """Signal, gradient and inner optimizer of a write have to fit."""
        through = self.write_gradient == "through"
        require(
            self.signal != "self" or through,
            f"signal: self; keys and values learn through the writes only, write_gradient is "
            f"{self.write_gradient}: set model.cms.write_gradient=through.",
        )
        require(
            self.signal != "self" or self.surprise.gate == "none",
            f"signal: self; there is no label to be surprised by, surprise.gate is "
            f"{self.surprise.gate}: set model.cms.surprise.gate=none or model.cms.signal=head.",
        )
        require(
            self.signal != "block" or not through,
            "signal: block; it is a gradient itself and has none: set "
            "model.cms.write_gradient=stop or model.cms.signal=head.",
        )
        inner: Any = self.inner
        shared = self.scope == "batch"
        require(
            not shared or not through,
            "scope: batch; gradients do not cross ranks: set model.cms.write_gradient=stop or "
            "model.cms.scope=row.",
        )
        require(
            not shared or not inner.per_token,
            f"scope: batch; inner.kind={inner.kind} writes token by token, rows have no order: set "
            "model.cms.inner={kind:sgd} or model.cms.scope=row.",
        )
        require(
            not through or inner.differentiable,
            f"write_gradient: through; the step of inner.kind={inner.kind} has a size of its own "
            "and no gradient at a zero signal: set model.cms.inner={kind:sgd} (or momentum, delta) "
            "or model.cms.write_gradient=stop.",
        )
        require(
            self.bptt_chunks == 0 or (through and self.bptt_chunks >= 2),
            f"bptt_chunks: {self.bptt_chunks}; must be 0 or, with "
            "model.cms.write_gradient=through, >= 2 (1 would cut every write, which is "
            "model.cms.write_gradient=stop).",
        )


def _nests(periods: tuple[int, ...]) -> bool:
    return all(b > a and b % a == 0 for a, b in itertools.pairwise(periods))
