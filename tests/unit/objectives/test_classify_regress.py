"""Summed losses against loops; unscored rows count for nothing; the two small systems learn."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from nl.core.batch import IGNORE, Batch
from nl.core.output import Output
from nl.data.groups import GroupCompositionConfig
from nl.data.ladder import LadderConfig
from nl.data.stream import RowStream
from nl.models.ladder import LadderModelConfig
from nl.models.quadratic_rnn import QuadraticRNNConfig
from nl.objectives.classify import ClassifyConfig
from nl.objectives.regress import RegressConfig


class Echo(nn.Module):
    """Predicts its inputs."""

    def forward(self, inputs: torch.Tensor, state: object = None, knobs: object = None) -> Output:
        return Output(inputs)


def naive_nats(logits: list[float], label: int) -> float:
    if len(logits) == 1:
        logits = [0.0, logits[0]]
    return math.log(sum(math.exp(v) for v in logits)) - logits[label]


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_classify_is_a_sum_over_scored_rows(classes: int) -> None:
    logits = torch.randn(40, classes)
    targets = torch.randint(0, max(2, classes), (40,))
    targets[::7] = IGNORE
    step = ClassifyConfig().build(Echo())(Batch(logits, targets, 34))
    rows = [(r, int(t)) for r, t in zip(logits.tolist(), targets, strict=True) if t != IGNORE]
    assert step.loss.item() == pytest.approx(sum(naive_nats(r, t) for r, t in rows), rel=1e-5)
    hits = sum((r[0] > 0) == t if classes == 1 else r.index(max(r)) == t for r, t in rows)
    assert step.metrics["accuracy_sum"].item() == hits
    halves = [Batch(logits[s], targets[s], 17) for s in (slice(0, 13), slice(13, 40))]
    parts = [ClassifyConfig().build(Echo())(h).loss.item() for h in halves]
    assert sum(parts) == pytest.approx(step.loss.item(), rel=1e-5)
    assert step.state is None


@pytest.mark.parametrize(("classes", "bad"), [(1, 2), (2, 2), (3, 3), (3, -1)])
def test_labels_without_a_class_are_refused(classes: int, bad: int) -> None:
    batch = Batch(torch.zeros(2, classes), torch.tensor([0, bad]), 2)
    with pytest.raises(ValueError, match=r"a label outside 0 "):
        ClassifyConfig().build(Echo())(batch)


def test_nothing_scored_is_zero_with_a_gradient() -> None:
    for objective, inputs, targets in (
        (ClassifyConfig().build(Echo()), torch.randn(3, 1), torch.full((3,), IGNORE)),
        (ClassifyConfig().build(Echo()), torch.randn(3, 4), torch.full((3,), IGNORE)),
        (RegressConfig().build(Echo()), torch.randn(3, 2), torch.full((3, 2), math.nan)),
    ):
        inputs.requires_grad_()
        loss = objective(Batch(inputs, targets, 0)).loss
        loss.backward()
        assert loss.item() == 0
        assert inputs.grad is not None
        assert inputs.grad.abs().sum() == 0


def test_regress_is_a_sum_over_scored_coordinates() -> None:
    inputs, targets = torch.randn(6, 2, 3), torch.randn(6, 2, 3)
    targets[4:] = math.nan
    inputs.requires_grad_()
    step = RegressConfig().build(Echo())(Batch(inputs, targets, 24))
    wanted = sum(
        (inputs[i, j, k].item() - targets[i, j, k].item()) ** 2
        for i, j, k in itertools.product(range(4), range(2), range(3))
    )
    assert step.loss.item() == pytest.approx(wanted, rel=1e-5)
    assert step.metrics["zero_loss_sum"].item() == pytest.approx(
        targets[:4].square().sum().item(), rel=1e-6
    )
    step.loss.backward()
    assert inputs.grad is not None
    assert torch.allclose(inputs.grad[:4], 2 * (inputs - targets)[:4])
    assert inputs.grad[4:].abs().sum() == 0


def test_regress_refuses_another_shape() -> None:
    with pytest.raises(ValueError, match=r"prediction .* check model.readout and stream.targets"):
        RegressConfig().build(Echo())(Batch(torch.zeros(2, 3), torch.zeros(2, 1, 3), 6))


def train(objective: nn.Module, stream: RowStream, steps: int, lr: float) -> None:
    optimizer = torch.optim.Adam(objective.parameters(), lr=lr)
    for batch in itertools.islice(stream, steps):
        optimizer.zero_grad()
        (objective(batch).loss / batch.weight).backward()
        optimizer.step()


def validate(objective: nn.Module, stream: RowStream, metric: str) -> tuple[float, float]:
    with torch.no_grad():
        rows = [(objective(batch), batch.weight) for batch in stream]
    weight = sum(w for _, w in rows)
    loss = sum(step.loss.item() for step, _ in rows) / weight
    return loss, sum(step.metrics[metric].item() for step, _ in rows) / weight


def test_logistic_regression_learns_sign_of_winner() -> None:
    cfg = LadderConfig(train_size=1000, val_size=500)
    objective = ClassifyConfig().build(LadderModelConfig(network="logreg").build())
    train(objective, cfg.build("train", seed=0, rank=0, world=1), 150, 0.05)
    loss, accuracy = validate(objective, cfg.build("val", seed=0, rank=0, world=1), "accuracy_sum")
    assert accuracy > 0.8
    assert loss < 0.4 < math.log(2)


def test_quadratic_rnn_learns_c5_and_length_three() -> None:
    for length, bound in ((2, 1e-6), (3, 1e-3)):
        cfg = GroupCompositionConfig(length=length, batch_size=5**length)
        objective = RegressConfig().build(QuadraticRNNConfig().build())
        val = cfg.build("val", seed=0, rank=0, world=1)
        start, zero = validate(objective, val, "zero_loss_sum")
        train(objective, cfg.build("train", seed=0, rank=0, world=1), 250, 0.01)
        assert zero == pytest.approx(0.16, rel=1e-5)
        assert start == pytest.approx(zero, rel=0.01)
        assert validate(objective, val, "zero_loss_sum")[0] < bound
