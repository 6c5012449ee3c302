"""The study of task streams compares equals: widths solved again, the same tasks in both files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import nl.assembly  # noqa: F401 - registers every part
from nl.config.hydra import compose, run_config
from nl.models.baselines import dense_like
from nl.sweep.make import JobMaker
from nl.sweep.spec import expand, read_spec

ROOT = Path(__file__).resolve().parents[3] / "configs/sweep"


@pytest.fixture(scope="module")
def told() -> dict[str, tuple[str, ...]]:
    """Overrides of every experiment of both files."""
    files = [expand(read_spec(ROOT / f"tgsmn_{name}.yaml")) for name in ("study", "alone")]
    return {one.name: JobMaker.overrides(one) for file in files for one in file}


def run_of(told: dict[str, tuple[str, ...]], name: str, *more: str) -> Any:
    return run_config(compose("pilot_smoke", [*told[name], *more]))


def parameters(config: Any) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in config.build().parameters())


def test_dense_rows_are_as_wide_as_makes_them_equal(told: dict[str, tuple[str, ...]]) -> None:
    sparse = run_of(told, "forward_sparse").model
    dense, flops = (run_of(told, f"forward_{name}").model for name in ("dense", "dense_flops"))
    assert dense.mlp_hidden == dense_like(sparse, "parameters").mlp_hidden
    assert flops.mlp_hidden == dense_like(sparse, "flops").mlp_hidden
    assert parameters(dense) == parameters(sparse) == 565_568


@pytest.mark.parametrize("block", ["hope_attention", "hope_selfmod"])
def test_hope_rows_have_as_many_parameters(block: str, told: dict[str, tuple[str, ...]]) -> None:
    model = run_of(told, f"forward_{block}").model
    width = model.cms.hidden
    miss = {
        n: abs(parameters(replace(model, cms=replace(model.cms, hidden=n))) - 565_568)
        for n in (width - 1, width, width + 1)
    }
    assert min(miss, key=lambda n: miss[n]) == width
    assert miss[width] < 1000


def test_a_task_alone_is_the_task_of_the_study(told: dict[str, tuple[str, ...]]) -> None:
    whole = run_of(told, "forward_dense", "seed=2").stream
    alone = run_of(told, "only7", "seed=2").stream
    assert (whole.environment, alone.environment, alone.only) == (2, 2, 7)
    assert replace(alone, only=None) == whole


def test_backward_is_the_same_domains_in_reverse(told: dict[str, tuple[str, ...]]) -> None:
    """Of the custom order; which permutation a task has is a name only."""
    forward, backward = (
        run_of(told, f"{order}_dense_replay").stream for order in ("forward", "backward")
    )
    names = [forward.domains[i % 3] for i in range(forward.tasks)]
    assert list(backward.custom) == names[::-1]
    assert (backward.tasks, backward.repeat) == (forward.tasks, forward.repeat)
