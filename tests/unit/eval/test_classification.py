"""Curves and counts against scikit-learn and by hand; the files a run keeps."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nl.config import ConfigError
from nl.core.output import Output
from nl.eval.classification import (
    ClassificationConfig,
    auroc,
    by_kind,
    confusion,
    precision_recall,
    roc,
    thinned,
)
from nl.eval.context import EvalContext, NoText, check_reads

SHARES = np.asarray([0.9, 0.8, 0.8, 0.4, 0.3, 0.1])
LABELS = np.asarray([1, 1, 0, 1, 0, 0])


def test_counts_and_curves_by_hand() -> None:
    assert confusion(SHARES, LABELS) == [[2, 1], [1, 2]]
    assert roc(SHARES, LABELS).tolist() == pytest.approx(
        np.asarray([[0, 0], [0, 1 / 3], [1 / 3, 2 / 3], [1 / 3, 1], [2 / 3, 1], [1, 1]])
    )
    # pairs (right, wrong): 9; ordered well 7, equal 1
    assert auroc(SHARES, LABELS) == pytest.approx((7 + 0.5) / 9)
    points = precision_recall(SHARES, LABELS)
    assert points[1].tolist() == pytest.approx([2 / 3, 2 / 3])
    assert auroc(SHARES, np.ones(6, dtype=int)) is None


def test_against_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 500)
    shares = np.round(np.clip(0.3 * labels + rng.random(500) * 0.7, 0, 1), 2)
    assert auroc(shares, labels) == pytest.approx(metrics.roc_auc_score(labels, shares))
    assert confusion(shares, labels) == metrics.confusion_matrix(labels, shares > 0.5).tolist()
    precision, recall, _ = metrics.precision_recall_curve(labels, shares)
    points = precision_recall(shares, labels)
    assert points[:, 0] == pytest.approx(recall[:-1][::-1])
    assert points[:, 1] == pytest.approx(precision[:-1][::-1])


def test_long_curves_are_thinned_and_kinds_counted() -> None:
    many = np.stack([np.linspace(0, 1, 5000)] * 2, axis=1)
    kept = thinned(many)
    assert len(kept) == 200
    assert (kept[0], kept[-1]) == ([0, 0], [1, 1])
    kinds = np.asarray([1, 1, 2, 1, 2, 2])
    assert by_kind(SHARES, LABELS, kinds) == {
        "1": {"n": 3, "accuracy": pytest.approx(2 / 3)},
        "2": {"n": 3, "accuracy": pytest.approx(2 / 3)},
    }


class Known(torch.nn.Module):
    """Says the logits of the shares above, for inputs that are indices."""

    def forward(self, inputs: torch.Tensor, state: object = None, knobs: object = None) -> Output:
        shares = torch.from_numpy(SHARES)[inputs[:, 0].long()]
        return Output(torch.logit(shares).unsqueeze(1))


def context(tmp_path: Path, examples: object) -> EvalContext:
    return EvalContext(tokenizer=NoText(), examples=examples, output=tmp_path)  # type: ignore[arg-type]


def test_rows_and_files(tmp_path: Path) -> None:
    found = SimpleNamespace(
        inputs=np.arange(6.0)[:, None], labels=LABELS, kinds=np.asarray([1, 1, 2, 1, 2, 2])
    )
    evaluator = ClassificationConfig(splits=("test",), errors=1).build()
    rows = evaluator(Known(), context(tmp_path, lambda split: found))
    by_name = {row.metric: row for row in rows}
    assert by_name["accuracy"].value == pytest.approx(4 / 6)
    assert by_name["accuracy"].chance == 0.5
    told = np.where(LABELS == 1, SHARES, 1 - SHARES)
    assert by_name["loss"].value == pytest.approx(float(-np.log(told).mean()))
    page = json.loads((tmp_path / "test.json").read_text())
    assert page["wrong"] == 2
    assert [line["index"] for line in page["errors"]] == [2]
    assert [line["index"] for line in page["right"]] in ([0], [5])
    assert page["errors"][0] == {
        "index": 2,
        "input": [2.0],
        "label": 0,
        "probability": pytest.approx(0.8),
        "kind": 2,
        "times": 1,
    }
    assert by_name["loss"].chance == pytest.approx(np.log(2))
    assert not (tmp_path / "overlap.json").exists(), "train was not evaluated"
    assert not (tmp_path / "attention.json").exists(), "nothing attends"


class Attending(Known):
    """Two layers that attend, and a table of tokens."""

    def forward(self, inputs: torch.Tensor, state: object = None, knobs: object = None) -> Output:
        self.seen = inputs
        return super().forward(inputs)

    def attention(self) -> list[torch.Tensor]:
        return [n + self.seen[:, :, None] for n in (0.0, 0.5)]

    def vocabulary_attention(self) -> torch.Tensor:
        return torch.full((3, 3), 1 / 3)


def test_overlap_attention_and_equal_examples(tmp_path: Path) -> None:
    index = np.asarray([2, 2, 2, 0, 5])

    def examples(split: str) -> SimpleNamespace:
        rows = index if split == "test" else index[3:]
        return SimpleNamespace(
            inputs=rows[:, None].astype(np.float32),
            raw=rows[:, None],
            labels=LABELS[rows],
            kinds=np.zeros(len(rows), dtype=int),
            tokens=("x", "y", "z"),
            kind_names=("plain",),
        )

    ClassificationConfig().build()(Attending(), context(tmp_path, examples))
    page = json.loads((tmp_path / "test.json").read_text())
    assert (page["wrong"], page["wrong_different"]) == (3, 1)
    assert [(line["input"], line["times"]) for line in page["errors"]] == [([2], 3)]
    assert page["kind_names"] == ["plain"]
    shared = json.loads((tmp_path / "overlap.json").read_text())["test"]
    assert shared == {
        **{"seen": 2, "total": 5, "unique_train": 2, "unique_test": 3},
        "lookup": 1.0,
    }
    found = json.loads((tmp_path / "attention.json").read_text())
    assert found["vocabulary"] == [[0.3333] * 3] * 3
    first = next(one for one in found["examples"] if one["split"] == "test")
    assert first["index"] == 0, "errors come first"
    assert first["layers"] == [[[2.0]], [[2.5]]], "(layers, ...) of this example"


def test_what_it_cannot_read_is_refused(tmp_path: Path) -> None:
    evaluator = ClassificationConfig().build()
    with pytest.raises(ConfigError, match="this run's stream has none"):
        evaluator(Known(), context(tmp_path, None))
    with pytest.raises(ConfigError, match="has no text"):
        NoText().encode("a")
    with pytest.raises(ConfigError, match="has no text"):
        NoText().decode([1])
    stream = SimpleNamespace(kind="shards", path="x")
    with pytest.raises(ConfigError, match=r"evals\.c: reads labelled examples, stream=shards"):
        check_reads({"c": ClassificationConfig()}, stream)
