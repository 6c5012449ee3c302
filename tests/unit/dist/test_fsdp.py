"""Fully sharded training: what is refused, what is gathered, where State and moments stay fp32."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from nl.assembly import build
from nl.config import ConfigError
from nl.core.state import tensors
from nl.dist.fsdp import FSDP2
from nl.dist.single import Single
from nl.dist.whole import owners
from nl.fit import check

HOPE: dict[str, Any] = {
    "kind": "language",
    "vocab_size": 11,
    "dim": 8,
    "layers": 2,
    "block": "hope_attention",
    "attention": {"heads": 2},
    "cms": {"periods": [4, 8], "hidden": 6, "allow_short_periods": True},
}


@pytest.fixture
def alone() -> Iterator[FSDP2]:
    """Fully sharded over one rank."""
    strategy = FSDP2.start("cpu")
    yield strategy
    strategy.close()


def hope(tiny: ModuleType, **changes: Any) -> Any:
    cms, block = changes.pop("cms", {}), changes.pop("block", "hope_attention")
    model = HOPE | {"cms": HOPE["cms"] | cms, "block": block}
    objective = {"kind": "next_token"}
    return tiny.tiny_run(model=model, objective=objective, stream__seq_len=9, **changes)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"cms": {"signal": "block"}}, "needs inner_autograd, .*model.cms.signal=head"),
        ({"fsdp__cpu_offload": True}, "fsdp.cpu_offload: true, but training runs on the CPU"),
        ({"optim": {"kind": "scaled_sgd"}}, "needs whole_neurons, .*train_dist.py"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_built(
    tiny: ModuleType, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        check(hope(tiny, **changes), FSDP2(torch.device("cpu")))


def test_options_of_sharding_are_refused_elsewhere(tiny: ModuleType) -> None:
    with pytest.raises(ConfigError, match=r"fsdp: .*single training does not read it"):
        check(hope(tiny, fsdp__reshard_after_forward=False), Single.start("cpu"))


def test_units_hold_blocks_and_the_root_what_is_read_between_them(
    tiny: ModuleType, alone: FSDP2
) -> None:
    run = hope(tiny)
    parts = build(run, alone)
    out = alone.forward(next(iter(parts.stream)), None, None)
    gathered = {n for n, p in alone.objective.named_parameters() if not isinstance(p, DTensor)}
    names = {n for n, _ in alone.objective.named_parameters()}
    assert gathered == {n for n in names if ".blocks." not in n or ".levels." in n}
    with alone.microbatch(last=True):
        alone.backward(out.loss)
    for name, parameter in alone.objective.named_parameters():
        assert isinstance(parameter, DTensor), name
        assert isinstance(parameter.grad, DTensor), name
    with alone.evaluating() as objective:
        assert not any(isinstance(p, DTensor) for p in objective.parameters())
    assert all(isinstance(p, DTensor) for p in alone.objective.parameters())


def test_blocks_stay_gathered_for_the_whole_step_where_wanted(
    tiny: ModuleType, alone: FSDP2
) -> None:
    parts = build(hope(tiny, fsdp__reshard_after_forward=False), alone)
    for last in (False, True):
        with alone.microbatch(last):
            alone.backward(alone.forward(next(iter(parts.stream)), None, None).loss)
        cut = {isinstance(p, DTensor) for unit in alone.units for p in unit.mixers.parameters()}
        assert cut == {last}
    assert all(isinstance(p.grad, DTensor) for p in alone.objective.parameters())


@pytest.mark.parametrize("block", ["transformer", "hope_attention"])
def test_bf16_keeps_memories_state_gradients_and_moments_in_fp32(
    tiny: ModuleType, alone: FSDP2, block: str
) -> None:
    run = hope(tiny, block=block, train__precision="bf16")
    single = Single.start("cpu")
    batch = next(iter(build(run, single).stream))
    want = single.forward(batch, None, None)
    single.backward(want.loss)
    build(run, alone)
    with alone.microbatch(last=True):
        out = alone.forward(batch, None, None)
        alone.backward(out.loss)
    torch.testing.assert_close(out.loss, want.loss, rtol=0, atol=0)
    own = dict(single.objective.named_parameters())
    for name, parameter in alone.objective.named_parameters():
        assert parameter.grad is not None
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        torch.testing.assert_close(parameter.grad.full_tensor(), own[name].grad, rtol=0, atol=0)
    alone.step(1.0)
    with alone.evaluating() as objective:
        low = {n for n, p in objective.named_parameters() if p.dtype == torch.bfloat16}
    linear = {"qkv.weight", "out.weight", "into.weight"}
    found = {".".join(n.split(".")[-2:]) for n in low}
    assert found == (linear if block == "transformer" else set())
    moments = [t for s in alone.optimizer.state.values() for t in s.values()]
    assert {t.dtype for t in moments} == {torch.float32}
    held = [level for one in out.state.blocks for level in one.levels or ()]
    assert {t.dtype for level in held for t in tensors(level)} <= {torch.float32}


def test_owners_share_out_the_matrices() -> None:
    sizes = {"a": 9, "b": 5, "c": 4, "d": 1, "e": 1}
    assert owners(sizes, 1) == dict.fromkeys(sizes, 0)
    two = owners(sizes, 2)
    assert [sum(sizes[n] for n in sizes if two[n] == r) for r in range(2)] == [10, 10]
    assert owners(dict(reversed(sizes.items())), 2) == two
