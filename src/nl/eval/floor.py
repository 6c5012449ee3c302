"""Floor: a model's nats beside those of the exact predictor, by place and component. Floor 6.

On held-out windows of every source of a stream whose exact predictor is known (stream=ergodic):
cross-entropy (``xe``), that of the exact predictor (``bayes_xe``), their paired difference
(``excess``), and the divergence KL(P || q) of whole distributions (``kl``; every term is >= 0, so
that its error is much smaller). A model whose excess is below 0 by more than four standard errors
has seen what it predicts, or is measured wrongly: the evaluation then fails, after it was saved.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from safetensors.numpy import save
from torch import nn

from nl.config import ConfigError, register, require
from nl.config.groups import EvaluatorConfig
from nl.core.ergodic import entropies, kl, longest
from nl.core.protocols import EvalRow
from nl.eval.causality import require_causal
from nl.eval.context import EvalContext
from nl.eval.floor_curves import Stratum, adapted, by_posterior, curve, mean_of, since_change
from nl.eval.floor_read import Told, Truth, digest, read_windows, truth_of
from nl.eval.probe_read import MEMORIZE, Reading, Writes, check_writes, modes_of
from nl.eval.rows import make_row, save_json, save_text

SIGMAS = 4.0
"""Standard errors below the floor from which something is wrong."""
ROUNDING = 1e-6
"""Nats that single precision may be off by."""
CELLS = 200_000
"""Numbers in the largest array of the enumeration that is kept beside a run."""
TRIED = 8
"""Windows that the look for acausality reads."""


@register("evaluator", "floor")
@dataclass(frozen=True, kw_only=True)
class FloorConfig(EvaluatorConfig):
    """What a model of known sources loses beyond the best that can be known."""

    reads: ClassVar[str] = "floor"
    """Windows of known sources."""

    split: str = "test"
    """Which windows: test or val."""
    windows: int = 0
    """Windows of each source; 0: as many as the stream's split has."""
    writes: tuple[Writes, ...] = ("on", "frozen", "reset")
    """Ways of writing memories while a window is read."""
    reset_every: int = 8
    """Tokens after which memories are thrown away, in the way ``reset``."""
    adapted: float = 0.25
    """A model has adapted to the component of a window at the first place from which what it loses
    against one who knows the component is at most this share of the most that the exact predictor
    loses so at any place."""
    causality: bool = True
    """First change late tokens of a few windows, and refuse a model whose earlier logits move."""

    def __post_init__(self) -> None:
        require(self.windows >= 0, f"windows: {self.windows}; must be >= 0 (0: all).")
        check_writes(self.writes, self.reset_every)
        require(0 < self.adapted < 1, f"adapted: {self.adapted}; must be between 0 and 1.")

    def check_parts(self, stream: Any, model: Any) -> None:
        """Refuse a split that is not held out, and a model that reads no tokens."""
        require(self.split in ("test", "val"), f"split: {self.split!r}; use test or val.")
        reads = model is None or hasattr(model, "vocab_size")
        require(reads, f"split: {self.split}; model={getattr(model, 'kind', '')} reads no tokens.")

    def build(self) -> FloorEval:
        """The evaluator."""
        return FloorEval(self)


class Asked(NamedTuple):
    """Windows of all sources, what is true of them, and how they add up.

    Attributes:
        stream: their configuration.
        windows: as the stream gives them.
        truth: the exact predictors.
        strata: the components with their weights; one for all with a hazard.
        context: (P,) symbols seen before each prediction.
    """

    stream: Any
    windows: Any
    truth: Truth
    strata: tuple[Stratum, ...]
    context: Any


class FloorEval:
    """See the config."""

    def __init__(self, config: FloorConfig) -> None:
        self.config = config

    def __call__(self, model: nn.Module, context: EvalContext) -> list[EvalRow]:
        """Rows per way of writing and component; ``details`` and nll.safetensors hold the rest.

        Raises:
            ConfigError: the run's stream has no exact predictor, or the model looks ahead.
        """
        own = context.probe
        if own is None or not hasattr(own.stream, "exact"):
            raise ConfigError(
                "evals: floor measures against an exact predictor; choose stream=ergodic."
            )
        asked = self._asked(own.stream, context)
        if self.config.causality:
            step = max(1, len(asked.windows.inputs) // TRIED)
            some = torch.from_numpy(asked.windows.inputs[::step][:TRIED])
            require_causal(model, some.to(next(model.parameters()).device))
        details = context.record.details
        details |= self._facts(asked, own.seed)
        save_json(context.output / "sources.json", _matrices(asked.stream))
        rows: list[EvalRow] = []
        for mode in modes_of(model, self.config.writes):
            reading = Reading(mode, self.config.reset_every)
            told = read_windows(model, asked.windows.inputs, asked.truth, reading)
            page = details.setdefault(mode, {})
            rows += Measured(asked, told, mode, self.config).rows(page)
            _keep(context, mode, asked, told, details)
            if page["alarm"]["fired"]:
                context.record.failures.append(page["alarm"]["text"])
        return rows

    def _asked(self, stream: Any, context: EvalContext) -> Asked:
        count = context.capped(self.config.windows)
        own = int(getattr(stream, f"{self.config.split}_size"))
        windows = stream.windows(self.config.split, count=min(count, own) if count else own)
        truth = truth_of(stream, windows)
        weights = stream.exact.weights
        whole = np.flatnonzero(truth.trained)
        strata: tuple[Stratum, ...] = (Stratum("switching", 1.0, whole),)
        if not stream.hazard:
            first = truth.component[:, 0]
            codes = [windows.names.index(name) for name in stream.names]
            parts = zip(stream.names, weights, codes, strict=True)
            strata = tuple(Stratum(n, float(w), np.flatnonzero(first == c)) for n, w, c in parts)
        seen = np.arange(truth.targets.shape[1]) + (0 if stream.bos else 1)
        return Asked(stream, windows, truth, strata, seen)

    def _facts(self, asked: Asked, seed: int) -> dict[str, Any]:
        stream, windows, length = asked.stream, asked.windows, asked.windows.tokens.shape[1]
        most = min(length, longest(stream.exact, CELLS))
        return {
            "components": list(windows.names),
            "trained_on": list(stream.names),
            "weights": stream.exact.weights.tolist(),
            "order": stream.order,
            "hazard": stream.hazard,
            "windows_digest": digest(windows.names, windows.tokens, windows.component),
            "split": self.config.split,
            "seed": stream.environment,
            "training_seed": seed,
            "context": asked.context.tolist(),
            "windows": len(windows.inputs),
            "exact": {
                "method": "enumeration of all prefixes; for longer ones see bayes_entropy, an "
                "average over windows (Rao-Blackwell) with its standard error",
                "entropy": entropies(stream.exact, most).tolist(),
            },
        }


@dataclass(frozen=True)
class Measured:
    """One model, read in one way."""

    asked: Asked
    told: Told
    mode: Writes
    config: FloorConfig

    @property
    def values(self) -> dict[str, Any]:
        """By metric (N, P)."""
        truth, told = self.asked.truth, self.told
        return {
            "xe": told.nll,
            "bayes_xe": truth.nll,
            "bayes_entropy": truth.entropy,
            "excess": told.nll - truth.nll,
            "kl": told.kl,
            "own_xe": truth.own_nll,
            "own_kl": told.own_kl,
        }

    def rows(self, page: dict[str, Any]) -> list[EvalRow]:
        """Rows; ``page`` takes curves by place, by posterior, adaptation and the alarm."""
        truth, context = self.asked.truth, self.asked.context.tolist()
        whole = {name: v for name, v in self.values.items() if not np.isnan(v[truth.trained]).any()}
        page["all"] = {name: curve(v, self.asked.strata) for name, v in whole.items()}
        rows = self._rows("", page["all"], int(truth.trained.sum()))
        page["components"] = {}
        for code, name in enumerate(self.asked.windows.names):
            rows += self._component(code, name, page)
        page["posterior"] = by_posterior(truth, self.told)
        page["memory_writes"] = self.mode
        if self.asked.stream.hazard:
            page["since_change"] = since_change(truth, self.told)
        page["adapted"] = {}
        for stratum in self.asked.strata if len(self.asked.strata) > 1 else ():
            rows += self._adapted(stratum, context, page["adapted"])
        page["alarm"] = self._alarm(page["all"]["excess"])
        z = page["alarm"]["z"]
        return [*rows, self._row("", "excess_z", z, int(truth.trained.sum()))]

    def _row(self, task: str, metric: str, value: float | None, n: int, **more: Any) -> EvalRow:
        name = self.config.split + (f"/{task}" if task else "")
        name += "" if self.mode == "on" else f"/{self.mode}"
        note = f"memory writes: {self.mode}"
        if "note" in more:
            note += f"; {more.pop('note')}"
        more |= {"memorize": MEMORIZE[self.mode], "note": note}
        return make_row("", name, metric, value, n, **more)

    def _rows(self, task: str, curves: dict[str, Any], n: int) -> list[EvalRow]:
        return [
            self._row(task, metric, found["mean"], n, stderr=found["stderr"])
            for metric, found in curves.items()
        ]

    def _component(self, code: int, name: str, page: dict[str, Any]) -> list[EvalRow]:
        """One component: whole windows of it, or with a hazard the symbols that it emitted."""
        here = self.asked.truth.component == code
        rows = np.flatnonzero(here.any(1))
        found: dict[str, Any] = {"n": len(rows), "trained": name in self.asked.stream.names}
        for metric, values in self.values.items():
            if np.isnan(values[here]).any():
                continue
            if self.asked.stream.hazard:
                found[metric] = mean_of(values[rows], here[rows])
            else:
                found[metric] = curve(values, (Stratum(name, 1.0, rows),))
        page["components"][name] = found
        curves = {metric: one for metric, one in found.items() if isinstance(one, dict)}
        return self._rows(name, curves, len(rows))

    def _adapted(self, stratum: Stratum, context: list[int], page: dict[str, Any]) -> list[EvalRow]:
        """After how many symbols the component of a window is as good as known."""
        truth, mine = self.asked.truth, stratum.rows
        with np.errstate(divide="ignore"):
            best = kl(truth.own[mine], np.log(truth.predicted[mine]))
        found = adapted(self.told.own_kl[mine], best, self.config.adapted, context)
        page[stratum.name] = found
        if found["threshold"] is None:
            return []
        late = f"not within {context[-1]} symbols"
        return [
            self._row(
                stratum.name,
                metric,
                found[key],
                len(mine),
                note="" if found[key] is not None else late,
            )
            for metric, key in (("adapted_after", "model"), ("bayes_adapted_after", "bayes"))
        ]

    def _alarm(self, excess: dict[str, Any]) -> dict[str, Any]:
        """Whether the model is better than can be."""
        mean, error = excess["mean"], excess["stderr"] or 0.0
        z = mean / error if error and abs(mean) > ROUNDING else 0.0
        fired = z < -SIGMAS
        text = (
            f"better than Bayes: memory writes {self.mode}, cross-entropy {-mean:.4g} +- "
            f"{error:.2g} nats below the exact predictor's ({-z:.1f} standard errors; more than "
            f"{SIGMAS:g} cannot be): the model sees what it predicts, or held-out windows were "
            "trained on"
        )
        return {"fired": fired, "z": z, "sigmas": SIGMAS, "text": text if fired else ""}


def _keep(
    context: EvalContext, mode: Writes, asked: Asked, told: Told, details: dict[str, Any]
) -> None:
    """Losses per token, and what each window scored."""
    truth, windows = asked.truth, asked.windows
    whole = {
        "nll": told.nll,
        "bayes_nll": truth.nll,
        "bayes_kl": told.kl,
        "bayes_entropy": truth.entropy,
        "posterior": truth.posterior,
        "own_nll": truth.own_nll,
        "own_kl": told.own_kl,
    }
    tensors: dict[str, Any] = {
        name: np.asarray(part, dtype=np.float32) for name, part in whole.items()
    }
    tensors["component"] = np.ascontiguousarray(windows.component[:, 0])
    tensors["component_at"] = np.ascontiguousarray(truth.component)
    tensors["document"] = np.arange(len(windows.inputs))
    tensors["context"] = np.asarray(asked.context, dtype=np.int64)
    keys = ("components", "trained_on", "windows_digest", "split", "seed", "order", "hazard")
    facts = {key: json.dumps(details[key]) for key in keys} | {"memory_writes": json.dumps(mode)}
    name = "nll.safetensors" if mode == "on" else f"nll_{mode}.safetensors"
    save_text(context.output / name, save(tensors, facts))
    mark = details["windows_digest"][:12]
    for i, trained in enumerate(truth.trained):
        values: dict[str, Any] = {"xe": round(float(told.nll[i].mean()), 6)}
        if trained:
            values["excess"] = round(float((told.nll[i] - truth.nll[i]).mean()), 6)
            values["kl"] = round(float(told.kl[i].mean()), 6)
        task = details["split"]
        task += "" if asked.stream.hazard else f"/{windows.names[truth.component[i, 0]]}"
        task += "" if mode == "on" else f"/{mode}"
        context.record.add(task, MEMORIZE[mode], f"{mark}/{i}", values)


def _matrices(stream: Any) -> dict[str, Any]:
    """The sources as numbers, so that a report needs to draw nothing again."""
    names: Sequence[str] = stream.all_names
    return {name: stream.exact_one(name).sources[0].matrices.tolist() for name in names}
