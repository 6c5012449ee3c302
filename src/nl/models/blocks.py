"""Block kinds of a language model: pre-norm residual sub-layers in a row. Floor 3."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from nl.config import register
from nl.config.groups import BlockConfig
from nl.core.state import state_type
from nl.nn.attention import Attention
from nl.nn.cms import ContinuumMemory, LevelTrace
from nl.nn.context import ReadContext
from nl.nn.mlp import SwiGLU
from nl.nn.selfmod import SelfMod

if TYPE_CHECKING:
    from nl.models.shape import LanguageShape


@state_type
class BlockState(NamedTuple):
    """State of one block: of its sequence mixer and, where it has one, of its level chain."""

    mixer: Any
    levels: Any = None


class Block(nn.Module):
    """x + mixer(norm(x)), then either x + mlp(norm(x)) or a chain of memory levels."""

    def __init__(self, shape: LanguageShape, mixer: nn.Module, levels: bool) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(shape.dim, eps=1e-6)
        self.mixer = mixer
        self.levels: ContinuumMemory | None = None
        if levels:
            self.levels = ContinuumMemory(shape.cms, shape.dim, shape.residual_scale)
        else:
            self.mlp_norm = nn.RMSNorm(shape.dim, eps=1e-6)
            self.mlp = SwiGLU(shape.dim, shape.mlp_hidden_size, shape.residual_scale)

    def init_state(self, batch: int) -> BlockState:
        """Fresh memories for ``batch`` rows."""
        mixer: Any = self.mixer
        levels = self.levels.init_state() if self.levels is not None else None
        return BlockState(mixer.init_state(batch), levels)

    def forward(
        self, x_BTD: Tensor, state: BlockState, ctx: ReadContext
    ) -> tuple[Tensor, BlockState, tuple[LevelTrace, ...] | None]:
        """Read; self-driven memories write.

        Returns:
            (B, T, D), the new state, and the traces of label-driven levels (None without any).
        """
        branch, mixer = self._mix(self.norm(x_BTD), state.mixer, ctx)
        x_BTD = x_BTD + branch
        if self.levels is None:
            return x_BTD + self.mlp(self.mlp_norm(x_BTD)), BlockState(mixer), None
        x_BTD, trace = self.levels(x_BTD, state.levels)
        return x_BTD, BlockState(mixer, state.levels), trace

    def _mix(self, x_BTD: Tensor, state: Any, ctx: ReadContext) -> tuple[Tensor, Any]:
        if not isinstance(self.mixer, SelfMod):
            return self.mixer(x_BTD, state, ctx)
        # A write that nothing will read is left out where the caller drops the State.
        period = min(self.mixer.period, self.mixer.period_other)
        clock = ctx.position - state.frozen
        read_after_write = x_BTD.shape[1] > period - clock % period
        write = ctx.write and (ctx.keep or read_after_write)
        return self.mixer(x_BTD, state, position=ctx.position, write=write)


def attention(shape: LanguageShape) -> nn.Module:
    """Causal attention over everything read so far."""
    return Attention(shape.attention, shape.dim, shape.residual_scale)


def self_modifying(shape: LanguageShape) -> nn.Module:
    """Self-modifying memory (Nested Learning, section 8)."""
    return SelfMod(shape.selfmod, shape.dim)


class _Kind:
    mixer: Callable[[LanguageShape], nn.Module]
    levels: bool

    def build(self, shape: LanguageShape) -> Block:
        """One block of this kind."""
        return Block(shape, type(self).mixer(shape), self.levels)


@register("block", "transformer")
@dataclass(frozen=True)
class TransformerBlock(_Kind, BlockConfig):
    """Attention and SwiGLU: the baseline (Vaswani et al. 2017, Llama layout)."""

    mixer = staticmethod(attention)
    levels = False


@register("block", "hope_attention")
@dataclass(frozen=True)
class HopeAttentionBlock(_Kind, BlockConfig):
    """Attention and a continuum memory (Nested Learning, HOPE-Attention)."""

    mixer = staticmethod(attention)
    levels = True


@register("block", "hope_selfmod")
@dataclass(frozen=True)
class HopeSelfModBlock(_Kind, BlockConfig):
    """Self-modifying memory and a continuum memory (Nested Learning, HOPE)."""

    mixer = staticmethod(self_modifying)
    levels = True
