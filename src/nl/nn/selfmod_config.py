"""What can be chosen about the self-modifying memory (``nl.nn.selfmod``), with reasons. Floor 2."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any, Literal

from nl.config import require

_LITERAL: dict[str, Any] = {
    "retention": "zero",
    "output_rule": "decay",
    "target": "self",
    "target_norm": False,
    "skip": True,
    "direct_gates": False,
    "clip": 0.0,
}
_DEFAULT = {
    "retention": "anchor",
    "output_rule": "delta_error",
    "target": "value",
    "target_norm": True,
    "skip": False,
    "direct_gates": True,
    "clip": 1.0,
}


@dataclass(frozen=True, kw_only=True)
class SelfModConfig:
    """The self-modifying memory of a block."""

    head_size: int = 64
    """Width of one head's keys, values and queries; must divide the layer's width."""
    hidden: int = 64
    """Hidden units of every memory but those of the gates; a multiple of head_size."""
    gate_hidden: int = 16
    """Hidden units of the memories of rate and decay: one number comes out, few are enough."""
    period: int = 64
    """Tokens between writes of the memory that is read out."""
    period_other: int | None = None
    """Tokens between writes of the memories behind keys, values and gates; null = period."""
    activation: Literal["silu", "gelu"] = "silu"
    """Activation of every memory."""
    objective: Literal["l2", "dot"] = "l2"
    """Inner loss of a write: squared error or negative inner product."""
    target: Literal["value", "self"] = "value"
    """What memory is taught for a key: the value, or its own output at the value."""
    target_norm: bool = True
    """Unit norm for the targets that a memory computes itself."""
    skip: bool = False
    """Identity skip of the memory that is read out: it would answer with the query beside what was
    stored. The other memories always have theirs."""
    direct_gates: bool = True
    """Add a projection of the input to what the memories of rate and decay say: a gate that only
    they make starts blind to its token."""
    retention: Literal["anchor", "zero", "row_norm"] = "anchor"
    """Decay toward the initial memory, toward zero, or toward zero with rows kept at their norm."""
    output_rule: Literal["delta_error", "delta", "decay"] = "delta_error"
    """Second layer: delta rule on the running error, on the chunk-start error, or plain decay."""
    adaptive_q: bool = False
    """Queries from a memory of their own instead of a fixed projection."""
    conv: int = 4
    """Width of the causal convolution over inputs of keys, values and queries; 0 = none."""
    rate: float = 0.5
    """Initial step size of memory's second layer, in (0, 1); learned from there."""
    rate_hidden: float = 0.01
    """Initial step size of memory's first layer, in (0, rate); learned from there."""
    rate_other: float = 0.01
    """Initial step size of the other memories, in (0, rate)."""
    clip: float = 1.0
    """Largest move of a hidden unit's input that a token asks of a first layer; 0 = no limit. Large
    second layers would ask for more than the slope of the activation knows of."""
    retain: float = 0.9
    """Initial share of a write that is left after one period, in (0, 1)."""
    compat: Literal["none", "literal"] = "none"
    """literal: the papers' rule, which erases or diverges (docs/nested_core.md, first table)."""

    def __post_init__(self) -> None:
        other = self.period if self.period_other is None else self.period_other
        require(self.head_size >= 2, f"head_size: {self.head_size}; must be at least 2")
        require(self.period >= 1, f"period: {self.period}; must be at least 1")
        require(other >= 1, f"period_other: {other}; must be at least 1, or null for period")
        require(
            self.hidden >= 1 and self.hidden % max(self.head_size, 1) == 0,
            f"hidden: {self.hidden}; must be a multiple of head_size ({self.head_size})",
        )
        require(self.gate_hidden >= 1, f"gate_hidden: {self.gate_hidden}; must be at least 1")
        longer, shorter = max(self.period, other), max(min(self.period, other), 1)
        require(
            longer % shorter == 0,
            f"period_other: {other}; period ({self.period}) and period_other must be multiples "
            "of one another",
        )
        require(self.conv >= 0, f"conv: {self.conv}; must be 0 (none) or a width")
        require(0 < self.rate < 1, f"rate: {self.rate}; must lie between 0 and 1")
        for name, slow in (("rate_hidden", self.rate_hidden), ("rate_other", self.rate_other)):
            require(
                0 < slow < self.rate,
                f"{name}: {slow}; must lie between 0 and rate ({self.rate})",
            )
        require(self.clip >= 0, f"clip: {self.clip}; must be 0 (no limit) or more")
        require(0 < self.retain < 1, f"retain: {self.retain}; must lie between 0 and 1")
        require(
            self.objective == "l2" or self.output_rule != "delta_error",
            "output_rule: delta_error; it follows a squared error: set objective=l2, or "
            "output_rule=delta or decay",
        )
        if self.compat == "literal":
            for name, default in _DEFAULT.items():
                value, literal = getattr(self, name), _LITERAL[name]
                require(
                    value in (default, literal),
                    f"{name}: {value}; compat=literal sets it to {literal}: leave it out",
                )

    def in_force(self) -> SelfModConfig:
        """The configuration whose options say what ``compat`` makes of them."""
        return replace(self, **_LITERAL) if self.compat == "literal" else self

    def resolved(self) -> SelfModConfig:
        """The configuration with ``compat`` carried out (and said aloud)."""
        if self.compat == "none":
            return self
        warnings.warn(
            "compat=literal: the rule as the papers print it collapses or diverges; see the first "
            "table of docs/nested_core.md",
            stacklevel=3,
        )
        return replace(self.in_force(), compat="none")
