"""The laws with sparse experts: every router, in any block with a feed-forward layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nl.core.output import Knobs
from tests.laws.conftest import PERIODS, VOCAB, tokens
from tests.laws.test_block_laws import (
    CUTS,
    EXACT,
    Recorder,
    check_cuts,
    check_gradients_of_cuts,
    largest_gap,
    read_in_pieces,
)

Build = Callable[..., Any]

LOW = {"form": "low_rank", "count": 9, "rank": 3, "k": 2, "k_max": 4}
GROUPED = {**LOW, "count": 12, "groups": 4}
ROUTERS: dict[str, dict[str, Any]] = {
    "flat": LOW,
    "flat sigmoid noise": {**LOW, "gate": "sigmoid", "noise": 0.5},
    "flat swiglu shared": {"form": "swiglu", "count": 5, "width": 4, "shared": 2, "k": 1},
    "group_limited": {**GROUPED, "router": "group_limited", "group_limit": 2, "balance": 0.1},
    "hierarchical": {**GROUPED, "router": "hierarchical", "gate": "probability", "scale": 6.0},
    "hierarchical limited": {**GROUPED, "router": "hierarchical", "group_limit": 2},
    "product_key": {**LOW, "router": "product_key", "noise": 0.3},
    "product_key sigmoid": {**LOW, "router": "product_key", "gate": "sigmoid", "key_size": 5},
}


@pytest.fixture(params=ROUTERS)
def experts(request: pytest.FixtureRequest) -> dict[str, Any]:
    """One way to route."""
    return ROUTERS[request.param]


def test_causal(experts: dict[str, Any], build: Build, float64: None) -> None:
    model, x = build("transformer", experts=experts), tokens(2, 23)
    base = model(x).pred
    for t in (0, 3, 9, 22):
        changed = x.clone()
        changed[:, t] = (changed[:, t] + 1) % VOCAB
        gap = (model(changed).pred - base).abs()
        # Products of other sizes round otherwise: not to the bit.
        assert gap[:, :t].sum() < 1e-11
        assert gap[:, t].max() > 1e-6


def test_split_invariant(experts: dict[str, Any], build: Build, float64: None) -> None:
    model, x = build("transformer", experts=experts), tokens(3, 23)
    check_cuts(model, x)


def test_split_invariant_gradients(experts: dict[str, Any], build: Build, float64: None) -> None:
    model, x, labels = build("transformer", experts=experts), tokens(2, 23), tokens(2, 23, 5)
    check_gradients_of_cuts(model, x, labels)


def test_row_independent(experts: dict[str, Any], build: Build, float64: None) -> None:
    model, x = build("transformer", experts=experts), tokens(4, 23)
    together = model(x)
    for row in range(4):
        alone = model(x[row : row + 1])
        assert (alone.pred[0] - together.pred[row]).abs().max() < EXACT
    changed = x.clone()
    changed[1] = (changed[1] + 1) % VOCAB
    other = model(changed)
    assert (other.pred - together.pred)[[0, 2, 3]].abs().max() < EXACT


def test_every_parameter_learns_and_no_scalar_is_read(
    experts: dict[str, Any], build: Build
) -> None:
    model, x = build("transformer", experts=experts), tokens(4, 2 * max(PERIODS) + 1)
    model.nll(x[:, :-1], x[:, 1:])  # what the device has is found out once
    with Recorder() as recorded:
        model.nll(x[:, :-1], x[:, 1:])[0].sum().backward()
    assert not recorded.names & {"aten::_local_scalar_dense", "aten::item", "aten::nonzero"}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", ["gated_delta", "titan_mag", "sliding_window"])
def test_any_block_has_them(kind: str, build: Build, float64: None) -> None:
    model, x = build(kind, experts=LOW), tokens(2, 23)
    whole = model(x)
    pred, state = read_in_pieces(model, x, [5, 11, 7])
    assert (pred - whole.pred).abs().max() < EXACT
    assert largest_gap(state, whole.state) < EXACT
    assert 1 < float(whole.aux["experts/effective"]) <= 9


LEVELS: dict[str, dict[str, Any]] = {
    "low_rank": {"experts": {**LOW, "count": 4, "shared": 1, "noise": 0.3}},
    "swiglu through": {
        "cms": {"activation": "swiglu", "write_gradient": "through", "inner": {"kind": "momentum"}},
        "experts": {"form": "swiglu", "count": 4, "width": 3, "k": 1},
    },
    "nested delta": {
        "cms": {"arrangement": "nested", "inner": {"kind": "delta"}},
        "experts": {**LOW, "count": 4, "router": "product_key"},
    },
    "independent block": {
        "cms": {"arrangement": "independent", "signal": "block"},
        "experts": {**LOW, "count": 4, "router": "hierarchical", "groups": 2, "first_dense": 1},
    },
}
"""Levels of a continuum memory whose hidden units experts share out."""


def sparse_levels(build: Build, name: str) -> Any:
    options = LEVELS[name]
    return build("hope_attention", **{**options, "cms": {"hidden": None, **options.get("cms", {})}})


@pytest.mark.parametrize("name", LEVELS)
def test_levels_with_experts_obey_the_laws(name: str, build: Build, float64: None) -> None:
    model, x, labels = sparse_levels(build, name), tokens(3, 23), tokens(2, 23, 5)
    whole = check_cuts(model, x, CUTS[:2])
    for row in range(3):
        assert (model(x[row : row + 1]).pred[0] - whole.pred[row]).abs().max() < EXACT
    changed = x.clone()
    changed[:, 9] = (changed[:, 9] + 1) % VOCAB
    gap = (model(changed).pred - whole.pred).abs()
    assert gap[:, :9].max() < EXACT
    assert gap[:, 9].max() > 1e-6
    assert not torch.equal(whole.pred, model(x, write=False).pred)
    check_gradients_of_cuts(model, x[:2], labels)


@pytest.mark.parametrize("name", LEVELS)
def test_every_parameter_of_levels_with_experts_learns(name: str, build: Build) -> None:
    model, x = sparse_levels(build, name), tokens(4, 2 * max(PERIODS) + 1)
    with Recorder() as recorded:
        model.nll(x[:, :-1], x[:, 1:])[0].sum().backward()
    assert not recorded.names & {"aten::_local_scalar_dense", "aten::item", "aten::nonzero"}
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


def test_only_the_experts_that_read_are_written(build: Build, float64: None) -> None:
    model, x = sparse_levels(build, "swiglu through"), tokens(1, 4)
    chosen: list[torch.Tensor] = []
    level = model.blocks[0].levels.levels[0]
    level.router.register_forward_hook(lambda m, i, o: chosen.append(o[0].ids))
    written = model(x, targets=tokens(1, 4, 1)).state.blocks[0].levels[0]
    used = set(torch.cat(chosen).flatten().tolist())
    assert 0 < len(used) < 4
    down = written.fast_down[0].view(12, 4, 3).abs().amax((0, 2))
    up = written.fast_up[0].view(2, 4, 3, 12).abs().amax((0, 2, 3))
    for expert in range(4):
        assert bool(down[expert] > 0) == bool(up[expert] > 0) == (expert in used)


def test_reading_changes_nothing_and_only_noise_tells_training(build: Build) -> None:
    x, noisy = tokens(2, 23), {**LOW, "noise": 2.0, "balance": 0.1}
    model = build("transformer", experts=noisy)
    held = {n: t.clone() for n, t in model.state_dict().items()}
    first, second = model(x), model(x)
    assert torch.equal(first.pred, second.pred)
    assert all(torch.equal(t, held[n]) for n, t in model.state_dict().items())
    assert not torch.equal(model(x, knobs=Knobs(draw=1)).pred, first.pred)
    assert torch.equal(
        model(x, knobs=Knobs(router_noise=0.0)).pred, model.eval()(x, knobs=Knobs(draw=1)).pred
    )


def test_segments_read_again_have_the_same_gradients(build: Build, float64: None) -> None:
    x, labels = tokens(2, 24), tokens(2, 24, 5)
    model = build("transformer", experts={**LOW, "switch_loss": 0.1, "z_loss": 0.1})

    def gradients() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        nll, out = model.nll(x, labels)
        (nll.sum() + 48 * out.aux["loss/experts"]).backward()
        return out.aux["loss/experts"], {n: p.grad.clone() for n, p in model.named_parameters()}

    loss, whole = gradients()
    model.recompute_every = 8
    again, pieces = gradients()
    torch.testing.assert_close(again, loss)
    for name, grad in pieces.items():
        assert (grad - whole[name]).abs().max() < EXACT, name
