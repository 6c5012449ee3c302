"""Memories that may not write stay as they are, whatever the others do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nl.config import ConfigError
from nl.core import state as states
from nl.core.output import Knobs
from nl.models.memories import memory_paths
from tests.laws.conftest import tokens
from tests.laws.test_block_laws import EXACT, largest_gap

Build = Callable[..., Any]
CHUNKED = ("hope_attention", "hope_hybrid", "hope_selfmod")


def permitted_only(
    model: Any, x: torch.Tensor, labels: torch.Tensor, knobs: Knobs
) -> tuple[torch.Tensor, Any]:
    """Token by token: read with everything writing and with nothing, keep of each what is right.

    What a token says does not depend on what it writes, in memories that are written by chunks.
    """
    state, out = model.init_state(len(x)), []
    for t in range(x.shape[1]):
        full = model(x[:, t : t + 1], state, targets=labels[:, t : t + 1])
        frozen = model(x[:, t : t + 1], state, write=False)
        blocks = []
        for i, block in enumerate(full.state.blocks):
            path = model.blocks[i].memory_path
            free = path is not None and knobs.permits(path, i)
            levels = tuple(
                new if knobs.permits(f"level{k}", i) else old
                for k, (new, old) in enumerate(
                    zip(block.levels, state.blocks[i].levels, strict=True)
                )
            )
            mixers = block.mixers if free else frozen.state.blocks[i].mixers
            blocks.append(block._replace(mixers=mixers, levels=levels))
        state = full.state._replace(blocks=tuple(blocks))
        out.append(full.pred)
    return torch.cat(out, 1), state


@pytest.mark.parametrize("kind", CHUNKED)
@pytest.mark.parametrize(
    "knobs",
    [
        Knobs(paths=("level0", "level2")),
        Knobs(paths=("level1", "selfmod", "titan")),
        Knobs(layers=(1,)),
        Knobs(paths=("selfmod", "titan", "level0"), layers=(0,)),
    ],
)
def test_only_permitted_memories_write(
    kind: str, knobs: Knobs, build: Build, float64: None
) -> None:
    model, x, labels = build(kind), tokens(2, 37), tokens(2, 37, 1)
    if knobs.paths is not None:
        known = set(memory_paths(model))
        knobs = knobs._replace(paths=tuple(p for p in knobs.paths if p in known))
    naive, wanted = permitted_only(model, x, labels, knobs)
    read = model(x, None, knobs, targets=labels)
    assert (read.pred - naive).abs().max() < EXACT
    assert largest_gap(read.state, wanted) < EXACT
    assert (read.pred - model(x, targets=labels).pred).abs().max() > EXACT
    assert (read.pred - model(x, write=False).pred).abs().max() > EXACT


@pytest.mark.parametrize("arrangement", ["nested", "independent"])
def test_only_permitted_levels_write_in_every_arrangement(
    arrangement: str, build: Build, float64: None
) -> None:
    model, x = build("hope_attention", cms={"arrangement": arrangement}), tokens(2, 37)
    for paths in (("level0",), ("level0", "level2"), ("level2",)):
        state = model(x, None, Knobs(paths=paths)).state
        for block in state.blocks:
            for i, level in enumerate(block.levels):
                assert (level.fast_down is not None) == (f"level{i}" in paths)


@pytest.mark.parametrize("inner", ["sgd", "momentum", "delta"])
def test_a_nested_level_that_was_frozen_decays_toward_what_the_slower_one_wrote(
    inner: str, build: Build, float64: None
) -> None:
    cms = {"arrangement": "nested", "inner": {"kind": inner}, "clip": 0.0, "rate": 0.1}
    model, x = build("hope_attention", cms=cms), tokens(2, 12)
    state = model(x[:, :8], None, Knobs(paths=("level1",)), targets=x[:, :8]).state
    faster, slower, _ = state.blocks[0].levels
    assert faster.fast_up is None
    zeros = (torch.zeros_like(slower.fast_up), torch.zeros_like(slower.fast_down))
    levels = (faster._replace(fast_up=zeros[0], fast_down=zeros[1]), *state.blocks[0].levels[1:])
    written = state._replace(blocks=(state.blocks[0]._replace(levels=levels), *state.blocks[1:]))
    found = [model(x[:, 8:], s, targets=x[:, 8:]).state for s in (state, written)]
    assert found[0].blocks[0].levels[0].fast_up is not None
    assert largest_gap(found[0].blocks[0], found[1].blocks[0]) < EXACT


def test_nothing_permitted_is_frozen(kind: str, build: Build, float64: None) -> None:
    model, x = build(kind), tokens(2, 37)
    frozen = model(x, write=False)
    for knobs in (Knobs(paths=()), Knobs(layers=())):
        read = model(x, None, knobs)
        assert (read.pred - frozen.pred).abs().max() < EXACT
        assert largest_gap(read.state.blocks, frozen.state.blocks) < EXACT


def test_everything_permitted_is_free(kind: str, build: Build, float64: None) -> None:
    model, x = build(kind), tokens(2, 37)
    every = Knobs(paths=tuple(memory_paths(model)), layers=(0, 1))
    read, free = model(x, None, every), model(x)
    assert torch.equal(read.pred, free.pred)
    assert largest_gap(read.state, free.state) == 0


@pytest.mark.parametrize("signal", ["head", "block"])
def test_the_cut_does_not_matter_when_permissions_change(
    kind: str, signal: str, build: Build, float64: None
) -> None:
    model, x = build(kind, cms={"signal": signal}), tokens(2, 41)
    known = memory_paths(model)
    plan = [(0, 9, Knobs(paths=tuple(known[:1]))), (9, 22, None), (22, 41, Knobs(layers=(1,)))]

    def read(most: int) -> tuple[torch.Tensor, Any]:
        state, out = None, []
        for begin, end, knobs in plan:
            for at in range(begin, end, most):
                part = model(x[:, at : min(end, at + most)], state, knobs)
                state = part.state
                out.append(part.pred)
        return torch.cat(out, 1), state

    whole, last = read(41)
    for most in (1, 3):
        pred, state = read(most)
        assert (pred - whole).abs().max() < EXACT
        assert largest_gap(state, last) < EXACT
    labels = tokens(2, 41, 3)
    for knobs in (plan[0][2], plan[2][2]):
        kept, _ = model.nll(x, labels, None, knobs)
        assert torch.equal(kept, model.nll(x, labels, None, knobs, keep=False)[0])


def test_names_that_are_not_there_are_refused(build: Build) -> None:
    model, x = build("hope_hybrid"), tokens(1, 5)
    with pytest.raises(ConfigError, match="titan, level0, level1, level2"):
        model(x, None, Knobs(paths=("level3",)))
    with pytest.raises(ConfigError, match="layers: 2; this model's layers are 0 to 1"):
        model(x, None, Knobs(layers=(2,)))
    with pytest.raises(ConfigError, match="none"):
        build("transformer")(x, None, Knobs(paths=("titan",)))


def test_generation_keeps_frozen_memories(build: Build) -> None:
    model, x = build("hope_hybrid"), tokens(1, 9)
    _, state = model.generate(x, max_new_tokens=9, knobs=Knobs(paths=("titan",)))
    assert all(level.fast_up is None for block in state.blocks for level in block.levels)
    assert any(t.any() for t in states.tensors(state.blocks[0].mixers[0].bank.added))
