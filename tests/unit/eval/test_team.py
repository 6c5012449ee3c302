"""Ranks that share an evaluation get, all of them, what one process gets."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from nl.dist.group import Peers
from nl.eval.context import EvalContext
from nl.eval.harness import Answers
from nl.eval.perplexity import PerplexityConfig


class Threads:
    """A team of threads in this process."""

    def __init__(self, rank: int, box: list[Any], wait: threading.Barrier) -> None:
        self.rank, self.world, self._box, self._wait = rank, len(box), box, wait

    def gather(self, value: Any) -> list[Any]:
        self._box[self.rank] = value
        self._wait.wait()
        found = list(self._box)
        self._wait.wait()
        return found


def together(work: Callable[[Any], Any], world: int) -> list[Any]:
    """``work(team)`` on every rank at once."""
    box: list[Any] = [None] * world
    results: list[Any] = [None] * world
    wait = threading.Barrier(world, timeout=300)

    def one(rank: int) -> None:
        with torch.no_grad():
            results[rank] = work(Threads(rank, box, wait))

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def requests(*args: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=a, doc_id=0, idx=i) for i, a in enumerate(args)]


@pytest.mark.parametrize("world", [2, 3])
def test_answers_are_those_of_one(fakes: ModuleType, context: EvalContext, world: int) -> None:
    model = fakes.RecurrentModel()
    context = replace(context, batch_size=2)
    texts = ["a few words", "b", "some more of them", "and", "the last one of all"]
    asked = [("more than " * n + text, " of it") for n, text in enumerate(texts)]
    writing = [(text, {"until": ["zz"], "max_gen_toks": 9}) for text in texts]

    def work(team: Any) -> Any:
        answers = Answers(model, replace(context, team=team), "context")
        return (
            answers.loglikelihood(requests(*asked)),
            answers.rolling(requests(*((text,) for text in texts))),
            answers.generate(requests(*writing)),
        )

    alone = work(Peers(0, 1))
    read = model.rows_read
    assert together(work, world) == [alone] * world
    assert model.rows_read - read == read  # the work was shared, not repeated


def test_an_evaluator_is_shared(fakes: ModuleType, context: EvalContext) -> None:
    model = fakes.RecurrentModel()
    evaluator = PerplexityConfig(splits=("test",)).build()

    def work(team: Any) -> Any:
        rows = evaluator(model, replace(context, team=team))
        return [replace(row, seconds=None) for row in rows]

    alone = [replace(row, seconds=None) for row in evaluator(model, context)]
    assert together(work, 2) == [alone, alone]
