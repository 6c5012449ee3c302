"""Names of a model's memories, which of them may write, and what they have written. Floor 3.

A memory has a path (``selfmod``, ``gated_delta``, ``titan``, ``lstm``, ``gru``,
``quadratic_rnn``, ``level<i>`` of the continuum memory, fastest first as configured, or ``head``)
and a layer, the index of its block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nl.config import require
from nl.core.output import Knobs
from nl.core.state import tensors
from nl.models.language_state import LanguageState
from nl.nn.attention import AttentionState
from nl.nn.context import ReadContext
from nl.nn.gated_delta import GatedDeltaState
from nl.nn.head_memory import HeadMemory
from nl.nn.recurrent import RecurrentState
from nl.nn.selfmod import SelfModState
from nl.nn.surprise import SurpriseConfig
from nl.ops.head_walk import HeadWrites

HEAD = "head"
"""Path of the memory of the head; it counts to the last layer."""


def block_paths(block: Any) -> list[str]:
    """Paths of the memories of one block, in the order of reading."""
    own = [] if block.memory_path is None else [block.memory_path]
    levels = [] if block.levels is None else list(block.levels.levels)
    return [*own, *(f"level{i}" for i in range(len(levels)))]


def memory_paths(model: Any) -> list[str]:
    """Every path of a model, once."""
    found = [path for block in model.blocks for path in block_paths(block)]
    return list(dict.fromkeys([*found, *([HEAD] if model.head_memory is not None else [])]))


def check_writes(model: Any, knobs: Knobs | None) -> None:
    """Refuse paths and layers that the model does not have."""
    if knobs is None:
        return
    if knobs.paths is not None:
        known = memory_paths(model)
        for path in knobs.paths:
            require(
                path in known,
                f"paths: {path!r}; this model's memories are {', '.join(known) or 'none'}.",
            )
    depth = len(model.blocks)
    for layer in knobs.layers or ():
        require(0 <= layer < depth, f"layers: {layer}; this model's layers are 0 to {depth - 1}.")


def permitted(ctx: ReadContext, knobs: Knobs | None, layer: int, block: Any) -> ReadContext:
    """What the memory of a block that is driven by what it reads is told."""
    if knobs is None or block.memory_path is None or knobs.permits(block.memory_path, layer):
        return ctx
    return ctx._replace(write=False)


def open_levels(knobs: Knobs | None, layer: int, count: int) -> Sequence[int] | None:
    """Levels of one block that may write; None: all."""
    if knobs is None or (knobs.paths is None and knobs.layers is None):
        return None
    return [i for i in range(count) if knobs.permits(f"level{i}", layer)]


class Memories:
    """What evaluations ask of a model about its memories; a part of ``LanguageModel``."""

    config: Any
    blocks: Any
    taught: bool
    head_memory: HeadMemory | None

    def memory_paths(self) -> list[str]:
        """Names of the memories, as ``Knobs.paths`` takes them."""
        return memory_paths(self)

    def memory_knobs(self, paths: Sequence[str], layers: Sequence[int]) -> Knobs:
        """Knobs that let only these memories of these blocks write; empty: all.

        Args:
            paths: names.
            layers: indices of blocks; -1 is the last one.

        Raises:
            ConfigError: a name or an index that the model does not have.
        """
        depth = len(self.blocks)
        for layer in layers:
            require(
                -depth <= layer < depth,
                f"layers: {layer}; this model's layers are 0 to {depth - 1}, or -{depth} to -1.",
            )
        chosen = tuple(layer % depth for layer in layers)
        knobs = Knobs(paths=tuple(paths) or None, layers=chosen or None)
        check_writes(self, knobs)
        return knobs

    @contextmanager
    def surprise_at(self, threshold: float) -> Iterator[None]:
        """Inside, only tokens whose signal is at least this strong write into the levels.

        A State made inside counts how many did.

        Raises:
            ConfigError: no label-driven levels, or a threshold below 0.
        """
        require(
            self.taught,
            f"surprise: {threshold}; this model has no label-driven levels: leave it out.",
        )
        require(
            self.head_memory is None,
            f"surprise: {threshold}; the head of this model learns from every token: leave it out.",
        )
        before = self.config
        gate = SurpriseConfig(gate="hard", threshold=threshold)
        self.config = replace(before, cms=replace(before.cms, surprise=gate))
        try:
            yield
        finally:
            self.config = before

    def memories_alone(self, state: LanguageState) -> LanguageState:
        """The State with what memories hold and nothing else: attention has seen nothing."""
        model: Any = self
        rows = max(len(tensor) for tensor in tensors(state))
        fresh = model.init_state(rows)
        blocks = _without_attention(state.blocks, fresh.blocks)
        return state._replace(blocks=blocks, pending=None)

    def without_memories(self, state: LanguageState) -> LanguageState:
        """The State with every memory fresh again: what attention has seen stays."""
        model: Any = self
        rows = max((len(tensor) for tensor in tensors(state)), default=1)
        fresh = model.init_state(rows, position=state.position)
        return LanguageState(
            state.position,
            _attention_alone(state.blocks, fresh.blocks),
            None,
            fresh.gate,
            fresh.head,
        )

    @torch.no_grad()
    def memory_report(
        self, state: LanguageState, knobs: Knobs | None = None
    ) -> list[dict[str, Any]]:
        """What every memory that may write has written since the State was fresh, mean over rows.

        Returns:
            Records of path, layer, ``writes`` (ends of periods since position 0, frozen ones of
            levels included; tokens for the gated delta rule and recurrences) and ``added``: the
            norm of what was added relative to the initial memory (as it is where that is zero).
        """
        model: Any = self
        found = []
        known = state.position - (state.pending is not None)
        for layer, (block, own) in enumerate(zip(self.blocks, state.blocks, strict=True)):
            for path in block_paths(block):
                if knobs is not None and not knobs.permits(path, layer):
                    continue
                if path.startswith("level"):
                    index = int(path.removeprefix("level"))
                    writes = known // self.config.cms.periods[index]
                    added = _added_to_level(block.levels.levels[index], own.levels[index])
                else:
                    writes, added = _added_to_mixer(block, own, state.position)
                found.append({"path": path, "layer": layer, "writes": writes, "added": added})
        last = len(self.blocks) - 1
        if self.head_memory is not None and (knobs is None or knobs.permits(HEAD, last)):
            writes = known // self.head_memory.config.period
            held = state.head or HeadWrites()
            size = float(self.head_memory.added(model.head.weight, held))
            found.append({"path": HEAD, "layer": last, "writes": writes, "added": size})
        return found


def _without_attention(state: Any, fresh: Any) -> Any:
    if isinstance(state, AttentionState):
        return fresh
    if isinstance(state, tuple) and fresh is not None:
        parts = [_without_attention(s, f) for s, f in zip(state, fresh, strict=True)]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state


def _attention_alone(state: Any, fresh: Any) -> Any:
    """Attention as it is, all other tensors fresh; ints, which count tokens, stay."""
    if isinstance(state, AttentionState):
        return state
    if isinstance(state, tuple) and isinstance(fresh, tuple) and len(state) == len(fresh):
        parts = [_attention_alone(s, f) for s, f in zip(state, fresh, strict=True)]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state if isinstance(fresh, int) else fresh


def _norm(parts: Iterable[Tensor]) -> Tensor:
    """Root of the summed squares of each row."""
    squares: Any = sum(part.double().flatten(1).square().sum(1) for part in parts)
    return torch.sqrt(squares)


def _added_to_level(level: Any, held: Any) -> float:
    if held.fast_up is None:
        return 0.0
    w = level.weights(held)
    up, down = (
        rate * fast for rate, fast in ((w.rate_up, held.fast_up), (w.rate_down, held.fast_down))
    )
    whole = _norm([w.up[None], w.down[None]])
    return float((_norm([up, down]) / whole).mean())


def _added_to_mixer(block: Any, own: Any, position: int) -> tuple[int, float]:
    """Writes and relative size of the memory that is driven by what it reads."""
    for module, held in zip(block.mixers, own.mixers, strict=True):
        if getattr(module, "memory_path", None) is None:
            continue
        if isinstance(held, SelfModState):
            initial = _norm([module.memory_hidden[None], module.memory_output[None]])
            return held.writes[0], float((_norm(held.memory) / initial).mean())
        if isinstance(held, GatedDeltaState):
            return position - held.frozen, float(_norm([held.memory]).mean())
        if isinstance(held, RecurrentState):
            return position - held.frozen, _moved(held, module.init_state(len(held.hidden)))
        inner, memory = (module.memory, held.memory) if hasattr(held, "memory") else (module, held)
        initial = _norm([weight[None] for weight in inner.bank.weights])
        return memory.bank.writes, float((_norm(memory.bank.added) / initial).mean())
    raise ValueError("the block has no memory that is driven by what it reads")


def _moved(held: RecurrentState, fresh: RecurrentState) -> float:
    """Distance of a hidden state from the fresh one, relative to that where it is not zero."""
    gone = [now - then for now, then in zip(tensors(held), tensors(fresh), strict=True)]
    size = _norm(tensors(fresh))
    return float((_norm(gone) / torch.where(size > 0, size, 1.0)).mean())
