"""What sweeps over components left: runs with their losses per token, what is missing, budgets."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from nl.config import require
from nl.report.scaling.bootstrap import Estimate
from nl.report.scaling.documents import Table, fold
from nl.report.scaling.losses import FILE, Floats, Losses, read_losses
from nl.run import RunDir
from nl.run.files import read_json

WAYS = ("on", "frozen", "reset")
"""How memories were written; files of the others are ``nll_<way>.safetensors``."""


@dataclass(frozen=True, eq=False)
class Run:
    """One finished run.

    Attributes:
        block: its mixer, the sweep's column ``model``.
        seed: of its training.
        losses: by way of writing memories.
        page: details of the evaluator; ``sources`` are their matrices, where they are known.
        failures: what the evaluator complained of (better than Bayes).
        parameters, steps, tokens, cpu: of the run.
        windows: trained on, of all components together in an epoch; None where no budget is kept.
        commit: that it was made with.
    """

    block: str
    seed: int
    losses: dict[str, Losses]
    page: dict[str, Any]
    failures: tuple[str, ...]
    parameters: int
    steps: int
    tokens: int
    cpu: float
    windows: int | None
    commit: str

    @property
    def k(self) -> int:
        """Components in training."""
        return len(self.losses["on"].trained_on)


@dataclass(frozen=True, eq=False)
class Sweep:
    """Finished runs, and (directory, state) of the others."""

    runs: tuple[Run, ...]
    missing: tuple[tuple[str, str], ...]

    @property
    def blocks(self) -> list[str]:
        """In the order of the sweep."""
        return list(dict.fromkeys(run.block for run in self.runs))

    def of(self, block: str) -> list[Run]:
        """Runs of one block."""
        return [run for run in self.runs if run.block == block]


def read(root: Path, evaluator: str, labels: str = "observed") -> Sweep:
    """The runs of a sweep; those without losses per token are missing.

    Raises:
        ConfigError: a file of losses is broken, or of documents with other labels.
    """
    path = root / "results.jsonl"
    if not path.is_file():
        return Sweep((), ())
    rows = {row["run_dir"]: row for row in map(json.loads, path.read_text().splitlines())}
    runs, missing = [], []
    for name, row in rows.items():
        home = root / name
        file = home / "artifacts" / "evals" / evaluator / FILE
        if RunDir.holds_run(home) and RunDir(home).finished() and file.is_file():
            runs.append(one_run(home, row, file))
        else:
            state = str(row["status"])
            missing.append((name, "no losses per token" if state == "done" else state))
    for run in runs:
        own = run.losses["on"]
        found = own.more.get("labels", "observed")
        require(found == labels, f"{own.source}: stream.labels: {found}; {labels} wanted here.")
    return Sweep(tuple(runs), tuple(missing))


def one_run(home: Path, row: dict[str, Any], file: Path) -> Run:
    """Everything that pages say of a run."""
    run = RunDir(home)
    summary, meta = read_json(run.summary), read_json(run.meta)
    config = yaml.safe_load(run.config.read_text())
    found = read_json(file.parent.with_suffix(".json"))
    seed = int(config["seed"])
    losses = {}
    for way in WAYS:
        path = file if way == "on" else file.with_name(f"nll_{way}.safetensors")
        if path.is_file():
            losses[way] = replace(read_losses(path), seed=seed)
    budget, matrices = losses["on"].more.get("budget"), file.with_name("sources.json")
    page = found["details"]
    page |= {"sources": read_json(matrices)} if matrices.is_file() else {}
    job = home.with_name(f"{home.name}.job.json")
    cpu = read_json(job).get("cpu_seconds") if job.is_file() else None
    return Run(
        block=str(row.get("column/model") or config["model"]["block"]),
        seed=seed,
        losses=losses,
        page=page,
        failures=tuple(found.get("failures") or ()),
        parameters=int(summary["parameters"]),
        steps=int(summary["steps"]),
        tokens=int(summary["tokens"]),
        cpu=float(cpu or math.nan),
        windows=None if budget is None else sum(budget.values()),
        commit=str((meta.get("git") or {}).get("sha") or "")[:7],
    )


def equal_budgets(runs: Sequence[Run]) -> tuple[int, int, int | None]:
    """(steps, tokens, windows) of all runs.

    Raises:
        ConfigError: they differ.
    """
    found: dict[tuple[int, int, int | None], list[Run]] = {}
    for run in runs:
        found.setdefault((run.steps, run.tokens, run.windows), []).append(run)
    told = "; ".join(
        f"{steps} steps, {tokens} tokens, {windows} windows: {len(some)} runs"
        for (steps, tokens, windows), some in found.items()
    )
    require(len(found) == 1, f"runs of unequal budgets cannot be compared ({told}).")
    return next(iter(found))


# Tables


def picked(name: str) -> Callable[[Losses], Floats]:
    """Of a file: ``nll``, one of its exact columns, or ``xe``.

    ``xe`` is the entropy of the exact predictor plus the model's divergence from it: the expected
    loss over what could have come, in place of the loss of what came. Its mean is the same.
    """

    def pick(losses: Losses) -> Floats:
        if name == "nll":
            return losses.nll
        if name == "xe":
            return losses.exact["bayes_entropy"] + losses.exact["bayes_kl"]
        return losses.exact[name]

    return pick


def table(runs: Sequence[Run], name: str = "nll", way: str = "on") -> Table:
    """Runs of one block, folded to documents; with a hazard all windows are of one process."""
    return fold([as_one(run.losses[way]) for run in runs if way in run.losses], picked(name))


def contrast(runs: Sequence[Run], name: str, way: str, other: str) -> Table:
    """One way of writing memories minus another, of the same run on the same token."""
    pick = picked(name)
    found = []
    for run in runs:
        one = as_one(run.losses[way])
        gap = pick(run.losses[way]) - pick(run.losses[other])
        found.append(replace(one, exact={**one.exact, "gap": gap}))
    return fold(found, picked("gap"))


def as_one(losses: Losses) -> Losses:
    """Windows that hold all components are of one process, that was trained on."""
    if not losses.more.get("hazard"):
        return losses
    zeros, name = np.zeros_like(losses.component), ("switching",)
    return replace(losses, component=zeros, components=name, trained_on=name)


# Words


def told(found: Estimate, at: int = 0, digits: int = 4) -> str:
    """``value [low, high]``."""
    return span(found.value[at], found.low[at], found.high[at], digits)


def span(value: float, low: float, high: float, digits: int = 4) -> str:
    """``value [low, high]``; rounded to zero without a sign."""
    texts = [f"{one:.{digits}f}" for one in (value, low, high)]
    zero = f"{0:.{digits}f}"
    texts = [zero if text == f"-{zero}" else text for text in texts]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"


def sign_of(found: Estimate, at: int = 0) -> str:
    """``above``, ``below`` or ``undecided``, of zero."""
    if found.low[at] > 0:
        return "above"
    return "below" if found.high[at] < 0 else "undecided"


def missing_lines(sweep: Sweep) -> list[str]:
    """What is not there, by experiment."""
    if not sweep.missing:
        return ["No run is missing.", ""]
    found: dict[tuple[str, str], int] = {}
    for name, state in sweep.missing:
        key = (name.split("/")[0], state)
        found[key] = found.get(key, 0) + 1
    named = ", ".join(f"{count} of `{name}` ({state})" for (name, state), count in found.items())
    return [f"**Missing runs ({len(sweep.missing)}):** {named}.", ""]


def seeds_of(found: Estimate, runs: Sequence[Run]) -> str:
    """How many runs; and that their seeds are too few for an interval of K."""
    few = "" if found.scope != "documents" else " (too few: documents alone)"
    return f"{len(runs)}{few}"


def runs_line(sweep: Sweep) -> str:
    """How many runs, seeds and CPU seconds."""
    cpu = sum(run.cpu for run in sweep.runs if not math.isnan(run.cpu))
    commits = sorted({run.commit for run in sweep.runs})
    return (
        f"{len(sweep.runs)} runs (commits {', '.join(commits)}), {cpu / 60:.1f} CPU minutes with "
        "start and evaluation"
    )
