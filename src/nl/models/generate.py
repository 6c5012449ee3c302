"""Sampling from a language model with streamed State. Floor 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from nl.config import require
from nl.core.output import Knobs


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen."""

    max_new_tokens: int = 64
    """Tokens to add."""
    temperature: float = 1.0
    """0 takes the most likely token."""
    top_k: int = 0
    """Sample among the k most likely tokens; 0: all."""
    top_p: float = 1.0
    """Sample among the smallest set that holds this probability."""
    seed: int = 0
    """Seed of the sampling stream."""
    stop: tuple[int, ...] = ()
    """Token ids that end a row; the row is filled up with the first of them."""
    vocab_size: int = 0
    """Ids below it can be chosen: a tokenizer's, where the model has more than it; 0: all."""

    def __post_init__(self) -> None:
        require(self.max_new_tokens >= 1, f"max_new_tokens: {self.max_new_tokens}; must be >= 1.")
        require(self.temperature >= 0, f"temperature: {self.temperature}; must be >= 0.")
        require(self.top_k >= 0, f"top_k: {self.top_k}; must be >= 0.")
        require(0 < self.top_p <= 1, f"top_p: {self.top_p}; must be in (0, 1].")
        require(self.vocab_size >= 0, f"vocab_size: {self.vocab_size}; must be >= 0.")


@torch.no_grad()
def generate(
    model: Any,
    tokens: Tensor,
    *,
    sampling: Sampling,
    state: Any = None,
    write: bool | Literal["given"] = True,
    knobs: Knobs | None = None,
) -> tuple[Tensor, Any]:
    """Continue ``tokens``: the prompt is read once, then one token per step.

    Args:
        tokens: (B, T) int64 prompt, T >= 1, continuing ``state``.
        write: False freezes all memories, "given" while they read what is generated; ``knobs``
            may freeze some of them.

    Returns:
        (B, N) new tokens and the State after reading all but the last of them.

    Raises:
        ConfigError: no prompt, or logits that are not finite.
    """
    require(tokens.dim() == 2 and tokens.shape[1] >= 1, "tokens: the prompt needs at least 1 token")
    random = torch.Generator(tokens.device).manual_seed(sampling.seed)
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    out = []
    for turn in range(sampling.max_new_tokens):
        read = model(tokens, state, knobs, write=write is True or (turn == 0 and bool(write)))
        state = read.state
        tokens = pick(read.pred[:, -1].float(), sampling, random)[:, None]
        if sampling.stop:
            tokens = torch.where(ended[:, None], sampling.stop[0], tokens)
            ended |= torch.isin(tokens[:, 0], tokens.new_tensor(sampling.stop))
        out.append(tokens)
        if sampling.stop and bool(ended.all()):
            break
    return torch.cat(out, 1), state


def pick(logits: Tensor, sampling: Sampling, random: torch.Generator) -> Tensor:
    """One token id per row from (B, S) logits.

    Raises:
        ConfigError: logits that are not finite.
    """
    require(
        bool(logits.isfinite().all()),
        "the logits of the next token are not finite: the weights or the State are broken; begin "
        "without the State, or with write=False (--no-write).",
    )
    logits = logits[:, : sampling.vocab_size or None]
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    if sampling.top_k:
        kth = logits.topk(min(sampling.top_k, logits.shape[-1]), -1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if sampling.top_p < 1:
        ordered, index = logits.sort(-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        ordered = ordered.masked_fill(before >= sampling.top_p, -torch.inf)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, index, ordered)
    return torch.multinomial(logits.softmax(-1), 1, generator=random).squeeze(-1)
