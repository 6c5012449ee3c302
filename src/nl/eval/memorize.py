"""How memories are written while evaluating, and what they wrote. Floor 6."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nl.config import require
from nl.core.output import Knobs
from nl.core.protocols import EvalRow
from nl.eval.context import EvalContext, Memorize, evaluating
from nl.eval.rows import make_row, mean_and_stderr, save_json

Tokens = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """Which memories are written, how often and for how long, in the modes context and oracle."""

    steps: int = 1
    """Times a context is read before the answer is asked for."""
    paths: tuple[str, ...] = ()
    """Memories that write: selfmod, gated_delta, titan, level0, level1, ...; empty: all."""
    layers: tuple[int, ...] = ()
    """Blocks whose memories write, -1 the last; empty: all."""
    surprise: float | None = None
    """Tokens with a weaker signal write into no label-driven level; null: as the model says."""
    carry: bool = False
    """Go on from the State after the last example; false: every example begins fresh."""
    samples: int = 2
    """Contexts per task whose writes are measured (metrics memory/...); 0: none."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"steps: {self.steps}; must be >= 1.")
        require(self.samples >= 0, f"samples: {self.samples}; must be >= 0 (0: none).")
        known = len(set(self.paths)) == len(self.paths)
        require(known, f"paths: {list(self.paths)}; name each once.")
        threshold = self.surprise
        require(threshold is None or threshold >= 0, f"surprise: {threshold}; must be >= 0.")

    def knobs(self, model: nn.Module) -> Knobs | None:
        """Which memories of this model may write; None: all.

        Raises:
            ConfigError: a name or a layer that the model does not have.
        """
        if not (self.paths or self.layers):
            return None
        anything: Any = model
        knobs: Knobs = anything.memory_knobs(self.paths, self.layers)
        return knobs

    @contextmanager
    def gated(self, model: nn.Module) -> Iterator[None]:
        """The surprise threshold is in force inside."""
        if self.surprise is None:
            yield
            return
        anything: Any = model
        with anything.surprise_at(self.surprise):
            yield

    def policy(self, unit: str, mode: Memorize = "context") -> str:
        """The State's policy in words, for the note of a row; with ``off`` nothing here counts."""
        if mode == "off":
            return f"State fresh per {unit}"
        words = ["State carried on" if self.carry else f"State fresh per {unit}"]
        words += [f"read {self.steps} times"] if self.steps > 1 else []
        words += [f"writes: {', '.join(self.paths)}"] if self.paths else []
        words += [f"layers {', '.join(map(str, self.layers))}"] if self.layers else []
        words += [f"surprise {self.surprise:g}"] if self.surprise is not None else []
        return "; ".join(words)


def rows_at_once(model: nn.Module, rows: int, *, write: bool) -> int:
    """Rows of a forward pass: one where all would write into one memory (``cms.scope=batch``).

    What is scored then sees nothing of other texts, answers and pads.
    """
    return 1 if write and getattr(model, "shares_rows", False) else rows


@dataclass(frozen=True, kw_only=True)
class Written:
    """What reading one text wrote.

    Attributes:
        memories: records of ``memory_report``: path, layer, writes, added.
        open_rate: share of scored tokens that the surprise gate let write; None without one.
        before, after: nats per token of the text, memories frozen, attention empty: as the model
            is, and with what was written.
        seconds: of the reading that wrote; they are in the rows as their ``seconds``.
        tokens: of the text.
    """

    memories: list[dict[str, Any]]
    open_rate: float | None
    before: float
    after: float
    seconds: float
    tokens: int

    def numbers(self) -> dict[str, float]:
        """By metric: means over layers."""
        found: dict[str, list[float]] = {}
        for record in self.memories:
            for key in ("writes", "added"):
                found.setdefault(f"memory/{key}/{record['path']}", []).append(float(record[key]))
        numbers = {key: sum(values) / len(values) for key, values in found.items()}
        if self.open_rate is not None:
            numbers["memory/open_rate"] = self.open_rate
        return {
            **numbers,
            "memory/loss_before": self.before,
            "memory/loss_after": self.after,
        }


def measure_writes(
    model: nn.Module, context: EvalContext, memory: MemoryConfig, text: Tokens
) -> Written:
    """Read a text of at least two tokens once from a fresh State; what did it write?"""
    anything: Any = model
    knobs = memory.knobs(model)
    with evaluating(model), memory.gated(model):
        ids = torch.tensor([text], device=context.device)
        start = time.perf_counter()
        state = None
        for part in torch.split(ids, context.segment, 1):
            state = anything(part, state, knobs).state
        seconds = time.perf_counter() - start
        assert state is not None
        gate = getattr(state, "gate", None)
        rate = None if gate is None else float(gate.opened.sum() / gate.seen.sum().clamp(min=1))
        held = anything.memories_alone(state)
        fresh = anything.init_state(1, position=state.position)
        return Written(
            memories=anything.memory_report(state, knobs),
            open_rate=rate,
            before=_frozen_loss(anything, ids, fresh, context.segment),
            after=_frozen_loss(anything, ids, held, context.segment),
            seconds=seconds,
            tokens=len(text),
        )


def _frozen_loss(model: Any, ids: torch.Tensor, state: Any, segment: int) -> float:
    """Nats per token of (1, T) ids after the first, nothing written."""
    total = 0.0
    inputs_targets = (torch.split(part, segment, 1) for part in (ids[:, :-1], ids[:, 1:]))
    for inputs, targets in zip(*inputs_targets, strict=True):
        nll, out = model.nll(inputs, targets, state, write=False)
        state, total = out.state, total + float(nll.sum())
    return total / (ids.shape[1] - 1)


def memory_rows(
    suite: str,
    task: str,
    model: nn.Module,
    context: EvalContext,
    mode: Memorize,
    memory: MemoryConfig,
    texts: Sequence[Tokens],
) -> list[EvalRow]:
    """What the first ``memory.samples`` distinct texts wrote: rows, and a file with every layer."""
    chosen = [text for text in dict.fromkeys(texts) if len(text) > 1][: memory.samples]
    if mode == "off" or not chosen or not hasattr(model, "memory_report"):
        return []
    written = [measure_writes(model, context, memory, text) for text in chosen]
    path = context.output / f"memory_{_plain(task)}_{mode}.json"
    save_json(path, {"mode": mode, "policy": vars(memory), "texts": [vars(w) for w in written]})
    rows = []
    seconds = sum(sample.seconds for sample in written) / len(written)
    for key in written[0].numbers():
        mean, error = mean_and_stderr([sample.numbers()[key] for sample in written])
        note = f"reading one context of {written[0].tokens} tokens from a fresh State"
        more = {"stderr": error, "seconds": seconds, "memorize": mode, "note": note}
        rows.append(make_row(suite, task, key, mean, len(written), **more))
    return rows


def _plain(task: str) -> str:
    return Path(task.replace("/", "_")).name
