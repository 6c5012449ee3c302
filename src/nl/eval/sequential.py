"""The plan of sequential runs and what their results are on disk. Floor 6.

A plan names phases, models and methods; every run of it is a normal training run. Trained and
measured is in ``nl.cli_sequential``.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nl.config import ConfigError, require
from nl.eval.context import Memorize
from nl.eval.continual_metrics import LossMatrix
from nl.eval.continual_summary import (
    ALL_BETTER,
    UNITS,
    fresh_losses,
    interval,
    joint_metrics,
    sequential_metrics,
)
from nl.eval.forgetting import SegmentSpec, labels

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class PlannedPhase:
    """One phase: a domain of the data and how long it is read."""

    domain: str
    """Domain of the data directory."""
    steps: int | None = None
    """Optimizer steps."""
    tokens: int | None = None
    """Tokens instead, rounded up to whole steps."""

    def __post_init__(self) -> None:
        given = (self.steps is None) != (self.tokens is None)
        require(given, f"{self.domain}: give steps or tokens, one of the two.")
        value = self.steps if self.tokens is None else self.tokens
        require(value is not None and value >= 1, f"{self.domain}: {value}; must be >= 1.")

    def length(self, tokens_per_step: int) -> int:
        """Optimizer steps."""
        if self.steps is not None:
            return self.steps
        assert self.tokens is not None
        return -(-self.tokens // tokens_per_step)


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a model is taken through the phases."""

    order: Literal["sequential", "joint", "scratch"] = "sequential"
    """sequential: one phase after the other. joint: all phases mixed, as many tokens. scratch: a
    fresh model for each phase."""
    stream: str = "phases"
    """Kind of the stream of a sequential run: phases, or replay."""
    overrides: tuple[str, ...] = ()
    """What train.py is told, key=value."""
    freeze_after: int = 0
    """Phases after which only memories are trained (optim=frozen_backbone); 0: never."""

    def __post_init__(self) -> None:
        require(self.freeze_after >= 0, f"freeze_after: {self.freeze_after}; must be >= 0.")
        plain = self.order == "sequential" or (self.stream == "phases" and not self.freeze_after)
        require(plain, f"order: {self.order}; stream and freeze_after are for sequential runs.")


@dataclass(frozen=True, kw_only=True)
class ContinualPlan:
    """A file of ``configs/continual``."""

    config: str = "pilot_smoke"
    """Base configuration."""
    path: str
    """Data directory that holds the domains of all phases."""
    overrides: tuple[str, ...] = ()
    """For every run, key=value."""
    phases: tuple[PlannedPhase, ...]
    """In order; a domain may come back."""
    models: dict[str, tuple[str, ...]]
    """Overrides by name."""
    methods: dict[str, Method] = field(default_factory=lambda: {"naive": Method()})
    """By name."""
    runs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Methods of each model, in the order of training; empty: all of all."""
    seeds: tuple[int, ...] = (0,)
    """Every run is trained once per seed."""
    segments: tuple[SegmentSpec, ...] = ()
    """Columns of R; empty: the test split of every domain of the phases."""
    documents: int = 16
    """Documents per segment, drawn once for all runs."""
    max_tokens: int = 512
    """Tokens per document, from its start; 0: all."""

    def __post_init__(self) -> None:
        require(len(self.phases) >= 1, "phases: empty; give at least one {domain, steps}.")
        require(bool(self.models), "models: empty; give at least one name with its overrides.")
        require(bool(self.methods), "methods: empty; give at least one, for example naive: {}.")
        require(len(set(self.seeds)) == len(self.seeds), f"seeds: {list(self.seeds)}; each once.")
        require(bool(self.seeds), "seeds: empty; give at least one.")
        for name in ("documents", "max_tokens"):
            least = 1 if name == "documents" else 0
            value = getattr(self, name)
            require(value >= least, f"{name}: {value}; must be >= {least}.")
        for model, methods in self.runs.items():
            require(model in self.models, f"runs: {model!r} is none of {list(self.models)}.")
            for method in methods:
                known = method in self.methods
                require(known, f"runs.{model}: {method!r} is none of {list(self.methods)}.")
        for name in (*self.models, *self.methods):
            fits = all(c.isalnum() or c in "-_." for c in name)
            require(fits, f"{name!r}: names are letters, digits, '-', '_' and '.' only.")

    @property
    def domains(self) -> tuple[str, ...]:
        """Of the phases, in order of first appearance."""
        return tuple(dict.fromkeys(phase.domain for phase in self.phases))

    def columns(self) -> tuple[SegmentSpec, ...]:
        """The segments, the default ones filled in."""
        return self.segments or tuple(SegmentSpec(name=name) for name in self.domains)

    def trained(self) -> tuple[str, ...]:
        """The segment that each phase trains.

        Raises:
            ConfigError: a phase reads a domain that no segment measures.
        """
        names = {spec.domain or spec.name: spec.name for spec in self.columns()}
        for phase in self.phases:
            if phase.domain not in names:
                raise ConfigError(f"segments: none has domain {phase.domain!r}; add one.")
        return tuple(names[phase.domain] for phase in self.phases)

    def pairs(self) -> list[tuple[str, str]]:
        """(model, method) of every row, in the order of training."""
        chosen = self.runs or dict.fromkeys(self.models, tuple(self.methods))
        return [(model, method) for model, methods in chosen.items() for method in methods]


@dataclass(frozen=True)
class Trained:
    """One training run: what train.py is told, and the steps at which phases end."""

    name: str
    overrides: tuple[str, ...]
    ends: tuple[int, ...]


def planned_runs(
    plan: ContinualPlan, model: str, method: str, seed: int, *, tokens_per_step: int, accum: int
) -> list[Trained]:
    """The training runs behind one row of results: one, or with ``scratch`` one per phase.

    Args:
        plan: the plan.
        model: its name.
        method: its name.
        seed: of the runs.
        tokens_per_step: of an optimizer step.
        accum: train.grad_accum.
    """
    how, name = plan.methods[method], f"{model}-{method}"
    steps = [phase.length(tokens_per_step) for phase in plan.phases]
    ends = tuple(accumulate(steps))
    common: tuple[str, ...] = (*plan.overrides, *plan.models[model], *how.overrides, f"seed={seed}")
    if how.order == "joint":
        rows = dict.fromkeys(plan.domains, 0)
        for phase, count in zip(plan.phases, steps, strict=True):
            rows[phase.domain] += count
        stream = ("stream=shards", f"stream.path={plan.path}", *_mixed(rows))
        return [Trained(name, (*stream, *common, *_saved(ends)), ends)]
    domains = [phase.domain for phase in plan.phases]
    if how.order == "scratch":
        found = []
        for number, (domain, count) in enumerate(zip(domains, steps, strict=True), 1):
            told = ("stream=phases", f"stream.path={plan.path}", _phases([domain], [count], accum))
            found.append(Trained(f"{name}{number}", (*told, *common, *_saved((count,))), (count,)))
        return found
    told = (f"stream={how.stream}", f"stream.path={plan.path}", _phases(domains, steps, accum))
    if how.freeze_after:
        full = ends[min(how.freeze_after, len(ends)) - 1]
        common = ("optim=frozen_backbone", f"optim.full_steps={full}", *common)
    return [Trained(name, (*told, *common, *_saved(ends)), ends)]


def _phases(domains: Sequence[str], steps: Sequence[int], accum: int) -> str:
    pairs = zip(domains, steps, strict=True)
    return f"stream.phases=[{','.join(f'{{domain:{d},steps:{n * accum}}}' for d, n in pairs)}]"


def _mixed(rows: dict[str, int]) -> tuple[str, str]:
    weights = ",".join(str(count) for count in rows.values())
    return f"stream.domains=[{','.join(rows)}]", f"stream.weights=[{weights}]"


def _saved(ends: tuple[int, ...]) -> tuple[str, ...]:
    """A checkpoint at the end of every phase, and nothing that is not needed."""
    return (
        f"train.steps={ends[-1]}",
        f"checkpoint.at=[{','.join(map(str, ends))}]",
        "checkpoint.keep=0",
        "checkpoint.export=false",
    )


@dataclass(frozen=True)
class Measured:
    """One row of results: a model, a method, a seed.

    Attributes:
        model, method, seed: what it is.
        order: of the method.
        runs: run directories.
        parameters: of the model.
        cpu_seconds: of training, all runs; None where it is not known.
        values: R per memorisation mode, rows init and one per phase.
        written: rows of what reading wrote into the memories, as data.
    """

    model: str
    method: str
    seed: int
    order: str
    runs: tuple[str, ...]
    parameters: int
    cpu_seconds: float | None
    values: dict[Memorize, list[list[float]]]
    written: tuple[dict[str, Any], ...] = ()

    def matrix(self, plan: ContinualPlan, mode: Memorize) -> LossMatrix:
        """R with its names."""
        names = tuple(spec.name for spec in plan.columns())
        return LossMatrix(names, plan.trained(), np.array(self.values[mode], dtype=np.float64))


@dataclass(frozen=True)
class Results:
    """All rows of results of a plan."""

    plan: ContinualPlan
    found: tuple[Measured, ...]

    def reference(self, one: Measured, order: str) -> Measured | None:
        """The row of the same model and seed that was trained in another order."""
        for other in self.found:
            if (other.model, other.seed, other.order) == (one.model, one.seed, order):
                return other
        return None

    def metrics(self, one: Measured, mode: Memorize) -> dict[str, float | None]:
        """What is defined for this row."""
        matrix = one.matrix(self.plan, mode)
        if one.order == "joint":
            return joint_metrics(matrix.values[-1].tolist())
        if one.order == "scratch":
            losses = [loss for loss in fresh_losses(matrix) if loss is not None]
            return {"plasticity_loss": float(np.mean(losses))}
        joint, scratch = self.reference(one, "joint"), self.reference(one, "scratch")
        return sequential_metrics(
            matrix,
            None if joint is None else joint.matrix(self.plan, mode).values[-1].tolist(),
            None if scratch is None else fresh_losses(scratch.matrix(self.plan, mode)),
        )

    def by_seed(self, model: str, method: str, mode: Memorize, metric: str) -> dict[int, float]:
        """One metric of one row of the table by seed, where it is defined."""
        rows = [one for one in self.found if (one.model, one.method) == (model, method)]
        pairs = [(one.seed, self.metrics(one, mode).get(metric)) for one in rows]
        return {seed: value for seed, value in pairs if value is not None}

    def modes(self) -> list[Memorize]:
        """Memorisation modes that were measured."""
        return list(dict.fromkeys(mode for one in self.found for mode in one.values))

    def summary(self) -> Iterator[dict[str, Any]]:
        """Every metric over seeds: mean, std, n, 95 % interval, values."""
        for model, method in dict.fromkeys((one.model, one.method) for one in self.found):
            for mode in self.modes():
                for metric, better in ALL_BETTER.items():
                    values = self.by_seed(model, method, mode, metric)
                    if values:
                        yield {
                            "model": model,
                            "method": method,
                            "memorize": mode,
                            "metric": metric,
                            "unit": UNITS[metric],
                            "better": better,
                            **interval(list(values.values())).as_data(),
                            "seeds": {str(seed): value for seed, value in values.items()},
                        }

    def cells(self) -> Iterator[dict[str, Any]]:
        """Every cell of every R."""
        for one in self.found:
            for mode in one.values:
                matrix = one.matrix(self.plan, mode)
                for label, losses in zip(labels(matrix), matrix.values.tolist(), strict=True):
                    for segment, loss in zip(matrix.segments, losses, strict=True):
                        yield {
                            "model": one.model,
                            "method": one.method,
                            "seed": one.seed,
                            "memorize": mode,
                            "row": label,
                            "segment": segment,
                            "nats_per_token": loss,
                            "perplexity": math.exp(loss) if loss < 700 else math.inf,
                        }

    def as_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        runs = []
        for one in self.found:
            entry = {k: v for k, v in vars(one).items() if k != "values"}
            matrices = {}
            for mode, values in one.values.items():
                metrics = self.metrics(one, mode)
                matrices[mode] = {"nats_per_token": values, "metrics": metrics}
            runs.append({**entry, "memorize": matrices})
        first = [labels(one.matrix(self.plan, next(iter(one.values)))) for one in self.found[:1]]
        return {
            "schema": SCHEMA,
            "segments": [spec.name for spec in self.plan.columns()],
            "phases": list(self.plan.trained()),
            "rows": first[0] if first else [],
            "state_policy": "State fresh per document",
            "runs": runs,
            "summary": list(self.summary()),
            "better": ALL_BETTER,
            "units": UNITS,
        }

    def table(self) -> str:
        """Mean and 95 % interval of the main metrics as text."""
        shown = ("average_loss", "forgetting", "backward_transfer", "plasticity_loss", "joint_gap")
        head = ["model", "method", "memorize", "n", *shown]
        lines = [head]
        for model, method in dict.fromkeys((one.model, one.method) for one in self.found):
            for mode in self.modes():
                cells, count = [], 0
                for metric in shown:
                    values = list(self.by_seed(model, method, mode, metric).values())
                    count = max(count, len(values))
                    cells.append(interval(values).text() if values else "-")
                lines.append([model, method, mode, str(count), *cells])
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        text = ["  ".join(c.ljust(w) for c, w in zip(x, widths, strict=True)) for x in lines]
        return "\n".join([*text, "nats per token; mean +- half a 95 % interval over seeds"])


def write_csv(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Rows of equal keys as CSV; nested values are left out."""
    flat = [{k: v for k, v in row.items() if not isinstance(v, dict)} for row in rows]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(flat[0]) if flat else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
