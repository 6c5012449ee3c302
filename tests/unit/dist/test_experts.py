"""Experts under every strategy: two gloo ranks train, balance and draw noise as one process."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import nl
from nl.assembly import build
from nl.dist.single import Single
from nl.run import read_records
from tests.unit.dist.test_deepspeed import zero
from tests.unit.dist.test_parity import check, parity
from tests.unit.dist.test_strategies import one_and_two_ranks

LOW = {"form": "low_rank", "count": 12, "rank": 4, "k": 1, "k_max": 2, "balance": 0.05}
"""More experts than a rank's tokens reach in a step: some have no gradient there but zeros."""
HIERARCHICAL = {**LOW, "router": "hierarchical", "groups": 3, "switch_loss": 0.05, "noise": 0.5}
KEYS = {"form": "swiglu", "count": 16, "width": 3, "router": "product_key", "z_loss": 0.01}


def cases(folder: Path, *stages: int) -> list[dict[str, Any]]:
    """Every strategy, with accumulation and with blocks computed again."""
    places: list[dict[str, Any]] = [{"strategy": "ddp"}, {"strategy": "fsdp2"}]
    places += [{"strategy": "deepspeed", "beside": {"deepspeed": zero(folder, s)}} for s in stages]
    changes: list[dict[str, Any]] = [
        {"model": {"experts": HIERARCHICAL}, "train__grad_accum": 2},
        {"model": {"experts": KEYS}, "train__activation_checkpointing": True},
    ]
    cms = {"periods": [4, 8], "rate": 0.3, "allow_short_periods": True}
    levels = {"kind": "hope_attention", "changes": {"model": {"cms": cms, "experts": HIERARCHICAL}}}
    whole = [{"kind": "transformer", "changes": change} for change in changes]
    return [case | place for place in places for case in (*whole, levels)]


def test_two_ranks_train_experts_as_one(tmp_path: Path) -> None:
    every = cases(tmp_path)
    few = [every[0], *every[4:]]  # DDP with losses and noise, FSDP2 with keys and with levels
    check(few, parity(few))


@pytest.mark.slow
def test_every_stage_trains_experts_as_one(tmp_path: Path) -> None:
    every = cases(tmp_path, 1, 2, 3)
    check(every, parity(every))


@pytest.mark.slow
def test_balance_and_noise_survive_a_stop_and_are_those_of_one_process(
    tiny: ModuleType, tmp_path: Path
) -> None:
    model = {"kind": "language", "vocab_size": tiny.VOCAB, "dim": 8, "layers": 1}
    model |= {"block": "transformer", "attention": {"heads": 1}, "experts": {**LOW, "noise": 0.5}}
    changes: dict[str, Any] = {
        "model": model,
        "objective": {"kind": "next_token"},
        "train__carry": False,
        "train__steps": 8,
        "checkpoint__every": 0,
    }
    ours, theirs = one_and_two_ranks(tiny, tmp_path, changes)
    one, two = (nl.load_model(path).state_dict() for path in (ours, theirs))
    name = "blocks.0.mlp.router.bias"
    assert one[name].abs().max() > 0.1  # 8 steps of at most 0.05
    torch.testing.assert_close(two[name], one[name])
    rows = [
        [r for r in read_records(path / "metrics.jsonl") if r["split"] == "train"]
        for path in (ours, theirs)
    ]
    for a, b in zip(*rows, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
    quiet = changes | {"model": model | {"experts": {**LOW, "noise": 0.0}}}
    nl.launch(tiny.tiny_run(run__dir=str(tmp_path / "quiet"), **quiet))
    other = read_records(tmp_path / "quiet" / "metrics.jsonl")
    assert other[0]["loss"] != pytest.approx(rows[0][0]["loss"], rel=1e-6)


def test_a_refused_step_moves_no_bias(tiny: ModuleType) -> None:
    model = {"kind": "language", "vocab_size": tiny.VOCAB, "dim": 8, "layers": 1}
    model |= {"block": "transformer", "attention": {"heads": 1}, "experts": LOW}
    run = tiny.tiny_run(model=model, objective={"kind": "next_token"}, train__carry=False)
    strategy = Single.start("cpu")
    parts = build(run, strategy)
    router = strategy.objective.model.blocks[0].mlp.router
    for taken in (False, True):
        strategy.backward(strategy.forward(next(iter(parts.stream)), None, None).loss)
        assert router.load.sum() > 0
        strategy.settle(taken=taken)
        assert not router.load.any()
        assert bool(router.bias.any()) == taken
