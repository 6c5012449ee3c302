"""Two gloo ranks give the losses and gradient norms of one process, under every strategy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nl.models.language  # noqa: F401 - registers the blocks
from nl.config import table
from tests.unit.dist.test_strategies import free_port

PARITY = Path(__file__).parents[2] / "resume" / "parity.py"
TOLERANCE = 1e-5


def parity(cases: list[dict[str, Any]], timeout: int = 300) -> list[Any]:
    """What ``parity.py`` measures."""
    command = [sys.executable, str(PARITY), json.dumps(cases), str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def check(cases: list[dict[str, Any]], found: list[Any]) -> None:
    """Every number of every case within the tolerance, relative."""
    assert len(found) == len(cases)
    for case, (losses, norms, losses_alone, norms_alone) in zip(cases, found, strict=True):
        tolerance = case.get("tolerance", TOLERANCE)
        assert len(losses) == 8
        assert losses_alone[0] > losses_alone[-1] > 0, case
        assert losses == pytest.approx(losses_alone, rel=tolerance), case
        assert norms == pytest.approx(norms_alone, rel=tolerance), case


def every_block(*strategies: str) -> list[dict[str, Any]]:
    """Cases of all block kinds, with and without gradient accumulation."""
    return [
        {"strategy": strategy, "kind": kind, "changes": {"train__grad_accum": accumulated}}
        for strategy in strategies
        for kind in sorted(table("block"))
        for accumulated in (1, 2)
    ]


def every_option() -> list[dict[str, Any]]:
    """Cases of what else touches sharding, on the block with levels."""
    cms = {"periods": [4, 8], "hidden": 10, "rate": 0.3, "allow_short_periods": True}
    kept = {"beside": {"fsdp__reshard_after_forward": False}, "changes": {}}
    again = {"train__activation_checkpointing": True}
    own = {"model": {"cms": cms | {"signal": "self", "write_gradient": "through"}}}
    through = {"model": {"cms": cms | {"write_gradient": "through"}}, "train__grad_accum": 2}
    shared = {"model": {"cms": cms | {"scope": "batch"}}, "train__carry": False}
    frozen = {"optim": {"policy": "memory_only"}}
    rebuilt = {"model": {"dim": 24, "cms": cms | {"hidden": 48}}, "train__grad_accum": 2}
    more = {"strategy": "fsdp2", "kind": "hope_attention"}
    head = {"model": {"head_memory": {"period": 4}, "tie_embeddings": True}}
    options = (again, own, through, shared, frozen, rebuilt, head)
    segments = {"strategy": "ddp", "changes": {"train__recompute_every": 4}}
    keeps = [more | kept, more | kept | {"changes": {"train__grad_accum": 2}}]
    cases = [*keeps, *(more | {"changes": changes} for changes in options)]
    return [*cases, more | segments]


def every_form() -> list[tuple[str, dict[str, Any]]]:
    """Block and options of models formed as Llama, GPT-NeoX and GPT-2, with and without levels."""
    shared = {"heads": 2, "kv_heads": 1, "qk_norm": False, "bias": True, "rotary": 0.5}
    levels = {"periods": [4, 8], "hidden": 10, "rate": 0.3, "allow_short_periods": True}
    levels |= {"arrangement": "independent", "norm": "layer", "bias": True}
    layer = {"norm": "layer", "bias": True}
    llama = {"attention": shared, "cms": levels | {"activation": "swiglu"}}
    neox = {**layer, "parallel": True, "mlp": "gelu", "attention": shared}
    neox["cms"] = levels | {"activation": "gelu"}
    gpt2 = {**layer, "positions": "learned", "max_positions": 64, "mlp": "gelu_tanh"}
    gpt2 |= {"attention": {"heads": 2, "qk_norm": False, "bias": True}}
    gpt2["cms"] = levels | {"activation": "gelu_tanh"}
    return [
        (kind, form) for kind in ("transformer", "hope_attention") for form in (llama, neox, gpt2)
    ]


def of_forms(*strategies: str, **more: Any) -> list[dict[str, Any]]:
    """Cases of every form."""
    return [
        {"strategy": strategy, "kind": kind, "changes": {"model": form} | places | more}
        for strategy in strategies
        for kind, form in every_form()
        # Learned positions have no places for a State that goes on.
        for places in ({"train__carry": False} if "positions" in form else {},)
    ]


def every_matrix_optimizer() -> list[dict[str, Any]]:
    """Newton-Schulz steps of Muon compute in bf16, so that rounding weighs more: 1e-4."""
    kinds = ({"kind": "muon"}, {"kind": "m3", "slow_chunk": 3}, {"kind": "dmgd"})
    more = {"strategy": "fsdp2", "kind": "hope_attention", "tolerance": 1e-4}
    return [more | {"changes": {"optim": kind | {"rest": {"eps": 1e-4}}}} for kind in kinds]


def test_two_ranks_train_as_one() -> None:
    """Every block under both strategies; sharded, every option, every optimizer of matrices, and
    norms with bias, parallel layers, learned positions, gated levels, shared key heads."""
    kinds = sorted(table("block"))
    cases = [  # a block meets both strategies, and is accumulated under one of them
        case
        for turn, strategy in enumerate(("ddp", "fsdp2"))
        for case in every_block(strategy)
        if case["changes"]["train__grad_accum"] == 1 + (turn + kinds.index(case["kind"])) % 2
    ]
    assert len(cases) == 2 * len(kinds)
    cases += every_option() + every_matrix_optimizer() + of_forms("fsdp2")
    check(cases, parity(cases))


@pytest.mark.slow
def test_two_ranks_train_every_block_as_one_with_every_accumulation() -> None:
    cases = every_block("ddp", "fsdp2")
    check(cases, parity(cases, timeout=900))
