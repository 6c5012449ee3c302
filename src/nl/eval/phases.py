"""Phases: what is known of each after each, from the checkpoints of their ends. Floor 6.

R[i, j] is the share of right answers on rows of phase j after phase i; row ``init`` is the model
before training. Measures of R are those of ``nl.eval.continual_metrics``, which are written for
losses, with 1 - R for shares: Lopez-Paz and Ranzato 2017, Chaudhry et al. 2018.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import nn

from nl.config import ConfigError, register, require
from nl.config.groups import EvaluatorConfig
from nl.config.run import RunConfig
from nl.core.batch import IGNORE
from nl.core.protocols import EvalRow
from nl.eval.context import EvalContext
from nl.eval.continual_metrics import LossMatrix, all_metrics
from nl.eval.probe_read import MEMORIZE, Floats, Ints, Reading, Writes, modes_of, read_rows
from nl.eval.rows import make_row, save_text

RESAMPLES = 200
"""Draws of the bootstrap over rows."""
SHARES = {
    "average_accuracy": ("average_loss", True),
    "backward_transfer": ("backward_transfer", False),
    "forgetting": ("forgetting", False),
    "forward_transfer": ("forward_transfer", False),
    "plasticity": ("plasticity_loss", True),
    "anytime_accuracy": ("anytime_loss", True),
}
"""Measures of shares: the one of losses, and whether it is 1 minus that."""


@register("evaluator", "phases")
@dataclass(frozen=True, kw_only=True)
class PhasesConfig(EvaluatorConfig):
    """What a run through phases remembers and forgets: R, average, transfers, forgetting."""

    reads: ClassVar[str] = "phases"
    """Not text."""

    split: str = "test"
    """Which rows, of every phase as many."""
    writes: tuple[Writes, ...] = ("on",)
    """Ways of writing memories while rows are read: on, frozen, reset."""
    reset_every: int = 8
    """Tokens after which memories are thrown away, in the way ``reset``."""

    def __post_init__(self) -> None:
        require(bool(self.writes), "writes: empty; choose from on, frozen, reset.")
        twice = len(set(self.writes)) < len(self.writes)
        require(not twice, f"writes: {list(self.writes)}; each once.")
        require(self.reset_every >= 1, f"reset_every: {self.reset_every}; must be >= 1.")

    def check_parts(self, stream: Any, model: Any) -> None:
        """Refuse a split that is not there."""
        del model
        known = [name for name in ("train", "val", "test") if hasattr(stream, f"{name}_size")]
        require(self.split in known, f"split: {self.split!r}; choose from {', '.join(known)}.")

    def build(self) -> PhasesEval:
        """The evaluator."""
        return PhasesEval(self)


def phase_ends(stream: Any, accum: int, steps: int) -> list[int]:
    """Optimizer steps at which phases end, up to ``steps``.

    Raises:
        ConfigError: phases do not end with a step.
    """
    require(
        stream.phase_steps % accum == 0,
        f"stream.phase_steps: {stream.phase_steps}; must be a multiple of train.grad_accum "
        f"({accum}), so that phases end with a step.",
    )
    each = stream.phase_steps // accum
    return list(range(each, steps + 1, each))


def check_phase_ends(run: RunConfig) -> None:
    """Refuse the evaluator where a phase ends without a checkpoint that is kept.

    Raises:
        ConfigError: saying which there have to be.
    """
    if not any(isinstance(part, PhasesConfig) for part in run.evals.values()):
        return
    ends, saved = phase_ends(run.stream, run.train.grad_accum, run.train.steps), run.checkpoint
    stream: Any = run.stream
    require(
        bool(ends),
        f"train.steps: {run.train.steps}; no phase ends by then, the first one does at step "
        f"{stream.phase_steps // run.train.grad_accum}: train that far, or set stream.phase_steps.",
    )
    missing = [n for n in ends if n not in saved.at and not (saved.every and n % saved.every == 0)]
    if saved.keep or [n for n in missing if n != run.train.steps]:
        raise ConfigError(
            f"checkpoint.at: {list(saved.at)}, checkpoint.keep: {saved.keep}; evaluator phases "
            "reads a checkpoint of every phase's end: set "
            f"checkpoint.at=[{','.join(map(str, ends))}] checkpoint.keep=0."
        )


class Told(NamedTuple):
    """What the models before training and after each phase said of the same N rows.

    Attributes:
        hits: (stages, N) right answers.
        nats: (stages, N) summed.
        counts: (N,) scored positions.
        phase: (N,) of each row.
        kinds: by name (stages, N) wrong answers of a kind.
    """

    hits: Floats
    nats: Floats
    counts: Floats
    phase: Ints
    kinds: dict[str, Floats]

    def matrix(self, values: Floats, weight: Floats | None = None) -> Floats:
        """(stages, P) of what is summed per row, over scored positions."""
        weight = np.ones(len(self.phase)) if weight is None else weight
        mine = weight[:, None] * (self.phase[:, None] == np.arange(self.phase.max() + 1))
        return np.asarray((values @ mine) / (self.counts @ mine))


class PhasesEval:
    """See the config."""

    def __init__(self, config: PhasesConfig) -> None:
        self.config = config

    def __call__(self, model: nn.Module, context: EvalContext) -> list[EvalRow]:
        """Rows per way of writing; ``details`` and ``matrix.csv`` hold R.

        Raises:
            ConfigError: no phases, or a checkpoint of a phase's end is missing.
        """
        own = context.probe
        if own is None or own.after is None or context.step is None:
            raise ConfigError("evals: phases reads the checkpoints of a run on a probe of phases.")
        ends = phase_ends(own.stream, own.accum, context.step)
        require(bool(ends), f"step: {context.step}; no phase has ended by then.")
        found = own.stream.examples(self.config.split, own.seed)
        phase, table = found.slices["phase"][:, 0], io.StringIO()
        writer = csv.writer(table)
        writer.writerow(["memory writes", "row", "phase", "accuracy", "nats_per_target", "n"])
        rows: list[EvalRow] = []
        modes = modes_of(model, self.config.writes)
        said: dict[str, list[Any]] = {mode: [] for mode in modes}
        for step in [0, *ends]:
            then = model if step == context.step else own.after(step).to(context.device)
            for mode in modes:
                how = Reading(mode, self.config.reset_every)
                said[mode].append(read_rows(then, found.inputs, found.targets, how))
        for mode in modes:
            told = tell(own.stream, found.inputs, found.targets, phase, said[mode])
            page = context.record.details.setdefault(mode, {})
            rows += measured(self.config.split, mode, told, page)
            if hasattr(own.stream, "floors"):
                page["floor"] = own.stream.floors(self.config.split)
            for place, name in enumerate(page["rows"]):
                for j in range(int(phase.max()) + 1):
                    cells = page["accuracy"][place][j], page["nats_per_target"][place][j]
                    writer.writerow([mode, name, j, *cells, page["n"][j]])
        save_text(context.output / "matrix.csv", table.getvalue())
        return rows


def tell(task: Any, inputs: Ints, targets: Ints, phase: Ints, answers: Sequence[Any]) -> Told:
    """What several models said of the same rows, counted per row."""
    scored = targets != IGNORE
    right = [(one.guess == targets) & scored for one in answers]
    kinds: dict[str, list[Any]] = {}
    for one, hit in zip(answers, right, strict=True):
        for name, held in task.errors(inputs, one.guess).items():
            wrong = np.asarray(held, bool) & scored & ~hit
            kinds.setdefault(name, []).append(wrong.sum(1))
    return Told(
        np.stack([hit.sum(1) for hit in right]).astype(float),
        np.stack([one.nats.sum(1) for one in answers]),
        scored.sum(1).astype(float),
        phase,
        {name: np.stack(counts).astype(float) for name, counts in kinds.items()},
    )


def measured(split: str, mode: Writes, told: Told, page: dict[str, Any]) -> list[EvalRow]:
    """Rows of one way of writing; ``page`` takes R, its measures and their intervals."""
    shares, nats = told.matrix(told.hits), told.matrix(told.nats)
    columns = range(shares.shape[1])
    page |= {
        "rows": ["init", *(f"after {i}" for i in range(len(shares) - 1))],
        "accuracy": shares.tolist(),
        "nats_per_target": nats.tolist(),
        "n": [int(told.counts[told.phase == j].sum()) for j in columns],
        "wrong": {name: told.matrix(counts).tolist() for name, counts in told.kinds.items()},
    }
    values = {**measures(shares), **{f"nats/{k}": v for k, v in losses(nats).items()}}
    spread = intervals(told)
    page["intervals"] = {name: [low, high] for name, (_, low, high) in spread.items()}
    task = split if mode == "on" else f"{split}/{mode}"
    note = f"memory writes: {mode}; over phases 0 to {len(shares) - 2}, error over rows"
    rows = []
    for name, value in values.items():
        error = spread[name][0] if name in spread else None
        more: dict[str, Any] = {"memorize": MEMORIZE[mode], "note": note, "stderr": error}
        rows.append(make_row("", task, name, value, len(told.phase), **more))
    ended = len(shares) - 1
    old = [j for j in columns if j < ended and j != (ended - 1) % len(columns)]
    told_of = f"memory writes: {mode}; at the end, answers on phases {', '.join(map(str, old))}"
    for name, matrix in page["wrong"].items() if old else ():
        value, n = float(np.mean([matrix[-1][j] for j in old])), sum(page["n"][j] for j in old)
        more = {"memorize": MEMORIZE[mode], "note": told_of}
        rows.append(make_row("", task, f"wrong/{name}", value, n, **more))
    return rows


def _named(values: Floats) -> LossMatrix:
    """R with names; phases begin again after the last."""
    names = tuple(f"phase_{j}" for j in range(values.shape[1]))
    trained = tuple(names[i % len(names)] for i in range(len(values) - 1))
    return LossMatrix(names, trained, values)


def losses(nats: Floats) -> dict[str, float | None]:
    """Measures of R in nats."""
    return all_metrics(_named(nats))


def measures(shares: Floats) -> dict[str, float | None]:
    """Measures of R in shares of right answers; up is good but for forgetting."""
    found = all_metrics(_named(1 - shares))
    values = {name: (found[of], flip) for name, (of, flip) in SHARES.items()}
    return {k: 1 - v if flip and v is not None else v for k, (v, flip) in values.items()}


def intervals(told: Told) -> dict[str, tuple[float, float, float]]:
    """By measure its standard error and 95 % interval; rows are drawn again within each phase."""
    rng, drawn = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        weight = np.zeros(len(told.phase))
        for j in range(int(told.phase.max()) + 1):
            mine = np.flatnonzero(told.phase == j)
            np.add.at(weight, rng.choice(mine, len(mine)), 1)
        drawn.append(measures(told.matrix(told.hits, weight)))
    found = {}
    for name in drawn[0]:
        values = [one[name] for one in drawn]
        known = [value for value in values if value is not None]
        if known:
            low, high = np.quantile(known, [0.025, 0.975]).tolist()
            found[name] = (float(np.std(known)), low, high)
    return found
