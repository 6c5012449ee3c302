"""Losses per token on frozen windows of all components, trained on or not. Floor 6.

Every model of a study is scored on the same held-out windows, whatever it was trained on; the
losses themselves are kept (``nll.safetensors``), so that any two runs can be compared in pairs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save
from torch import nn

from nl.config import ConfigError, register, require
from nl.config.groups import EvaluatorConfig
from nl.core.protocols import EvalRow
from nl.eval.causality import require_causal
from nl.eval.context import EvalContext, evaluating
from nl.eval.memorize import rows_at_once
from nl.eval.rows import make_row, ratio_and_stderr, save_text

Mode = Literal["context", "off"]
Floats = npt.NDArray[np.float64]
ROWS = 64
"""Windows per forward pass at least; they are short."""
TRIED = 8
"""Windows of the check for causality."""
EARLY, LATE = (5, 15), (90, 100)
"""Tokens of context between which the gain from context is measured."""


@register("evaluator", "windows")
@dataclass(frozen=True, kw_only=True)
class WindowsConfig(EvaluatorConfig):
    """Cross-entropy per component and position, in and out of the components trained on."""

    reads: ClassVar[str] = "windows"
    """Frozen held-out windows of the components of the run's data."""

    split: Literal["val", "test"] = "val"
    """Which documents."""
    windows: int = 2048
    """Windows of a component at most, from as many documents as there are; 0: all."""
    seed: int = 0
    """Of the list of windows: part of the measurement, not of a run."""
    memorize: Mode = "context"
    """context: memories are written while a window is read. off: they stay as trained."""
    causality: bool = True
    """Refuse a model whose logits move when a later token is changed."""

    def __post_init__(self) -> None:
        for name in ("windows", "seed"):
            require(getattr(self, name) >= 0, f"{name}: {getattr(self, name)}; must be >= 0.")

    def check_parts(self, stream: Any, model: Any) -> None:
        """Refuse, before anything is trained, components without a held-out window."""
        if hasattr(stream, "check_held_out"):
            stream.check_held_out(self.split)

    def build(self) -> WindowLosses:
        """The evaluator."""
        return WindowLosses(self)


class WindowLosses:
    """See the config."""

    def __init__(self, config: WindowsConfig) -> None:
        self.config = config

    def __call__(self, model: nn.Module, context: EvalContext) -> list[EvalRow]:
        """Rows per component and of both kinds of components; ``details`` has every position.

        Raises:
            ConfigError: the run's stream has no components, or the model looks ahead.
        """
        own = context.probe
        if own is None or not hasattr(own.stream, "frozen"):
            raise ConfigError(
                "evals: windows reads the components of a run's own data; choose stream=components "
                "and leave --data out."
            )
        count = context.capped(self.config.windows)
        found = own.stream.frozen(self.config.split, count, self.config.seed)
        if self.config.causality:
            step = max(1, len(found.inputs) // TRIED)
            require_causal(model, found.inputs[::step][:TRIED].long().to(context.device))
        nll = self._read(model, found, context)
        page = context.record.details
        page |= {
            "components": list(found.components),
            "trained_on": list(found.facts["trained_on"]),
            "budget": dict(found.facts["budget"]),
            "windows_digest": found.digest,
            "split": self.config.split,
            "seed": self.config.seed,
            "training_seed": own.seed,
            **{key: found.facts[key] for key in ("labels", "label_seed") if key in found.facts},
            "context": found.context.tolist(),
            "per_component": {},
        }
        self._keep(context, nll, found, page)
        return list(self._rows(context, nll.astype(np.float64), found, page))

    def _read(self, model: Any, found: Any, context: EvalContext) -> npt.NDArray[np.float32]:
        """(windows, positions) -ln p of every target, each window with a fresh State."""
        write, parts = self.config.memorize == "context", []
        size = rows_at_once(model, max(ROWS, context.batch_size), write=write)
        with evaluating(model):
            for first in range(0, len(found.inputs), size):
                rows = slice(first, first + size)
                here = [t[rows].long().to(context.device) for t in (found.inputs, found.targets)]
                nats, _ = model.nll(*here, write=write, keep=False)
                parts.append(nats.float().cpu())
        whole: npt.NDArray[np.float32] = torch.cat(parts).numpy()
        return whole

    def _keep(
        self, context: EvalContext, nll: npt.NDArray[np.float32], found: Any, page: dict[str, Any]
    ) -> None:
        tensors = {
            "nll": np.ascontiguousarray(nll),
            "component": np.ascontiguousarray(found.component),
            "document": np.ascontiguousarray(found.document),
            "context": np.ascontiguousarray(found.context, dtype=np.int64),
        }
        if found.bytes is not None:
            tensors["bytes"] = np.ascontiguousarray(found.bytes)
        keys = ("components", "trained_on", "windows_digest", "split", "seed", "budget")
        labels = (key for key in ("labels", "label_seed") if key in page)
        facts = {key: json.dumps(page[key]) for key in (*keys, "training_seed", *labels)}
        facts |= {"memorize": json.dumps(self.config.memorize), "step": json.dumps(context.step)}
        save_text(context.output / "nll.safetensors", save(tensors, facts))

    def _rows(
        self, context: EvalContext, nll: Floats, found: Any, page: dict[str, Any]
    ) -> Iterator[EvalRow]:
        """Rows; errors are over documents, whose windows are not independent."""
        seen = found.context
        inside: dict[bool, list[tuple[float, float | None, int]]] = {True: [], False: []}
        for code, name in enumerate(found.components):
            mine = np.flatnonzero(found.component == code)
            owner = found.document[mine]
            losses = nll[mine]
            size = None if found.bytes is None else found.bytes[mine]
            trained = name in page["trained_on"]
            cells = _curve(losses, owner)
            page["per_component"][name] = cells | {"trained": trained}
            note = f"{cells['documents']} documents; " + ("trained on" if trained else "not seen")
            value = self._documents(context, name, losses, owner, size)
            mean, error = value["nats_per_token"]
            inside[trained].append((mean, error, mine.size))
            if math.isfinite(mean):
                value["perplexity"] = (math.exp(mean), None)
            early, late = (_between(seen, pair) for pair in (EARLY, LATE))
            if early.size and late.size and late.size == LATE[1] - LATE[0]:
                gains = losses[:, early].mean(1) - losses[:, late].mean(1)
                sums, counts = _by_document(gains[:, None], owner)
                value["context_gain"] = ratio_and_stderr(sums, counts)
            for metric, (number, spread) in value.items():
                yield self._row(name, metric, number, spread, mine.size, note)
        for trained, word in ((True, "in_domain"), (False, "out_of_domain")):
            if inside[trained]:
                means, errors, sizes = zip(*inside[trained], strict=True)
                spread = None
                if all(e is not None for e in errors):
                    spread = math.sqrt(sum(e * e for e in errors)) / len(means)
                note = f"mean of {len(means)} components, each of equal weight"
                mean = sum(means) / len(means)
                yield self._row(word, "nats_per_token", mean, spread, sum(sizes), note)

    def _row(
        self, task: str, metric: str, value: float, spread: float | None, n: int, note: str
    ) -> EvalRow:
        more: dict[str, Any] = {"memorize": self.config.memorize, "stderr": spread, "note": note}
        return make_row("", task, metric, value, n, **more)

    def _documents(
        self, context: EvalContext, name: str, losses: Floats, owner: Any, size: Any
    ) -> dict[str, tuple[float, float | None]]:
        """Ratios over documents; each document is a sample."""
        sums, counts = _by_document(losses, owner)
        value = {"nats_per_token": ratio_and_stderr(sums, counts)}
        bits = [nats / math.log(2) for nats in sums]
        bytes_: Sequence[float] = []
        if size is not None:
            bytes_, _ = _by_document(size.astype(np.float64), owner)
            value["bits_per_byte"] = ratio_and_stderr(bits, bytes_)
        mark = context.record.details["windows_digest"][:12]
        for place, document in enumerate(np.unique(owner).tolist()):
            values: dict[str, Any] = {"nats_per_token": [sums[place], counts[place]]}
            if bytes_:
                values["bits_per_byte"] = [bits[place], bytes_[place]]
            context.record.add(name, self.config.memorize, f"{mark}/{document}", values)
        return value


def _between(context: npt.NDArray[np.int64], pair: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Positions whose context has from ``pair[0]`` up to below ``pair[1]`` tokens."""
    return np.flatnonzero((context >= pair[0]) & (context < pair[1]))


def _by_document(values: Floats, owner: Any) -> tuple[list[float], list[float]]:
    """Sum and number of the values (windows, positions) of each document, by its number."""
    _, place = np.unique(owner, return_inverse=True)
    sums = np.bincount(place, values.sum(1))
    counts = np.bincount(place) * float(values.shape[1])
    return sums.tolist(), counts.tolist()


def _curve(losses: Floats, owner: Any) -> dict[str, Any]:
    """Mean and its error over documents, at every position."""
    means, errors = [], []
    for column in range(losses.shape[1]):
        mean, error = ratio_and_stderr(*_by_document(losses[:, column : column + 1], owner))
        means.append(mean)
        errors.append(error)
    documents = int(np.unique(owner).size)
    return {"windows": len(losses), "documents": documents, "nats": means, "stderr": errors}
