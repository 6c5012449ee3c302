"""Probes: accuracy, exact match and nats on rows never trained on, by slice; controls. Floor 6.

Per case (the split, and the split with other settings of the task: longer, harder) and per way of
writing memories (``nl.eval.probe_read``): the model with its final weights, and beside it the
oracle, chance and the shortcuts that the probe names.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import nn

from nl.config import ConfigError, register, require, structure, unstructure
from nl.config.groups import EvaluatorConfig, StreamConfig
from nl.core.batch import IGNORE
from nl.core.protocols import EvalRow
from nl.eval.context import EvalContext
from nl.eval.probe_read import (
    MEMORIZE,
    Answers,
    Floats,
    Ints,
    Reading,
    Writes,
    check_writes,
    modes_of,
    read_rows,
)
from nl.eval.rows import make_row, ratio_and_stderr, save_json, wilson

RESAMPLES = 1000
"""Draws of the bootstrap over rows."""


@register("evaluator", "probe")
@dataclass(frozen=True, kw_only=True)
class ProbeEvalConfig(EvaluatorConfig):
    """How well a probe's scored positions are answered, with memories on, frozen and reset."""

    reads: ClassVar[str] = "probe"
    """Not text."""

    split: str = "test"
    """Which rows; those of no other split are among them."""
    rows: int = 0
    """At most so many rows of each case; 0: as many as the stream's split has."""
    writes: tuple[Writes, ...] = ("on", "frozen", "reset")
    """Ways of writing memories on the split itself; what is harder is read with the first."""
    reset_every: int = 8
    """Tokens after which memories are thrown away, in the way ``reset``."""
    labels: bool = False
    """Hand right answers to label-driven memories, each after its position, as training does;
    false: the context's own next tokens, so that no answer is ever shown."""
    harder: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name: fields of the stream to change, read beside the split (``length: 128``)."""
    examples: int = 8
    """Rows with an error that are kept, the most confident first; as many right ones."""

    def __post_init__(self) -> None:
        require(self.rows >= 0, f"rows: {self.rows}; must be >= 0 (0: all).")
        require(self.examples >= 0, f"examples: {self.examples}; must be >= 0.")
        check_writes(self.writes, self.reset_every)
        for name in self.harder:
            plain = name.replace("_", "").isalnum() and name != self.split
            plain = plain and name != "process"
            require(plain, f"harder.{name}: letters, digits and _ only, not {self.split}, process.")

    def check_parts(self, stream: Any, model: Any) -> None:
        """Refuse a split that is not there, and cases that the task or the model does not know."""
        known = getattr(model, "vocab_size", None)
        for name, case in self.cases(stream):
            tokens = case.vocab_size()
            require(
                known is None or tokens is None or tokens <= known,
                f"harder.{name}: token ids go up to {(tokens or 0) - 1}, model.vocab_size is "
                f"{known}; raise it to {tokens}.",
            )
            try:
                case.rows(self.split, 0, np.arange(1))
            except ConfigError as error:
                where = "split" if name == self.split else f"harder.{name}"
                raise ConfigError(f"{where}: {error}") from error

    def cases(self, stream: Any) -> Iterator[tuple[str, Any]]:
        """By name: the stream itself, then with what makes it harder.

        Raises:
            ConfigError: no such field of the stream, or a value that it does not take.
        """
        yield self.split, stream
        for name, changes in self.harder.items():
            try:
                yield name, structure(StreamConfig, unstructure(stream) | changes)
            except ConfigError as error:
                raise ConfigError(f"harder.{name}.{error}") from error

    def build(self) -> ProbeEval:
        """The evaluator."""
        return ProbeEval(self)


class Asked(NamedTuple):
    """Rows of one case.

    Attributes:
        name: of the case.
        task: the stream.
        inputs, targets: (N, L).
        slices: by name a number per position (N, L).
    """

    name: str
    task: Any
    inputs: Ints
    targets: Ints
    slices: Mapping[str, Ints]

    @property
    def scored(self) -> Any:
        """(N, L) where something is to be said."""
        return self.targets != IGNORE


class ProbeEval:
    """See the config."""

    def __init__(self, config: ProbeEvalConfig) -> None:
        self.config = config

    def __call__(self, model: nn.Module, context: EvalContext) -> list[EvalRow]:
        """Rows per case, way of writing and slice; ``details`` holds intervals and baselines.

        Raises:
            ConfigError: the run's stream is no probe, or its model no language model.
        """
        if context.probe is None:
            raise ConfigError("evals: probe reads rows with an oracle; this run's stream has none.")
        rows: list[EvalRow] = []
        for name, task in self.config.cases(context.probe.stream):
            asked = self._asked(name, task, context)
            first = name == self.config.split
            modes = modes_of(model, self.config.writes)
            case: dict[str, Any] = {"length": asked.inputs.shape[1], "rows": len(asked.inputs)}
            rows += _baselines(asked, case)
            for mode in modes if first else modes[:1]:
                how = Reading(mode, self.config.reset_every, self.config.labels)
                answers = read_rows(model, asked.inputs, asked.targets, how)
                found = Measured(asked, answers, mode)
                rows += found.rows(case.setdefault(mode, {}), slices=first)
                found.keep(context)
                if first and mode == modes[0]:
                    pages = found.examples(self.config.examples)
                    save_json(context.output / "examples.json", pages)
            context.record.details[name] = case
        context.record.details["process"] = {"cpu_seconds": time.process_time()}
        return rows

    def _asked(self, name: str, task: Any, context: EvalContext) -> Asked:
        own, seed = context.probe[:2] if context.probe else (None, 0)
        split = self.config.split
        size = context.capped(self.config.rows)
        own_size = getattr(own, f"{split}_size", 0)
        if size and size < own_size:
            field_name = "test_size" if split == "train" else f"{split}_size"
            task = structure(StreamConfig, unstructure(task) | {field_name: size})
        found = task.examples(split, seed)
        return Asked(name, task, found.inputs, found.targets, found.slices)


@dataclass(frozen=True)
class Measured:
    """Answers of a model to one case, read in one way."""

    asked: Asked
    answers: Answers
    mode: Writes

    @property
    def name(self) -> str:
        """``test``, ``test/frozen``, ``longer`` ...: the task of its rows."""
        return self.asked.name if self.mode == "on" else f"{self.asked.name}/{self.mode}"

    @property
    def hits(self) -> Any:
        """(N, L) scored and right."""
        return (self.answers.guess == self.asked.targets) & self.asked.scored

    @functools.cached_property
    def kinds(self) -> dict[str, Any]:
        """Where a guess (N, L) would be an error of a kind, by name; of probes that know kinds."""
        told = getattr(self.asked.task, "errors", None)
        if told is None:
            return {}
        found = told(self.asked.inputs, self.answers.guess)
        return {name: np.asarray(held, bool) for name, held in found.items()}

    def rows(self, page: dict[str, Any], *, slices: bool) -> list[EvalRow]:
        """Rows of this reading; ``page`` takes intervals, slices, memories, mistakes."""
        chance, memorize = self.asked.task.chance(), MEMORIZE[self.mode]
        scored, hits = self.asked.scored, self.hits
        below = scored.sum(1).astype(float).tolist()
        wrong = (scored & ~hits).any(1)
        exact = int((~wrong).sum())
        more: dict[str, Any] = {"memorize": memorize, "note": f"memory writes: {self.mode}"}
        n = len(below)

        def row(metric: str, value: float, count: int, **extra: Any) -> EvalRow:
            return make_row("", self.name, metric, value, count, **more, **extra)

        value, error = ratio_and_stderr(hits.sum(1).astype(float).tolist(), below)
        nats, spread = ratio_and_stderr(self.answers.nats.sum(1).tolist(), below)
        share = exact / n
        unit = 1 - chance
        found = [
            row("accuracy", value, int(scored.sum()), stderr=error, chance=chance),
            row("exact", share, n, stderr=(share * (1 - share) / n) ** 0.5),
            row("nll", nats, int(scored.sum()), stderr=spread),
            row("score", (value - chance) / unit, n, stderr=error and error / unit, chance=0.0),
            row("state_bytes", self.answers.state_bytes, 1),
        ]
        page |= {one.metric: one.value for one in found}
        page["accuracy_interval"] = bootstrap(hits.sum(1), np.asarray(below))
        page["exact_interval"] = wilson(exact, n)
        page["memories"] = self.answers.memories
        found += self._written(row)
        found += self._mistakes(row, page)
        if slices:
            found += self._slices(row, page)
        return found

    def _written(self, row: Any) -> list[EvalRow]:
        """How often every memory was written within a row, the least over layers."""
        times: dict[str, int] = {}
        for record in self.answers.memories:
            path = record["path"]
            times[path] = min(times.get(path, record["writes"]), record["writes"])
        return [row(f"writes/{path}", float(count), 1) for path, count in times.items()]

    def _mistakes(self, row: Any, page: dict[str, Any]) -> list[EvalRow]:
        """Shares of wrong answers by what is wrong with them."""
        wrong = self.asked.scored & ~self.hits
        kinds = self.kinds
        count = int(wrong.sum())
        page["errors"] = count
        page["mistakes"] = {name: int((held & wrong).sum()) for name, held in kinds.items()}
        if not count:
            return []
        shares = page["mistakes"].items()
        return [row(f"mistake/{name}", found / count, count) for name, found in shares]

    def _slices(self, row: Any, page: dict[str, Any]) -> list[EvalRow]:
        """Accuracy by the numbers that the probe cuts its positions into."""
        found, page["slices"] = [], {}
        scored, hits = self.asked.scored, self.hits
        for name, values in self.asked.slices.items():
            lines = page["slices"].setdefault(name, {})
            for number in sorted(set(values[scored].tolist())):
                here = scored & (values == number)
                rows = here.any(1)
                right, count = (hits & here)[rows].sum(1), here[rows].sum(1)
                value, error = ratio_and_stderr(right.astype(float), count.astype(float))
                low, high = bootstrap(right, count)
                total = int(count.sum())
                lines[str(number)] = {"accuracy": value, "low": low, "high": high, "n": total}
                found.append(row(f"accuracy/{name}={number}", value, total, stderr=error))
        return found

    def keep(self, context: EvalContext) -> None:
        """What every row scored, for samples.jsonl."""
        scored, hits = self.asked.scored, self.hits
        kinds = self.kinds
        wrong = scored & ~hits
        for i in range(len(scored)):
            n, nats = int(scored[i].sum()), float(self.answers.nats[i].sum())
            values: dict[str, Any] = {
                "accuracy": [int(hits[i].sum()), n],
                "exact": int(not wrong[i].any()),
                "nll": [round(nats, 6), n],
            }
            if wrong[i].any():
                values |= {
                    f"mistake/{name}": [int((held & wrong)[i].sum()), int(wrong[i].sum())]
                    for name, held in kinds.items()
                }
            context.record.add(self.name, MEMORIZE[self.mode], str(i), values)

    def examples(self, count: int) -> dict[str, Any]:
        """The rows with the most confident errors, and as many without one."""
        wrong = self.asked.scored & ~self.hits
        sure = np.where(wrong, self.answers.sure, 0.0).max(1)
        order = np.argsort(-sure, kind="stable")
        bad = [int(i) for i in order if wrong[i].any()][:count]
        good = [int(i) for i in np.flatnonzero(~wrong.any(1))][:count]

        def line(i: int) -> dict[str, Any]:
            places = np.flatnonzero(self.asked.scored[i])
            return {
                "index": i,
                "inputs": self.asked.inputs[i].tolist(),
                "places": places.tolist(),
                "targets": self.asked.targets[i][places].tolist(),
                "guesses": self.answers.guess[i][places].tolist(),
                "probability": np.round(self.answers.sure[i][places], 4).tolist(),
                "right": np.round(np.exp(-self.answers.nats[i][places]), 4).tolist(),
            }

        return {
            "task": self.name,
            "wrong": int(wrong.any(1).sum()),
            "errors": [line(i) for i in bad],
            "right": [line(i) for i in good],
        }


def bootstrap(hits: Any, counts: Any) -> tuple[float, float]:
    """The 95 % interval of sum over sum, rows drawn with replacement; the same draws every time."""
    n = len(hits)
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    shares: Floats = (draws @ np.asarray(hits, float)) / (draws @ np.asarray(counts, float))
    low, high = np.quantile(shares, [0.025, 0.975])
    return float(low), float(high)


def _baselines(asked: Asked, case: dict[str, Any]) -> list[EvalRow]:
    """Oracle, chance and shortcuts on the same rows."""
    rules = {"oracle": asked.task.oracle, **asked.task.shortcuts()}
    scored = asked.scored
    chance = asked.task.chance()
    case |= {"chance": chance, "shortcuts": {}}
    rows = [make_row("", f"{asked.name}/chance", "accuracy", chance, 1, chance=chance)]
    for name, rule in rules.items():
        right = (rule(asked.inputs) == asked.targets) & scored
        value = float(right.sum() / scored.sum())
        if name == "oracle":
            case["oracle"] = value
        else:
            case["shortcuts"][name] = value
        label = name if name == "oracle" else f"shortcut {name}"
        rows.append(
            make_row(
                "", f"{asked.name}/{label}", "accuracy", value, int(scored.sum()), chance=chance
            )
        )
    return rows
