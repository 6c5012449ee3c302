"""Block kinds of a language model: pre-norm residual sub-layers in a row. Floor 3."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from nl.config import register, require
from nl.config.groups import BlockConfig
from nl.core.state import state_type
from nl.nn.attention import Attention
from nl.nn.cms import ContinuumMemory
from nl.nn.context import ReadContext
from nl.nn.experts import SparseExperts
from nl.nn.gated_delta import GatedDelta
from nl.nn.level import LevelTrace
from nl.nn.recurrent import GRU, LSTM, QuadraticRNN, Recurrent, RecurrentConfig
from nl.nn.router import Router, Routing
from nl.nn.selfmod import SelfMod
from nl.nn.titan import TitanMemory
from nl.nn.titan_layouts import MemoryAsContext, MemoryAsGate
from nl.nn.window import WindowAttention

if TYPE_CHECKING:
    from nl.models.shape import LanguageShape


@state_type
class BlockState(NamedTuple):
    """State of one block: of each sequence mixer and, where it has one, of its level chain."""

    mixers: tuple[Any, ...]
    levels: Any = None


class Block(nn.Module):
    """x + mixer(norm(x)) for each mixer, then x + mlp(norm(x)) or a chain of memory levels.

    With ``parallel`` the MLP, or the chain, reads what the block was given (Wang and Komatsuzaki
    2021, GPT-J).
    """

    def __init__(self, shape: LanguageShape, mixers: Sequence[nn.Module], levels: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(shape.make_norm() for _ in mixers)
        self.mixers = nn.ModuleList(mixers)
        found = [path for m in mixers if (path := getattr(m, "memory_path", None)) is not None]
        self.memory_path: str | None = found[0] if found else None
        # A loop over chunks or tokens in a compiled unit is unrolled, for every place in the row,
        # but for what a mixer keeps from the tracer (``untraced``).
        self.compile_whole = not any(isinstance(m, SelfMod | Recurrent) for m in mixers)
        self.levels: ContinuumMemory | None = None
        self.parallel = shape.parallel
        if levels:
            scale = shape.residual_scale
            self.levels = ContinuumMemory(shape.cms, shape.dim, scale, shape.experts)
        else:
            self.mlp_norm = shape.make_norm()
            self.mlp = shape.make_mlp()

    def init_state(self, batch: int) -> BlockState:
        """Fresh memories for ``batch`` rows."""
        modules: list[Any] = list(self.mixers)
        levels = self.levels.init_state() if self.levels is not None else None
        return BlockState(tuple(mixer.init_state(batch) for mixer in modules), levels)

    def forward(
        self, x_BTD: Tensor, state: BlockState, ctx: ReadContext
    ) -> tuple[Tensor, BlockState, tuple[LevelTrace, ...] | None, tuple[Routing, ...]]:
        """Read; self-driven memories write.

        Returns:
            (B, T, D), the new state, the traces of label-driven levels (None without any), and
            what each router chose.
        """
        moved, given = [], x_BTD
        for norm, mixer, memory in zip(self.norms, self.mixers, state.mixers, strict=True):
            branch, new = mix(mixer, norm(x_BTD), memory, ctx)
            x_BTD = x_BTD + branch
            moved.append(new)
        seen = given if self.parallel else x_BTD
        if self.levels is None:
            branch, routed = self._feed_forward(self.mlp_norm(seen), ctx)
            return x_BTD + branch, BlockState(tuple(moved)), None, routed
        read, trace, routed = self.levels(seen, state.levels, ctx.route)
        x_BTD = x_BTD + (read - given) if self.parallel else read
        return x_BTD, BlockState(tuple(moved), state.levels), trace, routed

    def _feed_forward(self, x_BTD: Tensor, ctx: ReadContext) -> tuple[Tensor, tuple[Routing, ...]]:
        if not isinstance(self.mlp, SparseExperts):
            return self.mlp(x_BTD), ()
        assert ctx.route is not None
        branch, found = self.mlp(x_BTD, ctx.route)
        return branch, (found,)

    def routers(self) -> list[Router]:
        """Its routers, in the order of what they chose."""
        return [module for module in self.modules() if isinstance(module, Router)]


def mix(mixer: nn.Module, x_BTD: Tensor, state: Any, ctx: ReadContext) -> tuple[Tensor, Any]:
    """Run one sequence mixer: attention and what contains it read the context, a memory its clock.

    A memory has ``shortest_period`` and a state that counts its ``frozen`` tokens.
    """
    if isinstance(mixer, Attention | MemoryAsContext | MemoryAsGate):
        return mixer(x_BTD, state, ctx)
    memory: Any = mixer
    write = ctx.writes(x_BTD.shape[1], memory.shortest_period, state.frozen)
    return memory(x_BTD, state, position=ctx.position, write=write)


def attention(shape: LanguageShape) -> nn.Module:
    """Causal attention over everything read so far."""
    return Attention(shape.attention, shape.dim, shape.residual_scale)


def self_modifying(shape: LanguageShape) -> nn.Module:
    """Self-modifying memory (Nested Learning, section 8)."""
    return SelfMod(shape.selfmod, shape.dim)


def gated_delta(shape: LanguageShape) -> nn.Module:
    """Gated delta rule (arXiv 2412.06464)."""
    return GatedDelta(shape.gated_delta, shape.dim, shape.residual_scale)


def lstm(shape: LanguageShape) -> nn.Module:
    """Long short-term memory."""
    return LSTM(shape.recurrent, shape.dim, shape.residual_scale)


def gru(shape: LanguageShape) -> nn.Module:
    """Gated recurrent unit."""
    return GRU(shape.recurrent, shape.dim, shape.residual_scale)


def quadratic_rnn(shape: LanguageShape) -> nn.Module:
    """Quadratic recurrent network with a norm."""
    return QuadraticRNN(shape.recurrent, shape.dim, shape.residual_scale)


def titan_memory(shape: LanguageShape) -> nn.Module:
    """Titans memory (arXiv 2501.00663, section 3)."""
    return TitanMemory(shape.titan, shape.dim)


def sliding_window(shape: LanguageShape) -> nn.Module:
    """Attention over a window and persistent keys (Titans, section 4)."""
    window, persistent = shape.titan.window, shape.titan.persistent
    scale = shape.residual_scale
    return WindowAttention(shape.attention, shape.dim, scale, window=window, persistent=persistent)


def memory_as_gate(shape: LanguageShape) -> nn.Module:
    """Sliding-window attention gated by a Titans memory (Titans, section 4.2)."""
    return MemoryAsGate(shape.titan, shape.attention, shape.dim, shape.residual_scale)


def memory_as_context(shape: LanguageShape) -> nn.Module:
    """Segments that attend to what a Titans memory recalls (Titans, section 4.1)."""
    return MemoryAsContext(shape.titan, shape.attention, shape.dim, shape.residual_scale)


ATTENTIONS = (attention, sliding_window, memory_as_gate, memory_as_context)
"""Mixers that read ``model.attention``."""
TITANS = (titan_memory, memory_as_gate, memory_as_context)
"""Mixers with a Titans memory, whose heads are ``model.titan.head_size`` wide."""


def check_widths(config: LanguageShape, kinds: Sequence[Any]) -> None:
    """Refuse a width of the model that does not split into the heads of its mixers."""
    used = {mixer for kind in kinds for mixer in kind.mixers}
    dim = config.dim
    heads = config.attention.heads
    require(
        dim % (2 * heads) == 0 or not used & set(ATTENTIONS),
        f"attention.heads: {heads}; 2 * heads must divide model.dim = {dim}.",
    )
    for name, size, mixers in (
        ("selfmod.head_size", config.selfmod.head_size, (self_modifying,)),
        ("gated_delta.heads", config.gated_delta.heads, (gated_delta,)),
        ("titan.head_size", config.titan.head_size, TITANS),
    ):
        require(
            dim % size == 0 or not used & set(mixers),
            f"{name}: {size}; must divide model.dim = {dim}.",
        )
    for name, mixer in (("forget_bias", lstm), ("transform", quadratic_rnn)):
        value = getattr(config.recurrent, name)
        require(
            value == getattr(RecurrentConfig(), name)
            or mixer in used
            or not used & {lstm, gru, quadratic_rnn},
            f"recurrent.{name}: {value}; only {mixer.__name__} reads it: leave it out, or choose "
            f"model.block={mixer.__name__}.",
        )


class _Kind:
    mixers: tuple[Callable[[LanguageShape], nn.Module], ...]
    levels: bool

    def build(self, shape: LanguageShape) -> Block:
        """One block of this kind."""
        return Block(shape, [mixer(shape) for mixer in self.mixers], self.levels)


@register("block", "transformer")
@dataclass(frozen=True)
class TransformerBlock(_Kind, BlockConfig):
    """Attention and SwiGLU: the baseline (Vaswani et al. 2017, Llama layout)."""

    mixers = (attention,)
    levels = False


@register("block", "sliding_window")
@dataclass(frozen=True)
class SlidingWindowBlock(_Kind, BlockConfig):
    """Attention over a window and SwiGLU: titan_mal without its memory (arXiv 2004.05150)."""

    mixers = (sliding_window,)
    levels = False


@register("block", "hope_attention")
@dataclass(frozen=True)
class HopeAttentionBlock(_Kind, BlockConfig):
    """Attention and a continuum memory (Nested Learning, HOPE-Attention)."""

    mixers = (attention,)
    levels = True


@register("block", "hope_selfmod")
@dataclass(frozen=True)
class HopeSelfModBlock(_Kind, BlockConfig):
    """Self-modifying memory and a continuum memory (Nested Learning, HOPE)."""

    mixers = (self_modifying,)
    levels = True


@register("block", "gated_delta")
@dataclass(frozen=True)
class GatedDeltaBlock(_Kind, BlockConfig):
    """Gated delta rule and SwiGLU: the linear baseline (arXiv 2412.06464)."""

    mixers = (gated_delta,)
    levels = False


@register("block", "lstm")
@dataclass(frozen=True)
class LSTMBlock(_Kind, BlockConfig):
    """Long short-term memory and SwiGLU: a recurrent baseline (Hochreiter, Schmidhuber 1997)."""

    mixers = (lstm,)
    levels = False


@register("block", "gru")
@dataclass(frozen=True)
class GRUBlock(_Kind, BlockConfig):
    """Gated recurrent unit and SwiGLU: a recurrent baseline (arXiv 1406.1078)."""

    mixers = (gru,)
    levels = False


@register("block", "quadratic_rnn")
@dataclass(frozen=True)
class QuadraticRNNBlock(_Kind, BlockConfig):
    """Normalised quadratic recurrence and SwiGLU (arXiv 2602.03655, made stable)."""

    mixers = (quadratic_rnn,)
    levels = False


@register("block", "hope_hybrid")
@dataclass(frozen=True)
class HopeHybridBlock(_Kind, BlockConfig):
    """A Titans memory, attention and a continuum memory."""

    mixers = (titan_memory, attention)
    levels = True


@register("block", "titan_lmm")
@dataclass(frozen=True)
class TitanLMMBlock(_Kind, BlockConfig):
    """Titans memory alone and SwiGLU (Titans, section 4.3, LMM)."""

    mixers = (titan_memory,)
    levels = False


@register("block", "titan_mac")
@dataclass(frozen=True)
class TitanMACBlock(_Kind, BlockConfig):
    """Memory as context: segments attend to what is recalled; SwiGLU (Titans, section 4.1)."""

    mixers = (memory_as_context,)
    levels = False


@register("block", "titan_mag")
@dataclass(frozen=True)
class TitanMAGBlock(_Kind, BlockConfig):
    """Memory as gate of a sliding-window attention; SwiGLU (Titans, section 4.2)."""

    mixers = (memory_as_gate,)
    levels = False


@register("block", "titan_mal")
@dataclass(frozen=True)
class TitanMALBlock(_Kind, BlockConfig):
    """Memory as layer before a sliding-window attention; SwiGLU (Titans, section 4.3)."""

    mixers = (titan_memory, sliding_window)
    levels = False
