"""What an evaluator is given: tokenizer, held-out documents, limits, output folder. Floor 6."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import nn

from nl.config import ConfigError, require
from nl.core.seeds import SeedBook

Memorize = Literal["off", "context", "oracle"]
"""off: every memory frozen (``write=False``). context: memories are written by the text that is
read, before it is scored. oracle: as context, after the answer itself has been read once."""


class Tokenizer(Protocol):
    """Text to ids and back; ``encode`` adds no begin or end mark."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


class Team(Protocol):
    """The processes that share an evaluation; each gets what all of them found."""

    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...
    def gather(self, value: Any) -> list[Any]: ...


class Alone:
    """One process: the team of most evaluations."""

    rank, world = 0, 1

    def gather(self, value: Any) -> list[Any]:
        """What every rank gave, in their order."""
        return [value]


@dataclass(frozen=True)
class Record:
    """What an evaluator leaves beside its rows, filled while it runs.

    Attributes:
        details: facts of its result file (versions, digests of prompts), JSON data.
        samples: one line per sample of ``samples.jsonl``; see ``add``.
        failures: what cannot be true of what was measured; the evaluation fails once it is saved.
    """

    details: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, task: str, memorize: Memorize, sample: str, values: Mapping[str, Any]) -> None:
        """Keep one sample.

        Args:
            task: as in the rows.
            memorize: the mode.
            sample: its name; equal for every model that is asked the same.
            values: by metric a number (rows hold its mean), or a pair (numerator, denominator)
                where rows hold sum over sum.
        """
        self.samples.append(
            {"task": task, "memorize": memorize, "sample": sample, "values": dict(values)}
        )


class Corpus(Protocol):
    """Held-out documents as text, by split and domain; iterated in a fixed order."""

    def splits(self) -> tuple[str, ...]: ...
    def domains(self, split: str) -> tuple[str, ...]: ...
    def documents(self, split: str, domain: str) -> Iterator[str]: ...


class NoText:
    """The tokenizer of a stream that has no text."""

    vocab_size, eos_id = 0, 0

    def encode(self, text: str) -> list[int]:
        """Refused."""
        raise ConfigError("tokenizer: the run's stream has no text; give a data directory.")

    def decode(self, ids: Sequence[int]) -> str:
        """Refused."""
        raise ConfigError("tokenizer: the run's stream has no text; give a data directory.")


READS = {
    "text": ("text", "stdlib"),
    "examples": ("labelled examples", "ladder"),
    "probe": ("token rows with an oracle", "mqar"),
    "phases": ("phases of rows with an oracle", "cl_remap"),
    "tasks": ("tasks made of text", "tasks"),
    "floor": ("windows of known sources", "ergodic"),
    "windows": ("frozen windows of components", "components"),
}
"""What an evaluator may read: in words, and a stream that has it."""


def offered(stream: Any) -> str | None:
    """Which of ``READS`` a stream has."""
    if hasattr(stream, "oracle"):
        return "probe"
    if hasattr(stream, "exact"):
        return "floor"
    if hasattr(stream, "examples"):
        return "examples"
    return "text" if hasattr(stream, "path") else None


def check_reads(evals: Mapping[str, Any], stream: Any, model: Any = None) -> None:
    """Refuse evaluators that read what a stream does not have, or what the model cannot read.

    Raises:
        ConfigError: naming the evaluator.
    """
    for name, evaluator in evals.items():
        what, choice = READS[evaluator.reads]
        phased = evaluator.reads == "phases" and getattr(stream, "phase_steps", 0) > 0
        tasked = evaluator.reads == "tasks" and hasattr(stream, "task_steps")
        framed = evaluator.reads == "windows" and hasattr(stream, "frozen")
        require(
            phased or tasked or framed or evaluator.reads == offered(stream),
            f"evals.{name}: reads {what}, stream={stream.kind} has none; remove it or choose "
            f"stream={choice}.",
        )
        try:
            evaluator.check_parts(stream, model)
        except ConfigError as error:
            lines = (_of(f"evals.{name}", evaluator, line) for line in str(error).splitlines())
            raise ConfigError("\n".join(lines)) from error


def _of(key: str, evaluator: Any, line: str) -> str:
    """A complaint under an evaluator's key; one about a file, say, names no field of it."""
    return f"{key}.{line}" if names_field(evaluator, line) else f"{key}: {line}"


def names_field(settings: Any, line: str) -> bool:
    """Whether a complaint begins with a field of an evaluator's settings."""
    return hasattr(settings, line.partition(":")[0].partition(",")[0].partition(".")[0])


class OwnRows(NamedTuple):
    """A run's own stream: one whose rows have an oracle, or one of tasks.

    Attributes:
        stream: its configuration.
        seed: that rows are drawn from.
        after: the run's model after a step that was saved; 0: before training.
        accum: micro-batches of a step.
    """

    stream: Any
    seed: int
    after: Callable[[int], nn.Module] | None = None
    accum: int = 1


Examples = Callable[[str], Any]
"""Split -> its examples: ``inputs`` and ``labels``, whatever else the stream knows of them."""


@dataclass(frozen=True, kw_only=True)
class EvalContext:
    """Everything an evaluator may use besides the model.

    Attributes:
        tokenizer: the one the model was trained with.
        corpus: held-out documents; None where an evaluator needs none.
        examples: labelled examples by split, of a stream that makes its own; None elsewhere.
        probe: the run's stream, where its rows have an oracle or an exact predictor, or it has
            tasks; None elsewhere.
        output: folder for details (created when something is written).
        device: where the model is.
        batch_size: rows per forward pass; changes speed, never a score.
        segment: tokens per forward pass; longer inputs are read in turn with State carried.
        seed: samples are drawn from named streams of this seed.
        limit: at most this many samples (documents, passages) per task; 0: the evaluator's own.
        step: the optimizer step of the checkpoint, for evals.jsonl.
        facts: what else is recorded beside the results (checkpoint, configuration hash).
        team: the processes that share the work.
        record: what an evaluator leaves beside its rows.
    """

    tokenizer: Tokenizer
    corpus: Corpus | None = None
    examples: Examples | None = None
    probe: OwnRows | None = None
    output: Path
    device: torch.device | str = "cpu"
    batch_size: int = 8
    segment: int = 512
    seed: int = 0
    limit: int = 0
    step: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    team: Team = field(default_factory=Alone)
    record: Record = field(default_factory=Record)

    def __post_init__(self) -> None:
        for name in ("batch_size", "segment"):
            value = getattr(self, name)
            require(value >= 1, f"{name}: {value}; must be >= 1.")
        require(self.limit >= 0, f"limit: {self.limit}; must be >= 0 (0: no limit).")

    def texts(self, split: str, domain: str, count: int = 0) -> list[str]:
        """Documents that are not empty, in their own order, the same ones for every model.

        Args:
            split: of the data.
            domain: of that split.
            count: draw this many, each equally likely (one pass, a reservoir); 0: all.

        Raises:
            ConfigError: no data, no such split or domain, or no text in it.
        """
        if domain not in self.domains(split):
            known = ", ".join(self.domains(split))
            raise ConfigError(f"domain: unknown {domain!r}; split {split} has {known}.")
        assert self.corpus is not None
        rng = random.Random(SeedBook(self.seed).seed("eval", "documents", split, domain))
        kept: list[tuple[int, str]] = []
        texts = (text for text in self.corpus.documents(split, domain) if text.strip())
        for index, text in enumerate(texts):
            if not count or index < count:
                kept.append((index, text))
            elif (place := rng.randrange(index + 1)) < count:
                kept[place] = (index, text)
        if not kept:
            raise ConfigError(f"data: split {split}, domain {domain} holds no text; rebuild it.")
        return [text for _, text in sorted(kept)]

    def domains(self, split: str) -> tuple[str, ...]:
        """The domains of a split.

        Raises:
            ConfigError: no data or no such split.
        """
        if self.corpus is None:
            raise ConfigError(
                "data: held-out documents are needed; name a data directory with --data."
            )
        if split not in self.corpus.splits():
            known = ", ".join(self.corpus.splits())
            raise ConfigError(f"splits: unknown {split!r}; the data has {known}.")
        found = self.corpus.domains(split)
        require(bool(found), f"splits: {split!r} of the data holds no documents; hold out more.")
        return found

    def capped(self, own: int) -> int:
        """The smaller of an evaluator's own limit and ``limit``; 0 means no limit in both."""
        return min(own, self.limit) if own and self.limit else max(own, self.limit)


def check_memorize(modes: tuple[Memorize, ...]) -> None:
    """Refuse an empty or repeating list of memorisation modes."""
    require(bool(modes), "memorize: empty; choose from off, context, oracle.")
    require(len(set(modes)) == len(modes), f"memorize: {list(modes)}; each mode once.")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode without gradients; the former mode comes back afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        model.train(was_training)
