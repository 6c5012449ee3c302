"""Class-incremental text classification by a language model that memorises examples. Floor 6.

Labels come in tasks. Every training example of a task is read once with its label; afterwards the
examples of all tasks so far are classified: the label whose words are most likely after the text.
Nothing is trained: what is learned is in the State. Attention is emptied after each example, so
only memories carry anything from one example to the next.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from nl.config import ConfigError, require
from nl.core.seeds import SeedBook
from nl.eval.context import EvalContext, Memorize, evaluating
from nl.eval.continual_summary import Interval, interval
from nl.eval.memorize import MemoryConfig
from nl.eval.progress import ProgressMeter
from nl.eval.scoring import Item, Scorer, scorer

Z_95 = 1.959964


class Example(NamedTuple):
    """A text and its label."""

    text: str
    label: str


@dataclass(frozen=True, kw_only=True)
class Splitting:
    """How labels become tasks and examples are dealt out."""

    task_size: int = 10
    """Labels per task; a last task of fewer labels is left out."""
    train_per_label: int = 25
    """Examples per label that are memorised."""
    eval_per_label: int = 25
    """Examples per label that are classified."""
    max_tasks: int = 0
    """At most so many tasks; 0: as many as the labels fill."""

    def __post_init__(self) -> None:
        for name, least in (("task_size", 2), ("train_per_label", 1), ("eval_per_label", 1)):
            value = getattr(self, name)
            require(value >= least, f"--{name.replace('_', '-')}: {value}; must be >= {least}.")


@dataclass(frozen=True)
class Task:
    """Labels that come together, and their examples."""

    labels: tuple[str, ...]
    train: tuple[Example, ...]
    test: tuple[Example, ...]


def make_tasks(
    train: Sequence[Example], test: Sequence[Example], how: Splitting, seed: int
) -> list[Task]:
    """Tasks in an order drawn with ``seed``; labels with too few examples are left out.

    Args:
        train: to memorise.
        test: to classify; empty: taken of ``train``, disjoint.
        how: sizes.
        seed: of the order of labels and the choice of examples.

    Raises:
        ConfigError: fewer labels than one task needs.
    """
    book = SeedBook(seed)
    pools: dict[str, tuple[list[Example], list[Example]]] = {}
    need = how.train_per_label + (0 if test else how.eval_per_label)
    for label in sorted({example.label for example in train}):
        rng = random.Random(book.seed("eval", "classes", label))
        mine, theirs = (
            sorted({e for e in side if e.label == label}) for side in (train, test or train)
        )
        rng.shuffle(mine)
        if test:
            theirs = [e for e in theirs if e not in set(mine)]
            rng.shuffle(theirs)
        else:
            theirs = mine[how.train_per_label :]
        if len(mine) >= need and len(theirs) >= how.eval_per_label:
            pools[label] = (mine[: how.train_per_label], theirs[: how.eval_per_label])
    labels = sorted(pools)
    random.Random(book.seed("eval", "classes")).shuffle(labels)
    count = len(labels) // how.task_size
    if not count:
        raise ConfigError(
            f"--task-size: {how.task_size}; only {len(labels)} labels have "
            f"{how.train_per_label} + {how.eval_per_label} examples: lower --task-size, "
            "--train-per-label or --eval-per-label."
        )
    return [
        _task(labels[i * how.task_size : (i + 1) * how.task_size], pools, book)
        for i in range(min(count, how.max_tasks or count))
    ]


def _task(
    labels: list[str], pools: dict[str, tuple[list[Example], list[Example]]], book: SeedBook
) -> Task:
    train = [example for label in labels for example in pools[label][0]]
    random.Random(book.seed("eval", "classes", *labels)).shuffle(train)
    test = [example for label in labels for example in pools[label][1]]
    return Task(tuple(labels), tuple(train), tuple(test))


class Verdict(NamedTuple):
    """One classified example: after which task, of which task, what was said."""

    after: int
    task: int
    example: int
    label: str
    predicted: str
    candidates: int

    @property
    def right(self) -> bool:
        """Whether the answer is right."""
        return self.label == self.predicted


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How examples are shown and answers found.

    Attributes:
        task_aware: an example's candidates are the labels of its own task; else all seen so far.
        normalise: mean instead of sum of log-probabilities over a label's tokens.
        max_tokens: of a text, from its start.
        memory: which memories are written, how often an example is read.
    """

    task_aware: bool = True
    normalise: bool = False
    max_tokens: int = 128
    memory: MemoryConfig = field(default_factory=MemoryConfig)

    def __post_init__(self) -> None:
        require(self.max_tokens >= 1, f"--max-tokens: {self.max_tokens}; must be >= 1.")


def run_tasks(
    model: nn.Module,
    tasks: Sequence[Task],
    context: EvalContext,
    memorize: Memorize,
    protocol: Protocol,
) -> list[Verdict]:
    """Every verdict: after each task, on the examples of all tasks so far.

    off: nothing is memorised. context: training examples are. oracle: the example itself is, with
    its label, right before it is classified, and nothing else; an upper bound.
    """
    judge = scorer(model, context, memorize, memory=protocol.memory)
    total = sum(len(t.test) for i in range(len(tasks)) for t in tasks[: i + 1])
    found: list[Verdict] = []
    state: Any = None
    with ProgressMeter(f"classes ({memorize})", total, "texts") as meter:
        for after, task in enumerate(tasks):
            if memorize == "context":
                state = memorised(judge, task.train, context, protocol, state)
            for number, seen in enumerate(tasks[: after + 1]):
                several = tasks[number : number + 1] if protocol.task_aware else tasks[: after + 1]
                candidates = [label for one in several for label in one.labels]
                answers = _answers(judge, seen.test, candidates, context, memorize, protocol, state)
                found += [
                    Verdict(after, number, i, example.label, answer, len(candidates))
                    for i, (example, answer) in enumerate(zip(seen.test, answers, strict=True))
                ]
                meter.advance(len(seen.test))
    return found


def memorised(
    judge: Scorer,
    examples: Sequence[Example],
    context: EvalContext,
    protocol: Protocol,
    state: Any,
) -> Any:
    """The State after reading every example with its label; attention is emptied after each."""
    model: Any = judge.model
    with evaluating(judge.model), protocol.memory.gated(judge.model):
        for example in examples:
            shown = _prompt(example.text, context, protocol) + _label(example.label, context)
            shown += tuple(context.tokenizer.encode("\n"))
            for _ in range(protocol.memory.steps):
                _, state = judge.advance(torch.tensor([shown]), state)
            state = model.memories_alone(state) if hasattr(model, "memories_alone") else None
    return state


def _prompt(text: str, context: EvalContext, protocol: Protocol) -> tuple[int, ...]:
    """No mark between question and answer, one in front."""
    encode = context.tokenizer.encode
    body = encode(f"Text: {text}")[: protocol.max_tokens]
    return (context.tokenizer.eos_id, *body, *encode("\nLabel:"))


def _label(label: str, context: EvalContext) -> tuple[int, ...]:
    return tuple(context.tokenizer.encode(f" {label}"))


def _answers(
    judge: Scorer,
    examples: Sequence[Example],
    candidates: Sequence[str],
    context: EvalContext,
    memorize: Memorize,
    protocol: Protocol,
    state: Any,
) -> list[str]:
    """The most likely candidate of each example; the first of equals."""
    ends = [_label(label, context) for label in candidates]
    items = []
    for example in examples:
        prompt = _prompt(example.text, context, protocol)
        if memorize == "oracle":
            shown = prompt + _label(example.label, context) + tuple(context.tokenizer.encode("\n"))
            prompt = shown * protocol.memory.steps + prompt
        items += [Item(prompt, end) for end in ends]
    scores = judge.score(items, state)
    values = [s.total / (len(s.logprobs) if protocol.normalise else 1) for s in scores]
    size = len(candidates)
    rows = [values[i : i + size] for i in range(0, len(values), size)]
    return [candidates[row.index(max(row))] for row in rows]


@dataclass(frozen=True)
class Matrix:
    """Accuracies: entry (i, j) is on task j after task i; nan above the diagonal."""

    hits: tuple[tuple[tuple[bool, ...], ...], ...]
    """Per entry on and below the diagonal, right or wrong per example."""
    chances: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, verdicts: Sequence[Verdict], count: int) -> Matrix:
        """From the verdicts on ``count`` tasks."""
        hits: list[list[list[bool]]] = [[[] for _ in range(i + 1)] for i in range(count)]
        chances = [[math.nan] * (i + 1) for i in range(count)]
        for one in verdicts:
            hits[one.after][one.task].append(one.right)
            chances[one.after][one.task] = 1 / one.candidates
        return cls(
            tuple(tuple(tuple(cell) for cell in row) for row in hits),
            tuple(tuple(row) for row in chances),
        )

    @property
    def values(self) -> list[list[float]]:
        """Accuracy per entry."""
        return [[statistics.fmean(cell) for cell in row] for row in self.hits]

    def forgetting(self) -> list[float]:
        """Per task but the last: its best accuracy before the last task, minus that at the end."""
        values = self.values
        last = len(values) - 1
        return [max(values[i][j] for i in range(j, last)) - values[last][j] for j in range(last)]

    def lost(self) -> Interval | None:
        """Right after its task minus right at the end, over the examples of all but the last.

        The difference is taken example by example.
        """
        last = len(self.hits) - 1
        gaps = [
            float(before) - float(now)
            for j in range(last)
            for before, now in zip(self.hits[j][j], self.hits[last][j], strict=True)
        ]
        return interval(gaps) if gaps else None

    def metrics(self) -> dict[str, Any]:
        """Averages, each with what it is over."""
        values, last = self.values, self.hits[-1]
        final = [right for cell in last for right in cell]
        learned = [right for i, row in enumerate(self.hits) for right in row[i]]
        forgotten, lost = self.forgetting(), self.lost()
        return {
            "average_accuracy_final": rate(final, statistics.fmean(self.chances[-1])),
            "average_accuracy_learned": rate(
                learned, statistics.fmean(row[-1] for row in self.chances)
            ),
            "average_forgetting": statistics.fmean(forgotten) if forgotten else None,
            "lost_after_learning": None if lost is None else lost.as_data(),
            "average_accuracy_anytime": statistics.fmean(map(statistics.fmean, values)),
        }


def rate(hits: Sequence[bool], chance: float) -> dict[str, float]:
    """A share with its 95 % interval (Wilson 1927), n and what guessing gives."""
    low, high = wilson(sum(hits), len(hits))
    return {
        "value": statistics.fmean(hits),
        "n": len(hits),
        "low": low,
        "high": high,
        "chance": chance,
    }


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    share, z = hits / n, Z_95
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
