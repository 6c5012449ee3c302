"""The dense models beside the sparse ones are as large, or as costly, as they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import nl.assembly  # noqa: F401 - registers the parts
from nl.config import ConfigError
from nl.config.hydra import compose, run_config
from nl.models.baselines import dense_like


def model_of(name: str, *overrides: str) -> Any:
    return run_config(compose("pilot_smoke", [f"experiment=tgsmn/{name}", *overrides])).model


def size(config: Any) -> tuple[int, int]:
    with torch.device("meta"):
        model = config.build()
    return sum(p.numel() for p in model.parameters()), model.flops_per_token()


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_configurations_are_what_is_solved(k: int) -> None:
    sparse = model_of(f"sparse_k{k}")
    assert sparse.experts.k == k
    parameters, flops = model_of("dense_parameters"), model_of(f"dense_flops_k{k}")
    assert dense_like(sparse, "parameters") == parameters
    assert dense_like(sparse, "flops") == flops
    whole, active = size(sparse)
    assert size(parameters)[0] == pytest.approx(whole, rel=0.001)
    assert size(flops)[1] == pytest.approx(active, rel=0.001)
    assert size(parameters)[1] > 3 * active
    assert size(flops)[0] < 0.4 * whole


def test_active_flops_are_counted_by_hand() -> None:
    config = model_of("sparse_k2", "model.layers=1", "model.dim=16", "model.experts.shared=1")
    expert, routers = 2 * 16 * 16, (256 + 8) * 16
    matrices = 4 * 16 * 16 + 3 * expert + routers + 16 * 4096  # attention, 2 + 1 experts, head
    assert size(config)[1] == 2 * matrices


def test_what_has_no_dense_twin_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to be equal to"):
        dense_like(model_of("dense_parameters"), "flops")
    with pytest.raises(ConfigError, match="levels are no feed-forward layers"):
        dense_like(model_of("sparse_k2", "model.block=hope_attention"), "flops")
