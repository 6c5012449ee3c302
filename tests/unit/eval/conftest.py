"""Small causal language models with State, and a tokenizer, for the tests of nl.eval."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from nl.core.output import Output
from nl.core.state import state_type
from nl.eval.context import EvalContext
from tests.unit.eval.scripted import data, run

__all__ = ["data", "run"]

VOCAB = 128


class CharTokenizer:
    """One id per ASCII character; 0 ends a document."""

    vocab_size = VOCAB
    eos_id = 0

    def encode(self, text: str) -> list[int]:
        return [ord(letter) if ord(letter) < VOCAB else 1 for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(token) for token in ids)


class ListCorpus:
    """Texts of one split held in memory, by domain."""

    def __init__(self, domains: dict[str, list[str]], split: str = "test") -> None:
        self._domains, self._split = domains, split

    def splits(self) -> tuple[str, ...]:
        return (self._split,)

    def domains(self, split: str) -> tuple[str, ...]:
        return tuple(self._domains)

    def documents(self, split: str, domain: str) -> Iterator[str]:
        return iter(self._domains[domain])


@state_type
class FakeState(NamedTuple):
    summary: Tensor  # (B, D): running sum of what was read
    memory: Tensor  # (B, V, V): counts of pairs, written only with write=True
    last: Tensor  # (B,) the last token, -1 when fresh
    position: int


class RecurrentModel(nn.Module):
    """A causal float64 recurrence plus a pair-count memory: every output depends on all before."""

    def __init__(self, vocab: int = VOCAB, dim: int = 8, rate: float = 1.0) -> None:
        super().__init__()
        self.vocab, self.rate, self.rows_read = vocab, rate, 0
        self.embed = nn.Parameter(torch.randn(vocab, dim, dtype=torch.float64))
        self.head = nn.Parameter(torch.randn(dim, vocab, dtype=torch.float64))

    def init_state(self, batch: int) -> FakeState:
        return FakeState(
            torch.zeros(batch, self.embed.shape[1], dtype=torch.float64),
            torch.zeros(batch, self.vocab, self.vocab, dtype=torch.float64),
            torch.full((batch,), -1),
            0,
        )

    def forward(
        self,
        tokens: Tensor,
        state: Any = None,
        knobs: Any = None,
        targets: Any = None,
        write: bool = True,
    ) -> Output:
        self.rows_read += tokens.numel()
        state = state or self.init_state(tokens.shape[0])
        summary, memory, last = state.summary, state.memory.clone(), state.last
        rows = torch.arange(tokens.shape[0])
        logits = []
        for token in tokens.unbind(1):
            if write:
                known = last >= 0
                memory[rows[known], last[known], token[known]] += 1
            summary = 0.9 * summary + self.embed[token]
            logits.append(summary.tanh() @ self.head + self.rate * memory[rows, token])
            last = token
        new = FakeState(summary, memory, last, state.position + tokens.shape[1])
        return Output(torch.stack(logits, 1), new)

    def generate(self, tokens: Tensor, *, max_new_tokens: int, **how: Any) -> Any:
        return greedy(self, tokens, max_new_tokens, **how)


class UniformModel(nn.Module):
    """Every token equally likely, whatever was read."""

    def forward(
        self, tokens: Tensor, state: Any = None, targets: Any = None, write: bool = True
    ) -> Output:
        position = 0 if state is None else state[0]
        return Output(torch.zeros(*tokens.shape, VOCAB), (position + tokens.shape[1],))


def greedy(model: nn.Module, tokens: Tensor, max_new_tokens: int, **how: Any) -> Any:
    """Naive greedy decoding by the contract of ``model.generate``."""
    assert how.pop("temperature") == 0
    how.pop("seed")
    ids = how.pop("vocab_size", None)
    new = []
    for _ in range(max_new_tokens):
        out = model(tokens, **how)
        how["state"], tokens = out.state, out.pred[:, -1:, :ids].argmax(-1)
        new.append(tokens)
    return torch.cat(new, 1), how["state"]


class InductionModel(nn.Module):
    """Repeats what followed the longest earlier match of the recent past (ties: the latest).

    It solves every task whose answer stands in the context; State is all it has read.
    """

    def __init__(self, reach: int = 48) -> None:
        super().__init__()
        self.reach = reach

    def forward(
        self, tokens: Tensor, state: Any = None, targets: Any = None, write: bool = True
    ) -> Output:
        past = tokens[:, :0] if state is None else state
        read = torch.cat([past, tokens], 1)
        logits = torch.zeros(*tokens.shape, VOCAB)
        for row, line in enumerate(read.tolist()):
            text = "".join(map(chr, line))
            for at in range(tokens.shape[1]):
                guess = self.guess(text[: past.shape[1] + at + 1])
                if guess is not None:
                    logits[row, at, guess] = 20.0
        return Output(logits, read)

    def generate(self, tokens: Tensor, *, max_new_tokens: int, **how: Any) -> Any:
        return greedy(self, tokens, max_new_tokens, **how)

    def guess(self, text: str) -> int | None:
        for size in range(min(self.reach, len(text) - 1), 0, -1):
            found = text.rfind(text[-size:], 0, len(text) - 1)
            if found >= 0:
                return ord(text[found + size])
        return None


@pytest.fixture
def fakes() -> ModuleType:
    """The classes of this file."""
    return sys.modules[__name__]


@pytest.fixture
def context(tmp_path: Path) -> EvalContext:
    """A context with the character tokenizer and two domains of short random texts."""
    generator = torch.Generator().manual_seed(3)

    def text(size: int) -> str:
        letters = torch.randint(97, 123, (size,), generator=generator).tolist()
        return "".join(map(chr, letters))

    domains = {
        "prose": [text(size) for size in (5, 17, 1, 40, 23)],
        "code": [text(size) for size in (12, 30, 7)],
    }
    return EvalContext(
        tokenizer=CharTokenizer(),
        corpus=ListCorpus(domains),
        output=tmp_path / "out",
        batch_size=3,
        segment=7,
    )
