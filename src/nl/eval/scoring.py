"""Log-likelihoods of continuations, batched: shared contexts are read once and forked. Floor 6.

Rows are padded on the right only, so no scored position and no State that is used again has read a
pad token. State is fresh for every item and is carried from segment to segment inside one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nl.core.output import Knobs
from nl.core.state import select_rows
from nl.eval.context import Alone, EvalContext, Memorize, Team, evaluating
from nl.eval.memorize import MemoryConfig, Tokens, rows_at_once


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
        memory: which memories write, and whether State is carried from context to context.
        whole: with ``memory.carry`` the continuation belongs to what is carried (a text that is
            scored as a whole), else the context alone does.
        on_progress: called with the number of items just finished.
        team: the processes that share the batches.
    """

    model: nn.Module
    write: bool
    device: torch.device | str
    batch_size: int
    segment: int
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    whole: bool = False
    on_progress: Callable[[int], None] | None = None
    team: Team = field(default_factory=Alone)

    def score(self, items: Sequence[Item], before: Any = None) -> list[Score]:
        """Scores in the order of ``items``; the result does not depend on the batch size.

        ``before`` is a State of one row that every item begins from; None: a fresh one.

        Batches are dealt out to the team; every rank gets all scores. With State carried from
        context to context there is only one order, and every rank reads all.

        Raises:
            ValueError: an item has no context or no continuation.
        """
        for index, item in enumerate(items):
            if not item.context or not item.continuation:
                raise ValueError(f"item {index}: context and continuation need at least one token")
        results: list[Score | None] = [None] * len(items)
        with evaluating(self.model), self.memory.gated(self.model):
            if self.memory.carry and self.write:
                self._score_carried(items, results)
            else:
                for number, rows in enumerate(self._batches(items)):
                    if number % self.team.world == self.team.rank:
                        self._score_rows(rows, items, results, before)
                        self._done(rows)
                results = shared_out(self.team, results)
        return [result for result in results if result is not None]

    def _done(self, rows: list[_Row]) -> None:
        if self.on_progress:
            self.on_progress(sum(len(row.items) for row in rows))

    def _score_carried(self, items: Sequence[Item], results: list[Score | None]) -> None:
        """Contexts in the order of the items; each begins where the one before it ended."""
        state = None
        for group in self._groups(items):
            for at in range(0, len(group), self.batch_size):
                rows = group[at : at + self.batch_size]
                self._score_rows(rows, items, results, state)
                self._done(rows)
            first = items[group[0].items[0]]
            text = first.context + first.continuation if self.whole else first.context
            _, state = self.advance(torch.tensor([text]), state)

    @cached_property
    def knobs(self) -> Knobs | None:
        """Which memories may write."""
        return self.memory.knobs(self.model) if self.write else None

    def _read(self, tokens: Tensor, state: Any) -> Any:
        more = {} if self.knobs is None else {"knobs": self.knobs}
        return self.model(tokens, state=state, write=self.write, **more)

    def advance(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Read (B, T) tokens in segments; the logits (B, vocab) after the last, and the State."""
        pred = torch.empty(0)
        for start in range(0, tokens.shape[1], self.segment):
            part = tokens[:, start : start + self.segment].to(self.device)
            out = self._read(part, state)
            pred, state = out.pred[:, -1], out.state
        return pred, state

    def _groups(self, items: Sequence[Item]) -> list[list[_Row]]:
        """The rows of every context, in the order of the items."""
        tails: dict[Tokens, dict[Tokens, list[int]]] = {}
        for index, item in enumerate(items):
            forks = tails.setdefault(item.context, {})
            forks.setdefault(item.continuation[:-1], []).append(index)
        return [
            [_Row(context, tail, tuple(found)) for tail, found in forks.items()]
            for context, forks in tails.items()
        ]

    def _batches(self, items: Sequence[Item]) -> Iterator[list[_Row]]:
        """Rows of at most ``batch_size``, longest first; a context stays together if it fits."""
        groups = self._groups(items)
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
        self,
        rows: list[_Row],
        items: Sequence[Item],
        results: list[Score | None],
        before: Any = None,
    ) -> None:
        rows = sorted(rows, key=lambda row: -len(row.context) - len(row.tail))
        shared, state = self._read_shared(rows, before)
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
            out = self._read(part, state)
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

    def _read_shared(self, rows: list[_Row], before: Any) -> tuple[int, Any]:
        """Read what several rows have in common once: the length read and the forked State.

        All rows must be at one position, so the common part is as long as the shortest context
        (less one token, whose output is needed). ``before``: a State of one row to begin from.
        """
        contexts = list(dict.fromkeys(row.context for row in rows))
        shared = min(len(context) for context in contexts) - 1
        if len(contexts) == len(rows) or shared == 0:
            return 0, None if before is None else select_rows(before, [0] * len(rows))
        known = torch.tensor([context[:shared] for context in contexts])
        begin = None if before is None else select_rows(before, [0] * len(contexts))
        _, state = self.advance(known, begin)
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
    memory: MemoryConfig | None = None,
    *,
    whole: bool = False,
) -> Scorer:
    """The scorer of a memorisation mode (oracle writes like context; see ``primed``)."""
    return Scorer(
        model=model,
        write=memorize != "off",
        device=context.device,
        batch_size=rows_at_once(model, context.batch_size, write=memorize != "off"),
        segment=context.segment,
        memory=memory or MemoryConfig(),
        whole=whole,
        on_progress=on_progress,
        team=context.team,
    )


def shared_out(team: Team, own: list[Any]) -> list[Any]:
    """What the ranks did of a list, together: the others' entries are None on each of them."""
    if team.world == 1:
        return own
    found = {index: value for index, value in enumerate(own) if value is not None}
    parts = team.gather(found)
    whole = {index: value for part in parts for index, value in part.items()}
    return [whole.get(index) for index in range(len(own))]


def primed(item: Item, shown: Tokens, memorize: Memorize, steps: int = 1) -> Item:
    """What is read before the answer is asked for, by the mode.

    With ``context`` the context is read ``steps`` times; with ``oracle`` ``shown`` (question and
    right answer) is read ``steps`` times before it.
    """
    if memorize == "oracle":
        return Item(shown * steps + item.context, item.continuation)
    if memorize == "context":
        return Item(item.context * steps, item.continuation)
    return item
