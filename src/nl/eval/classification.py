"""Two classes: accuracy, loss, ROC, precision and recall, confusion, and the errors. Floor 6."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from nl.config import ConfigError, register, require
from nl.config.groups import EvaluatorConfig
from nl.core.overlap import overlap
from nl.core.protocols import EvalRow
from nl.eval.context import EvalContext, evaluating
from nl.eval.rows import make_row, save_json

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
CURVE_POINTS = 200
"""Points kept of a curve; more are thinned evenly."""
ATTENDED = 4
"""Examples per split whose attention is kept, of models that attend."""


@register("evaluator", "classification")
@dataclass(frozen=True, kw_only=True)
class ClassificationConfig(EvaluatorConfig):
    """How well the two classes of the stream's examples are told apart."""

    reads: ClassVar[str] = "examples"
    """Not text."""

    splits: tuple[str, ...] = ("train", "test")
    """Which examples."""
    errors: int = 40
    """Wrong examples that are kept, the most confident first; as many right ones beside them. Equal
    examples are kept once."""

    def __post_init__(self) -> None:
        require(bool(self.splits), "splits: empty; name at least one.")
        require(self.errors >= 0, f"errors: {self.errors}; must be >= 0.")

    def build(self) -> Classification:
        """The evaluator."""
        return Classification(self)


class Classification:
    """See the config."""

    def __init__(self, config: ClassificationConfig) -> None:
        self.config = config

    def __call__(self, model: nn.Module, context: EvalContext) -> list[EvalRow]:
        """Rows per split; ``<split>.json`` holds curves, confusion, slices and errors.

        ``overlap.json`` says what of a split was seen in training, where that is evaluated too;
        ``attention.json`` has the maps of a few examples.

        Raises:
            ConfigError: the run's stream makes no examples, or the model no single logit.
        """
        if context.examples is None:
            raise ConfigError("evals: classification reads examples; this run's stream has none.")
        rows = []
        drawn = {split: context.examples(split) for split in self.config.splits}
        maps: list[dict[str, Any]] = []
        for split, found in drawn.items():
            shares = probabilities(model, found.inputs, context)
            labels = np.asarray(found.labels, dtype=np.int64)
            rows += self._rows(split, shares, labels)
            page = {
                "split": split,
                "confusion": confusion(shares, labels),
                "roc": thinned(roc(shares, labels)),
                "pr": thinned(precision_recall(shares, labels)),
                "kinds": by_kind(shares, labels, getattr(found, "kinds", None)),
                **self._examples(found, shares, labels),
            }
            save_json(context.output / f"{split}.json", page)
            chosen = [*page["errors"][: ATTENDED // 2], *page["right"]][:ATTENDED]
            maps += attention_of(model, found, split, chosen, context)
        shared = overlaps(drawn)
        if shared:
            save_json(context.output / "overlap.json", shared)
        if maps:
            words = getattr(next(iter(drawn.values())), "tokens", None)
            table = getattr(model, "vocabulary_attention", lambda: None)() if words else None
            told = None if table is None else np.round(table.double().cpu().numpy(), 4).tolist()
            page = {"tokens": words, "vocabulary": told, "examples": maps}
            save_json(context.output / "attention.json", page)
        return rows

    def _rows(self, split: str, shares: Floats, labels: Ints) -> list[EvalRow]:
        n, hits = len(labels), (shares > 0.5) == (labels == 1)
        accuracy = float(hits.mean())
        told = np.clip(np.where(labels == 1, shares, 1 - shares), 1e-12, 1.0)
        nats = -np.log(told)
        majority = max(float(labels.mean()), 1 - float(labels.mean()))
        spread = math.sqrt(accuracy * (1 - accuracy) / n)
        return [
            make_row("", split, "accuracy", accuracy, n, stderr=spread, chance=majority),
            make_row(
                *("", split, "loss", float(nats.mean()), n),
                stderr=float(nats.std() / n**0.5),
                chance=entropy(majority),
            ),
            make_row("", split, "auroc", auroc(shares, labels), n, chance=0.5),
        ]

    def _examples(self, found: Any, shares: Floats, labels: Ints) -> dict[str, Any]:
        """The most confident errors and right answers, as raw values; equal ones once."""
        raw, kinds = getattr(found, "raw", found.inputs), getattr(found, "kinds", None)
        names = getattr(found, "kind_names", None)
        wrong = (shares > 0.5) != (labels == 1)
        sure = np.argsort(-np.abs(shares - 0.5), kind="stable")
        counts: dict[bytes, int] = {}
        for row in raw:
            counts[row.tobytes()] = counts.get(row.tobytes(), 0) + 1

        def lines(keep: npt.NDArray[np.bool_]) -> list[dict[str, Any]]:
            first: dict[bytes, int] = {}
            for i in sure[keep[sure]].tolist():
                first.setdefault(raw[i].tobytes(), i)
            return [
                {
                    "index": i,
                    "input": np.round(raw[i], 4).tolist(),
                    "label": int(labels[i]),
                    "probability": float(shares[i]),
                    "kind": None if kinds is None else int(kinds[i]),
                    "times": counts[key],
                }
                for key, i in list(first.items())[: self.config.errors]
            ]

        return {
            "tokens": getattr(found, "tokens", None),
            "kind_names": names,
            "wrong": int(wrong.sum()),
            "wrong_different": len({row.tobytes() for row in raw[wrong]}),
            "errors": lines(wrong),
            "right": lines(~wrong),
        }


def entropy(share: float) -> float:
    """Nats of a guess that knows how frequent the classes are."""
    return -sum(p * math.log(p) for p in (share, 1 - share) if p > 0)


def overlaps(drawn: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Per split what it shares with ``train``; empty where that is not evaluated."""
    if "train" not in drawn:
        return {}
    train = drawn["train"]
    rows = getattr(train, "raw", train.inputs)
    found = {}
    for split, other in drawn.items():
        if split != "train":
            raw = getattr(other, "raw", other.inputs)
            labels = np.asarray(train.labels), np.asarray(other.labels)
            found[split] = overlap(rows, labels[0], raw, labels[1])._asdict()
    return found


def attention_of(
    model: nn.Module,
    found: Any,
    split: str,
    chosen: list[dict[str, Any]],
    context: EvalContext,
) -> list[dict[str, Any]]:
    """Attention (layers, heads, queries, steps) of some examples; empty where nothing attends."""
    attention = getattr(model, "attention", None)
    if attention is None or not chosen:
        return []
    rows = torch.as_tensor(found.inputs[[one["index"] for one in chosen]])
    with evaluating(model):
        model(rows.to(context.device))
        layers = [np.round(one.double().cpu().numpy(), 4) for one in attention()]
    if not layers:
        return []
    return [
        {"split": split, **one, "layers": [layer[i].tolist() for layer in layers]}
        for i, one in enumerate(chosen)
    ]


def probabilities(model: nn.Module, inputs: Any, context: EvalContext) -> Floats:
    """Probability of class 1 for every example (n,)."""
    found = []
    rows = torch.as_tensor(inputs)
    with evaluating(model):
        for start in range(0, len(rows), 1024):
            pred = model(rows[start : start + 1024].to(context.device)).pred
            if pred.ndim != 2 or pred.shape[1] != 1:
                raise ConfigError(
                    f"evals: classification needs one logit per example; this model gives "
                    f"{tuple(pred.shape[1:])}."
                )
            found.append(torch.sigmoid(pred[:, 0].double()).cpu())
    return np.asarray(torch.cat(found).numpy())


def confusion(shares: Floats, labels: Ints) -> list[list[int]]:
    """Counts, row: the true class, column: the predicted one."""
    guess = (shares > 0.5).astype(np.int64)
    return [[int(((labels == a) & (guess == b)).sum()) for b in (0, 1)] for a in (0, 1)]


def _steps(shares: Floats, labels: Ints) -> tuple[Floats, Floats, Floats]:
    """Thresholds from high to low with the true and false positives above each."""
    order = np.argsort(-shares, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(shares[order]) != 0, True))
    hits = np.cumsum(labels[order])[ends].astype(np.float64)
    return shares[order][ends], hits, ends + 1.0 - hits


def roc(shares: Floats, labels: Ints) -> Floats:
    """Points (false positive rate, true positive rate), from (0, 0) to (1, 1)."""
    _, hits, misses = _steps(shares, labels)
    positive, negative = max(1, int(labels.sum())), max(1, int((1 - labels).sum()))
    return np.stack([np.append(0, misses / negative), np.append(0, hits / positive)], axis=1)


def auroc(shares: Floats, labels: Ints) -> float | None:
    """Area under that curve; None where one class is missing."""
    if labels.min() == labels.max():
        return None
    points = roc(shares, labels)
    return float(np.trapezoid(points[:, 1], points[:, 0]))


def precision_recall(shares: Floats, labels: Ints) -> Floats:
    """Points (recall, precision), from the highest threshold down."""
    _, hits, misses = _steps(shares, labels)
    return np.stack([hits / max(1, int(labels.sum())), hits / (hits + misses)], axis=1)


def thinned(points: Floats) -> list[list[float]]:
    """At most ``CURVE_POINTS`` points, the first and the last among them."""
    if len(points) > CURVE_POINTS:
        points = points[np.linspace(0, len(points) - 1, CURVE_POINTS).round().astype(int)]
    return [[float(x), float(y)] for x, y in points]


def by_kind(shares: Floats, labels: Ints, kinds: Ints | None) -> dict[str, dict[str, float]]:
    """Accuracy and count per kind of example, by its number."""
    if kinds is None:
        return {}
    hits = (shares > 0.5) == (labels == 1)
    return {
        str(kind): {"n": int((kinds == kind).sum()), "accuracy": float(hits[kinds == kind].mean())}
        for kind in sorted(set(kinds.tolist()))
    }
