"""What can be chosen about Titans memories and the layouts around them. Floor 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nl.config import require


@dataclass(frozen=True, kw_only=True)
class TitanConfig:
    """The Titans memory of a block, and the attention beside it."""

    head_size: int = 64
    """Width of one head's keys, values and queries; must divide the layer's width."""
    hidden: int | None = None
    """Hidden width of every memory; null = head_size, where inner layers get a residual."""
    depth: int = 2
    """Layers of every memory, 1 (linear) to 4."""
    period: int = 64
    """Tokens between writes; the segment of titan_mac."""
    conv: int = 4
    """Width of the causal convolution over queries, keys and values; 0 = none."""
    gate: bool = False
    """Gate what the memory answers per channel (titan_mac has a gate of its own instead); recall is
    learned later with it."""
    momentum: bool = True
    """Keep a momentum of past surprise (equation 14)."""
    step: Literal["normalised", "plain"] = "normalised"
    """Step sizes divided by what a chunk's inputs share, or as the gate gives them."""
    retention: Literal["anchor", "zero"] = "anchor"
    """Forget toward the initial memory, or toward zero (the paper's letter)."""
    rate: float = 0.5
    """Initial step size of the last layer, in (0, 1); data dependent and learned."""
    rate_hidden: float = 0.01
    """Initial step size of the other layers, in (0, rate)."""
    inertia: float = 0.5
    """Initial momentum gate per token, in (0, 1); data dependent and learned."""
    retain: float = 0.9
    """Initial share of a write that is left after one period, in (0, 1); data dependent."""
    recompute: bool = True
    """Compute convolutions and writes again in the backward pass: half the memory, a sixth more
    time."""
    window: int = 256
    """Tokens seen by the attention of titan_mag, titan_mal and sliding_window, itself included."""
    persistent: int = 4
    """Learned keys and values without position that titan_mac, _mag, _mal and sliding_window attend
    to."""

    def __post_init__(self) -> None:
        require(self.head_size >= 2, f"head_size: {self.head_size}; must be at least 2")
        hidden = self.hidden
        require(
            hidden is None or hidden >= 1, f"hidden: {hidden}; must be >= 1, or null for head_size"
        )
        require(1 <= self.depth <= 4, f"depth: {self.depth}; must be 1, 2, 3 or 4")
        require(self.period >= 1, f"period: {self.period}; must be at least 1")
        require(self.conv >= 0, f"conv: {self.conv}; must be 0 (none) or a width")
        for name in ("rate", "inertia", "retain"):
            value = getattr(self, name)
            require(0 < value < 1, f"{name}: {value}; must lie between 0 and 1")
        require(
            0 < self.rate_hidden < self.rate,
            f"rate_hidden: {self.rate_hidden}; must lie between 0 and rate ({self.rate})",
        )
        require(self.window >= 1, f"window: {self.window}; must be at least 1")
        require(self.persistent >= 0, f"persistent: {self.persistent}; must be >= 0")

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of a memory from input to output."""
        inner = (self.hidden or self.head_size,) * (self.depth - 1)
        return (self.head_size, *inner, self.head_size)
