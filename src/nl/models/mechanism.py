"""One mechanism of one paper, as the audit lists it. Floor 3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

BLOCK = "model.block"
LAWS = "tests/laws/test_block_laws.py::"
OPS = "tests/unit/ops/"
LAYERS = "tests/unit/nn/"

PRINTED = "as printed"
POSITIVE = ("above 0",)
"""In ``Mechanism.where``: any number above 0."""


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """One mechanism of one paper."""

    part: str
    """What it is called here."""
    source: str
    """Paper and equation, section or algorithm."""
    equation: str
    """The formula as it is computed, one or more lines."""
    code: str
    """``module:name`` of the function or class that computes it."""
    tests: tuple[str, ...]
    """Tests against the formula: ``file::function``."""
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Dotted keys and the values with which a run uses it; all must hold. Empty: every run."""
    options: tuple[str, ...] = ()
    """Dotted keys that choose between its forms."""
    differs: str = PRINTED
    """Where it departs from the paper, and the option that has the paper's letter."""
