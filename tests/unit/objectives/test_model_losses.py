"""Losses of a model's own: added once per token in training, refused where nothing adds them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import nl.models.language  # noqa: F401 - registers the model
from nl.config import ConfigError, structure
from nl.config.groups import ModelConfig
from nl.core.batch import IGNORE, Batch
from nl.objectives.classify import ClassifyConfig
from nl.objectives.next_token import NextTokenConfig, check_losses


def sparse(**losses: float) -> Any:
    experts = {"form": "low_rank", "count": 6, "rank": 4, **losses}
    data = {"kind": "language", "vocab_size": 17, "dim": 8, "layers": 1, "block": "transformer"}
    return structure(ModelConfig, data | {"attention": {"heads": 2}, "experts": experts})


@pytest.mark.parametrize("name", ["switch_loss", "z_loss"])
def test_an_objective_that_does_not_add_them_is_refused(name: str) -> None:
    check_losses(sparse(), ClassifyConfig())
    check_losses(sparse(**{name: 0.1}), NextTokenConfig())
    with pytest.raises(ConfigError, match=r"which objective=classify does not add"):
        check_losses(sparse(**{name: 0.1}), ClassifyConfig())


def test_they_are_added_per_token_read_and_only_in_training() -> None:
    torch.manual_seed(0)
    model = sparse(switch_loss=0.5, z_loss=0.01).build()
    tokens = torch.randint(0, 17, (2, 13))
    targets = tokens[:, 1:].clone()
    targets[0, :5] = IGNORE
    batch = Batch(tokens[:, :-1], targets, int((targets != IGNORE).sum()))
    objective = NextTokenConfig().build(model)
    step = objective(batch)
    nll, out = model.nll(batch.inputs, batch.targets)
    own = out.aux["loss/experts"].detach()
    assert own > 0
    torch.testing.assert_close(step.loss.detach(), nll.detach().sum() + 24 * own)
    torch.testing.assert_close(step.metrics["nats_sum"], nll.detach().sum())
    step.loss.backward()
    assert model.blocks[0].mlp.router.weight.grad.abs().amax(-1).min() > 0
    with torch.no_grad():
        quiet = objective.eval()(batch)
    torch.testing.assert_close(quiet.loss, nll.detach().sum())
    assert "nats_sum" not in quiet.metrics
