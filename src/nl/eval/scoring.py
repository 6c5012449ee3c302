"""Log-likelihoods of continuations, batched: shared contexts are read once and forked. Floor 6.

Rows are padded on the right only, so no scored position and no State that is used again has read a
pad token. State is fresh for every item and is carried from segment to segment inside one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nl.core.state import select_rows
from nl.eval.context import EvalContext, Memorize, evaluating

Tokens = tuple[int, ...]


class Item(NamedTuple):
    """One question to the model: how likely is ``continuation`` after ``context`` (not empty)?"""

    context: Tokens
    continuation: Tokens


class Score(NamedTuple):
    """The answer.

    Attributes:
        logprobs: (n,) float32 on CPU, natural log, one per token of the continuation.
        greedy: every token was the model's first choice.
    """

    logprobs: Tensor
    greedy: bool

    @property
    def total(self) -> float:
        """Sum of the log-probabilities in nats (negative), added up in float64."""
        return float(self.logprobs.double().sum())


class _Row(NamedTuple):
    """One distinct model input of a batch and the items it answers."""

    context: Tokens
    tail: Tokens
    items: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Scores items with one model and one write policy.

    Attributes:
        model: a language model by the contract of ``docs/contracts.md``.
        write: False freezes every memory (memorisation off).
        device: where the model is.
        batch_size: rows per forward pass.
        segment: tokens per forward pass.
        on_progress: called with the number of items just finished.
    """

    model: nn.Module
    write: bool
    device: torch.device | str
    batch_size: int
    segment: int
    on_progress: Callable[[int], None] | None = None

    def score(self, items: Sequence[Item]) -> list[Score]:
        """Scores in the order of ``items``; the result does not depend on the batch size.

        Raises:
            ValueError: an item has no context or no continuation.
        """
        for index, item in enumerate(items):
            if not item.context or not item.continuation:
                raise ValueError(f"item {index}: context and continuation need at least one token")
        results: list[Score | None] = [None] * len(items)
        with evaluating(self.model):
            for rows in self._batches(items):
                self._score_rows(rows, items, results)
                if self.on_progress:
                    self.on_progress(sum(len(row.items) for row in rows))
        return [result for result in results if result is not None]

    def advance(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Read (B, T) tokens in segments; the logits (B, vocab) after the last, and the State."""
        pred = torch.empty(0)
        for start in range(0, tokens.shape[1], self.segment):
            part = tokens[:, start : start + self.segment].to(self.device)
            out = self.model(part, state=state, write=self.write)
            pred, state = out.pred[:, -1], out.state
        return pred, state

    def _batches(self, items: Sequence[Item]) -> Iterator[list[_Row]]:
        """Rows of at most ``batch_size``, longest first; a context stays together if it fits."""
        tails: dict[Tokens, dict[Tokens, list[int]]] = {}
        for index, item in enumerate(items):
            forks = tails.setdefault(item.context, {})
            forks.setdefault(item.continuation[:-1], []).append(index)
        groups = [
            [_Row(context, tail, tuple(found)) for tail, found in forks.items()]
            for context, forks in tails.items()
        ]
        groups.sort(key=lambda rows: -max(len(row.context) + len(row.tail) for row in rows))
        batch: list[_Row] = []
        for group in groups:
            if batch and len(batch) + len(group) > self.batch_size:
                yield batch
                batch = []
            batch = batch + group
            while len(batch) > self.batch_size:
                yield batch[: self.batch_size]
                batch = batch[self.batch_size :]
        if batch:
            yield batch

    def _score_rows(
        self, rows: list[_Row], items: Sequence[Item], results: list[Score | None]
    ) -> None:
        rows = sorted(rows, key=lambda row: -len(row.context) - len(row.tail))
        shared, state = self._read_shared(rows)
        inputs = [row.context[shared:] + row.tail for row in rows]
        lengths = [len(tokens) for tokens in inputs]
        padded = torch.zeros(len(rows), lengths[0], dtype=torch.long)
        for index, tokens in enumerate(inputs):
            padded[index, : len(tokens)] = torch.tensor(tokens)
        wanted = _wanted(rows, items, shared)
        logprobs = torch.empty(wanted.shape[0])
        greedy = torch.empty(wanted.shape[0], dtype=torch.bool)
        for start in range(0, lengths[0], self.segment):
            stop = start + self.segment
            alive = sum(length > start for length in lengths)
            if state is not None:
                state = select_rows(state, list(range(alive)))
            part = padded[:alive, start:stop].to(self.device)
            out = self.model(part, state=state, write=self.write)
            state = out.state
            here = ((wanted[:, 1] >= start) & (wanted[:, 1] < stop)).nonzero()[:, 0]
            if not len(here):
                continue
            row, position, token = wanted[here].to(self.device).unbind(1)
            logits = out.pred[row, position - start].float()
            picked = logits.log_softmax(-1).gather(1, token[:, None])[:, 0]
            logprobs[here] = picked.cpu()
            greedy[here] = (logits.argmax(-1) == token).cpu()
        cursor = 0
        for index in (i for row in rows for i in row.items):
            end = cursor + len(items[index].continuation)
            results[index] = Score(logprobs[cursor:end].clone(), bool(greedy[cursor:end].all()))
            cursor = end

    def _read_shared(self, rows: list[_Row]) -> tuple[int, Any]:
        """Read what several rows have in common once: the length read and the forked State.

        All rows must be at one position, so the common part is as long as the shortest context
        (less one token, whose output is needed).
        """
        contexts = list(dict.fromkeys(row.context for row in rows))
        shared = min(len(context) for context in contexts) - 1
        if len(contexts) == len(rows) or shared == 0:
            return 0, None
        _, state = self.advance(torch.tensor([context[:shared] for context in contexts]))
        place = {context: index for index, context in enumerate(contexts)}
        return shared, select_rows(state, [place[row.context] for row in rows])


def _wanted(rows: list[_Row], items: Sequence[Item], shared: int) -> Tensor:
    """(n, 3) int64: row, position in the tail, token id, for every scored token in row order."""
    found: list[tuple[int, int, int]] = []
    for number, row in enumerate(rows):
        first = len(row.context) - shared - 1
        for index in row.items:
            continuation = items[index].continuation
            found.extend((number, first + j, token) for j, token in enumerate(continuation))
    return torch.tensor(found)


def scorer(
    model: nn.Module,
    context: EvalContext,
    memorize: Memorize,
    on_progress: Callable[[int], None] | None = None,
) -> Scorer:
    """The scorer of a memorisation mode (oracle writes like context; see ``primed``)."""
    return Scorer(
        model=model,
        write=memorize != "off",
        device=context.device,
        batch_size=context.batch_size,
        segment=context.segment,
        on_progress=on_progress,
    )


def primed(item: Item, shown: Tokens, memorize: Memorize) -> Item:
    """With ``oracle``, the item after ``shown`` (question and right answer) was read once."""
    if memorize != "oracle":
        return item
    return Item(shown + item.context, item.continuation)
