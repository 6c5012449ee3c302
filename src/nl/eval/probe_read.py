"""Reading rows of a probe: predictions, nats, what the State came to; memories on or off. Floor 6.

Memory writes while rows are read:

    on        as in training
    frozen    ``write=False``: no memory is written, attention goes on
    reset     memories are written, and thrown away every n tokens; attention goes on
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nl.config import ConfigError, require
from nl.core.batch import IGNORE
from nl.core.state import num_bytes, tensors
from nl.eval.context import Memorize, evaluating

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Writes = Literal["on", "frozen", "reset"]
MEMORIZE: dict[str, Memorize] = {"on": "context", "frozen": "off", "reset": "context"}
"""What ``EvalRow.memorize`` says of each."""
TOKENS = 8192
"""Tokens of a forward pass, about."""


@dataclass(frozen=True)
class Reading:
    """How rows are read.

    Attributes:
        writes: see the module.
        every: tokens between two losses of memory, with ``reset``.
        labels: hand the right answers to label-driven memories, each after its position.
    """

    writes: Writes = "on"
    every: int = 8
    labels: bool = False


class Answers(NamedTuple):
    """What a model said of rows.

    Attributes:
        guess: (N, L) the likeliest token.
        nats: (N, L) of the right one; 0 where nothing is scored.
        sure: (N, L) probability of the guess.
        state_bytes: of one row's State after its last token.
        memories: what every memory wrote, as ``memory_report`` says; empty without any.
    """

    guess: Ints
    nats: Floats
    sure: Floats
    state_bytes: int
    memories: list[dict[str, Any]]


def check_writes(writes: tuple[Writes, ...], reset_every: int) -> None:
    """Refuse no way of writing, one that comes twice, and memories reset after no token."""
    require(reset_every >= 1, f"reset_every: {reset_every}; must be >= 1.")
    require(bool(writes), "writes: empty; choose from on, frozen, reset.")
    require(len(set(writes)) == len(writes), f"writes: {list(writes)}; each once.")


def modes_of(model: Any, wanted: tuple[Writes, ...]) -> tuple[Writes, ...]:
    """Those of the modes in which this model can differ: one without memories has ``on`` alone."""
    if not hasattr(model, "memory_paths"):
        raise ConfigError(
            "evals: the evaluator reads with a language model; this run's model is none."
        )
    return wanted if model.memory_paths() else tuple(mode for mode in wanted if mode == "on")


def read_rows(model: nn.Module, inputs: Ints, targets: Ints, reading: Reading) -> Answers:
    """Read rows (N, L), each from a fresh State."""
    device = next(model.parameters()).device
    rows = max(1, TOKENS // inputs.shape[1])
    found, state = [], None
    with evaluating(model):
        for start in range(0, len(inputs), rows):
            tokens = torch.from_numpy(inputs[start : start + rows]).to(device)
            labels = torch.from_numpy(targets[start : start + rows]).to(device)
            logits, state = logits_of(model, tokens, labels, reading)
            found.append(_scored(logits, labels))
    guess, nats, sure = (np.concatenate(parts) for parts in zip(*found, strict=True))
    held = max((len(tensor) for tensor in tensors(state)), default=1)
    anything: Any = model
    report = anything.memory_report(state) if anything.memory_paths() else []
    return Answers(guess, nats, sure, num_bytes(state) // held, report)


def logits_of(model: Any, tokens: Tensor, labels: Tensor, reading: Reading) -> tuple[Tensor, Any]:
    """Logits (B, L, V) and the State after the last token."""
    write, length = reading.writes != "frozen", tokens.shape[1]
    every = reading.every if reading.writes == "reset" else length
    parts: list[Tensor] = []
    state: Any = None
    for start in range(0, length, every):
        piece = slice(start, start + every)
        given = labels[:, piece] if reading.labels else None
        out = model(tokens[:, piece], state, targets=given, write=write)
        state = out.state
        if reading.writes == "reset" and piece.stop < length:
            state = model.without_memories(state)
        parts.append(out.pred)
    return torch.cat(parts, 1), state


def _scored(logits: Tensor, labels: Tensor) -> tuple[Ints, Floats, Floats]:
    flat = logits.double().flatten(0, 1)
    nats = cross_entropy(flat, labels.flatten(), ignore_index=IGNORE, reduction="none")
    sure, guess = torch.softmax(flat, 1).max(1)
    shaped = (part.view(labels.shape).cpu().numpy() for part in (guess, nats, sure))
    return tuple(shaped)  # type: ignore[return-value]
