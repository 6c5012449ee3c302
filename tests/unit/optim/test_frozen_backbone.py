"""optim=frozen_backbone: everything is trained, then the memories alone, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nl.config import ConfigError
from nl.optim.adamw import AdamWConfig
from nl.optim.frozen_backbone import FrozenBackboneConfig
from nl.optim.roles import Role

ROLES = {"memory": Role(memory=True), "backbone": Role()}


def parts(config: AdamWConfig) -> tuple[list[tuple[str, nn.Parameter]], torch.optim.Optimizer]:
    named = [(name, nn.Parameter(torch.ones(2, 2))) for name in ROLES]
    return named, config.build(named, ROLES)


def step(named: Any, optimizer: torch.optim.Optimizer) -> float:
    """One step on sum (w - 3)^2; the gradient norm as a strategy sees it."""
    loss = sum((p - 3.0).square().sum() for _, p in named)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_([p for _, p in named], float("inf"))
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)  # zeros, as a strategy fills them in
    return float(norm)


def test_the_backbone_stands_still_after_its_time_and_the_memory_goes_on_as_adamw() -> None:
    frozen, optimizer = parts(FrozenBackboneConfig(lr=0.1, full_steps=2, no_decay=()))
    plain, reference = parts(AdamWConfig(lr=0.1, no_decay=()))
    for number in range(5):
        before = frozen[1][1].detach().clone()
        norm, whole = step(frozen, optimizer), step(plain, reference)
        assert torch.equal(frozen[0][1], plain[0][1])
        if number < 2:
            assert torch.equal(frozen[1][1], plain[1][1])
            assert norm == whole
        else:
            assert torch.equal(frozen[1][1], before)
            assert not torch.equal(plain[1][1], before)
            assert norm == pytest.approx(whole / 2**0.5, rel=0.2)


def test_where_it_stands_is_part_of_its_state() -> None:
    frozen, optimizer = parts(FrozenBackboneConfig(lr=0.1, full_steps=2))
    for _ in range(2):
        step(frozen, optimizer)
    other, copy = parts(FrozenBackboneConfig(lr=0.1, full_steps=2))
    copy.load_state_dict(optimizer.state_dict())
    before = other[1][1].detach().clone()
    step(other, copy)
    assert torch.equal(other[1][1], before)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="full_steps: 0"):
        FrozenBackboneConfig(full_steps=0)
    with pytest.raises(ConfigError, match="policy: memory_only"):
        FrozenBackboneConfig(policy="memory_only")
    one = [("w", nn.Parameter(torch.ones(2, 2)))]
    with pytest.raises(ConfigError, match="no memories"):
        FrozenBackboneConfig().build(one, {"w": Role()})
    with pytest.raises(ConfigError, match="nothing but memories"):
        FrozenBackboneConfig().build(one, {"w": Role(memory=True)})
