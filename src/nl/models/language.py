"""Language model: embedding, any list of blocks, norm, head; reads and writes in one pass. Floor 3.

The sequence is read in tiles (the smallest period of the label-driven levels). After each tile
the teach signal (softmax - onehot) W_head of its tokens is known in closed form and the levels
whose period ends there are written, so the next tile reads the new memory. Models without such
levels read the whole row at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nl.config import lookup, register, require
from nl.config.groups import ModelConfig
from nl.core.output import Knobs, Output
from nl.core.state import reset_rows, settled, tensors
from nl.models.block_signal import PendingTile
from nl.models.blocks import Block, check_widths
from nl.models.documents import Part, Starts, cut_call, without_crossing
from nl.models.embedding import EMBED_STD, embedded, embedded_tiles
from nl.models.generate import Sampling, generate
from nl.models.language_state import LanguageState, Read
from nl.models.memories import Memories, permitted
from nl.models.reading import ReadTile, read_tile
from nl.models.resuming import begin_call
from nl.models.routes import check_depth, check_levels, route_contexts, routing_report
from nl.models.scoring import Call, score
from nl.models.statistics import memory_statistics
from nl.nn.attention import Attention, AttentionConfig
from nl.nn.cms_config import CMSConfig
from nl.nn.context import ReadContext
from nl.nn.experts import SparseExperts, idle_parameters
from nl.nn.experts_config import ExpertsConfig
from nl.nn.gated_delta import GatedDeltaConfig
from nl.nn.head_memory import HeadMemory, HeadMemoryConfig, check_head
from nl.nn.mlp import MLPKind, NormKind, make_mlp, make_norm
from nl.nn.rebuilt import anchored
from nl.nn.recurrent import RecurrentConfig
from nl.nn.selfmod import SelfModConfig
from nl.nn.surprise import fresh_surprise
from nl.nn.titan_config import TitanConfig
from nl.ops.head_walk import HeadWrites
from nl.ops.losses import teach_signal
from nl.ops.rotary import rotary_table


@register("model", "language")
@dataclass(frozen=True, kw_only=True)
class LanguageConfig(ModelConfig):
    """A causal language model over any list of blocks."""

    vocab_size: int
    """Number of token ids."""
    dim: int
    """Width of the residual stream."""
    layers: int
    """Number of blocks."""
    block: str | tuple[str, ...] = "hope_attention"
    """Block kind, or a list of kinds that is repeated until all layers are filled."""
    mlp_hidden: int | None = None
    """Hidden width of feed-forward layers; None: 8/3 of dim, rounded up to a multiple of 8."""
    mlp: MLPKind = "swiglu"
    """Feed-forward layers: swiglu, gelu, or gelu_tanh (its approximation)."""
    bias: bool = False
    """Biases of feed-forward layers; ``attention.bias`` has those of attention."""
    parallel: bool = False
    """Feed-forward layers read what their block was given, not what attention made of it."""
    norm: NormKind = "rms"
    """rms: RMSNorm. layer: LayerNorm with bias."""
    norm_eps: float = 1e-6
    """Added to the variance in norms."""
    positions: Literal["rope", "learned", "none"] = "rope"
    """Rotary positions, a learned vector for each of ``max_positions``, or none at all (NoPE)."""
    max_positions: int = 1024
    """Longest row that can be read with positions=learned."""
    rope_base: float = 10000.0
    """Wavelength base of the rotary embedding."""
    tie_embeddings: bool = False
    """Use the head's weight as embedding."""
    head_std: float = 0.5
    """Standard deviation of the first logits; the first loss is half its square above guessing."""
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    """Attention layers, in blocks that have them."""
    cms: CMSConfig = field(default_factory=CMSConfig)
    """Continuum memory, in blocks that have it."""
    selfmod: SelfModConfig = field(default_factory=SelfModConfig)
    """Self-modifying memory, in blocks that have it."""
    gated_delta: GatedDeltaConfig = field(default_factory=GatedDeltaConfig)
    """Gated delta rule, in blocks that have it."""
    recurrent: RecurrentConfig = field(default_factory=RecurrentConfig)
    """Recurrent layer, in blocks that have one."""
    titan: TitanConfig = field(default_factory=TitanConfig)
    """Titans memory and the attention beside it, in blocks that have them."""
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
    """Sparse experts in the place of feed-forward layers."""
    head_memory: HeadMemoryConfig = field(default_factory=HeadMemoryConfig)
    """A head that learns while it reads."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "layers", "max_positions"):
            require(getattr(self, name) >= 1, f"{name}: {getattr(self, name)}; must be >= 1.")
        hidden, base = self.mlp_hidden, self.rope_base
        require(hidden is None or hidden >= 1, f"mlp_hidden: {hidden}; must be >= 1, or null.")
        require(base >= 1, f"rope_base: {base}; must be >= 1.")
        require(self.head_std > 0, f"head_std: {self.head_std}; must be > 0.")
        require(self.norm_eps > 0, f"norm_eps: {self.norm_eps}; must be > 0.")
        require(len(self.kinds) > 0, "block: []; name at least one block kind.")
        kinds: list[Any] = [lookup("block", kind, "block") for kind in self.kinds]
        check_widths(self, kinds)
        check_depth(self.experts, self.layers)
        if any(kind.levels for kind in kinds):
            check_head(self.head_memory, self.cms)
            check_levels(self.experts, self.cms, all(kind.levels for kind in kinds))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The cycle of block kinds."""
        return (self.block,) if isinstance(self.block, str) else self.block

    @property
    def requires(self) -> dict[str, str]:
        """What blocks of this model need of a strategy."""
        kinds: list[Any] = [lookup("block", kind, "block") for kind in self.kinds]
        return self.cms.requires if any(kind.levels for kind in kinds) else {}

    @property
    def mlp_hidden_size(self) -> int:
        """Hidden width of feed-forward layers."""
        return self.mlp_hidden or -(-self.dim * 8 // 3 // 8) * 8

    @property
    def residual_scale(self) -> float:
        """Two branches per layer add up to unit variance."""
        return float((2 * self.layers) ** -0.5)

    def make_norm(self) -> nn.Module:
        """A norm of the width of the stream."""
        return make_norm(self.norm, self.dim, self.norm_eps)

    def make_mlp(self) -> nn.Module:
        """A feed-forward layer, or experts."""
        if self.experts.sparse:
            return SparseExperts(self.experts, self.dim, self.residual_scale)
        sizes = (self.dim, self.mlp_hidden_size, self.residual_scale)
        return make_mlp(self.mlp, *sizes, self.bias)

    def at(self, layer: int) -> LanguageConfig:
        """What the block of this layer is built by."""
        return replace(self, experts=self.experts.at(layer)) if self.experts.sparse else self

    def build(self) -> LanguageModel:
        """The model, drawn from torch's global generator."""
        return LanguageModel(self)


class LanguageModel(Memories, nn.Module):
    """Token ids (B, T) -> logits (B, T, vocab_size)."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        nn.init.normal_(self.head.weight, std=config.head_std * config.dim**-0.5)
        self.embed = None if config.tie_embeddings else nn.Embedding(config.vocab_size, config.dim)
        if self.embed is not None:
            nn.init.normal_(self.embed.weight, std=EMBED_STD)
        kinds = [config.kinds[i % len(config.kinds)] for i in range(config.layers)]
        built = [
            lookup("block", kind, "model.block")().build(config.at(i))
            for i, kind in enumerate(kinds)
        ]
        self.blocks = nn.ModuleList(built)
        self.norm = config.make_norm()
        own = config.head_memory
        self.head_memory = HeadMemory(own, config.dim, config.head_std) if own.period else None
        self.places: nn.Embedding | None = None
        if config.positions == "learned":
            self.places = nn.Embedding(config.max_positions, config.dim)
            nn.init.normal_(self.places.weight, std=EMBED_STD)
        # Tokens between the States that a backward pass starts again from; 0: everything is kept.
        self.recompute_every = 0
        self.routers = [block.routers() for block in built]
        self.taught = any(b.levels is not None for b in built)
        self.through = self.taught and config.cms.write_gradient == "through"
        self.inner = self.taught and config.cms.signal == "block"
        self.labelled = config.cms.signal != "self"
        # Rows of a call write into one memory, so that what one reads depends on the others.
        self.shares_rows = self.taught and config.cms.scope == "batch"
        # Rates and targets of a write get no gradient in a call that reads nothing after it.
        self.may_skip_parameters = any(
            b.levels is not None or not all(isinstance(m, Attention) for m in b.mixers)
            for b in built
        )

    def init_state(self, batch: int, *, position: int = 0) -> LanguageState:
        """Fresh State for ``batch`` rows that begin at ``position``, where chunks are counted."""
        for name, value, least in (("batch", batch, 1), ("position", position, 0)):
            whole = isinstance(value, int) and value >= least
            require(whole, f"{name}: {value}; must be a whole number >= {least}.")
        blocks = tuple(block.init_state(batch) for block in self._blocks())
        gated = self.taught and self.config.cms.surprise.gate != "none"
        gate = fresh_surprise(batch, self.head.weight) if gated else None
        head = HeadWrites() if self.head_memory is not None else None
        return LanguageState(position, blocks, None, gate, head)

    def reset_rows(self, state: LanguageState, rows: Sequence[int] | Tensor) -> LanguageState:
        """The State with some rows fresh: as ``init_state(position=state.position)`` has them.

        Args:
            state: where the stream stands.
            rows: indices, or (B,) bool on the device of the State.
        """
        require(
            not self.shares_rows,
            "model.cms.scope: batch; rows share their memories, so none can begin a document: set "
            "model.cms.scope=row or leave starts out.",
        )
        whole = not isinstance(rows, Tensor) and len(set(rows)) > 1
        batch = max((len(t) for t in tensors(state)), default=1) if whole else 1
        fresh = self.init_state(batch, position=state.position)
        tile = state.pending if isinstance(state.pending, PendingTile) else None
        if tile is not None:
            state, tile = state._replace(pending=None), tile.restarted(fresh.blocks, rows)
        new: LanguageState = reset_rows(state, fresh, rows)
        return new if tile is None else new._replace(pending=tile)

    def forward(
        self,
        inputs: Tensor,
        state: LanguageState | None = None,
        knobs: Knobs | None = None,
        *,
        targets: Tensor | None = None,
        write: bool = True,
        starts: Starts | None = None,
    ) -> Output:
        """Read tokens and, unless ``write`` is False, memorise them.

        Args:
            inputs: (B, T) int64 ids.
            state: where the stream stands; None for fresh.
            targets: (B, T) labels that drive the levels (``IGNORE`` = none). None: the context's
                own next tokens; the newest token then waits in the State for its label.
            starts: per row the offsets of tokens that begin a document: the row is fresh there.

        Returns:
            Output with pred (B, T, vocab_size) logits and the new State.
        """
        logits = []
        state = begin_call(self, inputs, state, knobs, write, starts)
        reading = Read(write, knobs=knobs, routed=[])
        fits = targets is None or targets.shape == inputs.shape
        require(fits, "targets: must have the shape of inputs; IGNORE (-100) where unknown.")
        labels = inputs[:, 1:] if targets is None else targets
        labels = without_crossing(labels, starts)
        parts = self._parts(state.position, inputs.shape[1], write, starts)
        for (tile, begins), x in embedded_tiles(self, inputs, state.position, parts):
            state = self.reset_rows(state, begins) if begins else state
            before = state
            hidden, traces, state = self.read(inputs[:, tile], state, reading, x=x)
            last = tile.stop == inputs.shape[1]
            found = ReadTile(inputs[:, tile], labels[:, tile], hidden, traces, before, last)
            said, state = read_tile(self, state, found, reading)
            logits.append(said)
        state = anchored(settled(state))
        return Output(torch.cat(logits, 1), state, self._report(state, reading, learn=False))

    def nll(
        self,
        inputs: Tensor,
        targets: Tensor,
        state: LanguageState | None = None,
        knobs: Knobs | None = None,
        *,
        write: bool = True,
        keep: bool = True,
        starts: Starts | None = None,
    ) -> tuple[Tensor, Output]:
        """Cross-entropy of every token in nats (B, T), 0 where the target is ``IGNORE``.

        The training path: loss and teach signal come from one pass over the logits.

        Returns:
            nll (B, T), differentiable, and an Output whose ``pred`` (B, T) is whether the argmax
            was right.
        """
        read = Read(write, keep, knobs, [])
        state = begin_call(self, inputs, state, knobs, write, starts)
        targets = without_crossing(targets, starts)
        parts = self._parts(state.position, inputs.shape[1], read.write, starts)
        needed = None if read.keep else state.position + parts[-1].tokens.start
        call = Call(inputs, targets, read, parts, needed)
        losses, hits, state = score(self, state, call)
        state = settled(state) if keep else state
        aux = self._report(state, read, learn=self.training and torch.is_grad_enabled())
        return torch.cat(losses, 1), Output(torch.cat(hits, 1), state, aux)

    def generate(
        self,
        tokens: Tensor,
        *,
        state: LanguageState | None = None,
        write: bool | Literal["given"] = True,
        knobs: Knobs | None = None,
        **sampling: Any,
    ) -> tuple[Tensor, LanguageState]:
        """Continue ``tokens`` (B, T) with streamed State.

        Args:
            tokens: (B, T) int64 prompt, continuing ``state``.
            state: where the stream stands; None for fresh.
            write: see ``nl.models.generate.generate``.
            sampling: fields of ``nl.models.generate.Sampling`` (max_new_tokens, temperature ...).

        Returns:
            (B, N) new tokens and the State after reading all but the last of them.
        """
        out: tuple[Tensor, LanguageState] = generate(
            self, tokens, sampling=Sampling(**sampling), state=state, write=write, knobs=knobs
        )
        return out

    def shard_units(self) -> Sequence[nn.Module]:
        """The blocks, in order."""
        return list(self.blocks)

    def flops_per_token(self, seq_len: int = 0) -> int:
        """Forward FLOPs: 2 per matrix parameter that is read, 4 D per position looked at."""
        inside = [p.numel() for b in self.blocks for p in b.parameters() if p.dim() >= 2]
        heads = 1 if self.head_memory is None else 2  # the fast matrix is as large
        read = sum(inside) - idle_parameters(self) + heads * self.head.weight.numel()
        seen = sum(m.attended(seq_len) for m in self.modules() if isinstance(m, Attention))
        return 2 * read + int(4 * self.config.dim * seen)

    def _report(self, state: LanguageState, read: Read, learn: bool) -> dict[str, Tensor]:
        found = memory_statistics(self._blocks(), state, self.head_memory, self.head.weight)
        return found | routing_report(self, read.routed or [], learn=learn)

    def _blocks(self) -> list[Block]:
        return [b for b in self.blocks if isinstance(b, Block)]

    def _parts(self, position: int, length: int, write: bool, starts: Starts | None) -> list[Part]:
        """Cut a call where documents begin, and where a period of levels or a segment ends."""
        tile = min(self.config.cms.periods) if self.taught and write else self.recompute_every
        return cut_call(length, range(-position % tile, length, tile) if tile else (), starts)

    def read(
        self,
        inputs: Tensor,
        state: LanguageState,
        read: Read,
        outputs: list[Tensor] | None = None,
        x: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Any, ...], LanguageState]:
        """Read one tile: what the head reads (B, T, D), the traces per block, the new State.

        ``outputs`` takes the output of every block; gradients in them are then defined. ``x``:
        the inputs embedded, where they are already.
        """
        length, config = inputs.shape[1], self.config
        x = embedded(self, inputs, state.position) if x is None else x
        if outputs is not None and torch.is_grad_enabled() and not x.requires_grad:
            x = x.requires_grad_()  # everything below may be frozen
        cos = sin = None
        if config.positions == "rope":
            turned = config.attention.rotated(config.dim // config.attention.heads)
            table = (state.position, length, turned, config.rope_base, x.device, x.dtype)
            cos, sin = rotary_table(*table)
        ctx = ReadContext(state.position, read.write, read.keep, cos, sin)
        blocks, traces = [], []
        routes = route_contexts(self, inputs, state.position, read.knobs)
        for i, (block, memory) in enumerate(zip(self.blocks, state.blocks, strict=True)):
            own = permitted(ctx, read.knobs, i, block)._replace(route=routes[i])
            x, new, trace, routed = block(x, memory, own)
            blocks.append(new)
            traces.append(trace)
            if routed and read.routed is not None:
                read.routed.append((i, routed))
            if outputs is not None:
                outputs.append(x)
        state = LanguageState(state.position + length, tuple(blocks), None, state.gate, state.head)
        return self.norm(x), tuple(traces), state

    def signal(self, logits: Tensor, label: Tensor) -> Tensor:
        """The teach signal (B, T, D) of labelled tokens."""
        return teach_signal(logits, self.head.weight, label, through=self.through)
