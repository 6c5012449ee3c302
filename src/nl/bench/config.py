"""What a benchmark measures. Floor 8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nl.config import lookup, require

Part = Literal["step", "layer"]
PARTS: tuple[Part, ...] = ("step", "layer")


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What is measured."""

    blocks: tuple[str, ...] = ()
    """Block kinds beside the baseline; empty: all registered."""
    parts: tuple[Part, ...] = ("step",)
    """step: whole train steps of models with equal parameters. layer: one block, forward and
    forward with backward."""
    dim: int = 256
    """Width."""
    layers: int = 2
    """Blocks of the model whose step is timed."""
    heads: int = 4
    """Attention heads."""
    seq_len: tuple[int, ...] = (256,)
    """Tokens per row, T; several are measured one after the other."""
    chunk: tuple[int, ...] = ()
    """Tokens between writes of every memory (the shortest of the levels); empty: the defaults."""
    batch_size: int = 4
    """Rows, B."""
    vocab_size: int = 1024
    """Token ids."""
    rounds: int = 7
    """Measured turns per row, after two to warm up."""
    threads: int = 1
    """CPU threads."""
    device: str = "cpu"
    """cpu or cuda."""
    compile: bool = False
    """As train.compile, for the Transformer too."""
    noisy: bool = False
    """Keep the result although the GEMM peak moved by more than a tenth between start and end."""

    def __post_init__(self) -> None:
        for name in ("dim", "layers", "heads", "batch_size", "vocab_size", "rounds", "threads"):
            require(getattr(self, name) >= 1, f"{name}: {getattr(self, name)}; must be >= 1.")
        require(len(self.seq_len) > 0, "seq_len: empty; give at least one length.")
        for name in ("seq_len", "chunk"):
            values = getattr(self, name)
            shown = ", ".join(map(str, values))
            require(all(v >= 1 for v in values), f"{name}: {shown}; every value must be >= 1.")
        for block in self.blocks:
            lookup("block", block, "blocks")
        require(
            bool(self.parts) and set(self.parts) <= set(PARTS),
            f"parts: {', '.join(self.parts) or 'empty'}; choose from {', '.join(PARTS)}.",
        )
