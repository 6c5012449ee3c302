"""The memory of the head: a fast matrix that learns what was said, one rate per word. Floor 2.

The head is the level of a language model whose gradient is cheapest, (softmax - onehot) h^T, and
whose mistakes repeat most: a name that was just read comes again. Its own update, one step of
gradient descent per period with a rate for every output neuron, is a level of the continuum like
any other (Nested Learning, Eq. 71: the frequency of a level is how often it is written).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nl.config import require
from nl.nn.cms_config import CMSConfig
from nl.ops.head_walk import HeadRule, HeadWeights, HeadWrites


@dataclass(frozen=True, kw_only=True)
class HeadMemoryConfig:
    """How the head learns while it reads."""

    period: int = 0
    """Tokens between writes; 0: the head does not learn. Short periods gain more: 8 is a start."""
    rate: float = 0.5
    """Initial inner learning rate of every word, relative to the size of what the head reads. The
    rate is learned, as a function of the word's row of the head."""
    limit: float = 4.0
    """No word's rate grows beyond this."""
    retention: float = 0.9995
    """Share of the fast matrix that a write keeps; 1 never forgets."""

    def __post_init__(self) -> None:
        require(self.period >= 0, f"period: {self.period}; must be >= 0 (0: no head memory).")
        require(
            0 < self.rate < self.limit,
            f"rate: {self.rate}; must be > 0 and below limit ({self.limit}).",
        )
        require(0 < self.retention <= 1, f"retention: {self.retention}; must be in (0, 1].")


def check_head(head: HeadMemoryConfig, cms: CMSConfig) -> None:
    """Refuse levels whose writes follow from something else than the loss of every token as read.

    Raises:
        ConfigError: with the key to change.
    """
    if not head.period:
        return
    asked = f"head_memory.period: {head.period}; "
    out = "or model.head_memory.period=0."
    require(
        cms.signal != "block",
        f"{asked}with cms.signal=block tiles are read again, the head would write twice: set "
        f"model.cms.signal=head {out}",
    )
    require(
        cms.write_gradient == "stop",
        f"{asked}its writes are constants of the outer loss, those of the levels are not: set "
        f"model.cms.write_gradient=stop {out}",
    )
    require(
        cms.scope == "row",
        f"{asked}every row has a head of its own: set model.cms.scope=row {out}",
    )
    require(
        cms.surprise.gate == "none",
        f"{asked}it learns from every token, cms.surprise.gate={cms.surprise.gate} does not: set "
        f"model.cms.surprise.gate=none {out}",
    )


class HeadMemory(nn.Module):
    """What is learned about the writes of a head; the fast matrix itself is State."""

    memory_parameters = True
    begins_fresh = True

    def __init__(self, config: HeadMemoryConfig, dim: int, head_std: float) -> None:
        """A head of rows with ``dim`` entries, drawn so that logits have this deviation."""
        super().__init__()
        self.config = config
        first = torch.tensor([config.rate])
        self.log_rate = nn.Parameter((first / (1 - first / config.limit)).log())
        self.toward = nn.Parameter(torch.zeros(dim))
        # Entries of a row in units of their first size: a step of the outer optimizer moves the
        # rates of words apart as it would with inputs of size 1.
        self.scale = dim**0.5 / head_std

    def rule(self, gain: float | None, last: bool, keep: bool) -> HeadRule:
        """How it writes; ``gain`` None: it only reads. ``last``, ``keep``: see ``HeadRule``."""
        period = self.config.period
        size = max(len(self.toward) // period, 1) * period
        return HeadRule(period, self.config.retention, size, gain, last, keep)

    def weights(self, weight: Tensor) -> HeadWeights:
        """The head's weight (V, D) with its rates."""
        return HeadWeights(weight, self.log_rate, self.toward, self.scale, self.config.limit)

    def added(self, weight: Tensor, writes: HeadWrites) -> Tensor:
        """Norm of what was written, times its rates, relative to the head's; mean over rows."""
        if writes.fast is None:
            return weight.new_zeros(())
        rate = self.weights(weight).rate()
        size = torch.linalg.vector_norm(writes.fast, dim=2)  # a square of S would be as large
        return (size * rate).norm(dim=1).mean() / weight.norm()
