"""The laws under every option of the continuum memory: one value at a time and some together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nl.config import ConfigError
from nl.core import state as states
from nl.core.output import Knobs
from tests.laws.conftest import PERIODS, VOCAB, tokens
from tests.laws.test_block_laws import (
    EXACT,
    Recorder,
    check_cuts,
    check_gradients_of_cuts,
    largest_gap,
    read_in_pieces,
)

Build = Callable[..., Any]

OPTIONS: dict[str, dict[str, Any]] = {
    "nested": {"arrangement": "nested"},
    "nested momentum": {"arrangement": "nested", "inner": {"kind": "momentum"}},
    "independent": {"arrangement": "independent"},
    "independent delta": {"arrangement": "independent", "inner": {"kind": "delta"}},
    "nested deep": {"arrangement": "nested", "inner": {"kind": "deep"}},
    "through": {"write_gradient": "through"},
    "through momentum truncated": {
        "write_gradient": "through",
        "bptt_chunks": 2,
        "inner": {"kind": "momentum"},
    },
    "through nested delta": {
        "write_gradient": "through",
        "arrangement": "nested",
        "inner": {"kind": "delta"},
    },
    "block": {"signal": "block"},
    "block nested adam": {"signal": "block", "arrangement": "nested", "inner": {"kind": "adam"}},
    "block gated": {"signal": "block", "surprise": {"gate": "soft", "quantile": 0.6}},
    "shared": {"scope": "batch"},
    "shared nested block": {"scope": "batch", "arrangement": "nested", "signal": "block"},
    "gated levels through": {
        "activation": "swiglu",
        "norm": "layer",
        "bias": True,
        "write_gradient": "through",
    },
    "gelu delta": {"activation": "gelu", "bias": True, "inner": {"kind": "delta"}},
    "self": {"signal": "self", "write_gradient": "through"},
    "self independent": {
        "signal": "self",
        "write_gradient": "through",
        "arrangement": "independent",
    },
}


@pytest.fixture(params=OPTIONS)
def cms(request: pytest.FixtureRequest) -> dict[str, Any]:
    """One combination of options."""
    return OPTIONS[request.param]


def test_causal(cms: dict[str, Any], build: Build, float64: None) -> None:
    model, x = build("hope_attention", cms=cms), tokens(2, 23)
    base = model(x).pred
    for t in (0, 3, 9, 22):
        changed = x.clone()
        changed[:, t] = (changed[:, t] + 1) % VOCAB
        other = model(changed).pred
        assert torch.equal(other[:, :t], base[:, :t])
        assert not torch.equal(other[:, t:], base[:, t:])


@pytest.mark.parametrize("kind", ["hope_attention", "hope_selfmod"])
def test_split_invariant(cms: dict[str, Any], kind: str, build: Build, float64: None) -> None:
    model, x = build(kind, cms=cms), tokens(3, 23)
    whole = check_cuts(model, x)
    assert not torch.equal(whole.pred, model(x, write=False).pred)


def test_split_invariant_gradients(cms: dict[str, Any], build: Build, float64: None) -> None:
    model, x, labels = build("hope_attention", cms=cms), tokens(2, 23), tokens(2, 23, 5)
    check_gradients_of_cuts(model, x, labels)


@pytest.mark.parametrize("name", ["through", "self"])
def test_gradients_of_context_driven_writes_do_not_depend_on_the_cut(
    name: str, build: Build, float64: None
) -> None:
    model, x, labels = build("hope_attention", cms=OPTIONS[name]), tokens(2, 23), tokens(2, 23, 5)

    def gradients(cuts: list[int]) -> dict[str, torch.Tensor]:
        model.zero_grad()
        pred, _ = read_in_pieces(model, x, cuts)
        torch.nn.functional.cross_entropy(pred.flatten(0, 1), labels.flatten()).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters()}

    whole = gradients([23])
    for cuts in ([5, 11, 7], [1] * 23):
        for key, grad in gradients(cuts).items():
            assert (grad - whole[key]).abs().max() < EXACT, key


def test_stop_and_through_read_the_same_and_learn_otherwise(build: Build, float64: None) -> None:
    x, labels = tokens(2, 23), tokens(2, 23, 5)
    seen = []
    for value in ("stop", "through"):
        model = build("hope_attention", cms={"write_gradient": value})
        nll, _ = model.nll(x, labels)
        nll.sum().backward()
        seen.append((nll, model.blocks[0].levels.levels[0].up.weight.grad))
    assert torch.allclose(seen[0][0], seen[1][0], rtol=0, atol=1e-12)
    assert (seen[0][1] - seen[1][1]).abs().max() > 1e-6


def test_row_independent(cms: dict[str, Any], build: Build, float64: None) -> None:
    model, x = build("hope_attention", cms=cms), tokens(3, 23)
    together = model(x)
    if cms.get("scope") == "batch":
        gap = (model(x[:1]).pred[0] - together.pred[0]).abs().amax(-1)
        assert gap[:4].max() < EXACT  # before the first write
        assert gap[-1] > 1e-6
        with pytest.raises(ConfigError, match=r"model\.cms\.scope: batch"):
            model(x, starts=[[], [5], []])
        return
    for row in range(3):
        alone = model(x[row : row + 1])
        assert (alone.pred[0] - together.pred[row]).abs().max() < EXACT
        assert largest_gap(states.select_rows(together.state, [row]), alone.state) < EXACT


def test_dropping_the_state_changes_no_output(
    cms: dict[str, Any], build: Build, float64: None
) -> None:
    model, x, labels = build("hope_attention", cms=cms), tokens(2, 23), tokens(2, 23, 1)
    kept, _ = model.nll(x, labels, keep=True)
    kept.sum().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    dropped, _ = model.nll(x, labels, keep=False)
    dropped.sum().backward()
    assert torch.equal(kept, dropped)
    for name, parameter in model.named_parameters():
        assert (parameter.grad - grads[name]).abs().max() < EXACT, name


def test_training_path_and_logits_agree(cms: dict[str, Any], build: Build, float64: None) -> None:
    model, x, labels = build("hope_attention", cms=cms), tokens(3, 23), tokens(3, 23, 1)
    labels[0, 5] = -100
    nll, out = model.nll(x, labels)
    logits = model.train()(x, targets=labels)
    assert torch.equal(logits.pred, model.eval()(x, targets=labels).pred)
    expected = torch.nn.functional.cross_entropy(
        logits.pred.flatten(0, 1), labels.flatten(), reduction="none"
    ).view_as(labels)
    assert (nll - expected).abs().max() < 1e-12
    assert largest_gap(out.state, logits.state) < EXACT


def test_zero_signal_changes_nothing(cms: dict[str, Any], build: Build, float64: None) -> None:
    model, x, silent = build("hope_attention", cms=cms), tokens(2, 32), Knobs(write_scale=0.0)
    taught = model(x[:, :16], targets=tokens(2, 16, 1)).state
    assert all(level.fast_up.any() for level in taught.blocks[0].levels)
    later = model(x[:, 16:], taught, silent, targets=tokens(2, 16, 2)).state
    for old, new in zip(taught.blocks[0].levels, later.blocks[0].levels, strict=True):
        assert torch.equal(old.fast_up, new.fast_up)
        assert torch.equal(old.fast_down, new.fast_down)
    fresh = model(x[:, :16], None, silent, targets=tokens(2, 16, 1))
    assert (fresh.pred - model(x[:, :16], write=False).pred).abs().max() < EXACT


def test_every_parameter_learns(cms: dict[str, Any], build: Build) -> None:
    model, x = build("hope_attention", cms=cms), tokens(4, 2 * max(PERIODS) + 1)
    with Recorder() as recorded:
        model.nll(x[:, :-1], x[:, 1:])[0].sum().backward()
    assert not recorded.names & {"aten::_local_scalar_dense", "aten::item", "aten::nonzero"}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("fill", ["random", "constant"])
def test_stable_over_a_long_stream(cms: dict[str, Any], fill: str, build: Build) -> None:
    model = build("hope_attention", cms={"periods": [64, 256], "rate": 1.0, **cms})
    state = None
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for i in range(8):
            x = tokens(2, 512, i) if fill == "random" else torch.full((2, 512), 3)
            out = model(x, state)
            fresh = model.init_state(2).blocks  # attention keeps its past: forget it here
            pairs = zip(out.state.blocks, fresh, strict=True)
            state = out.state._replace(blocks=tuple(b._replace(mixers=f.mixers) for b, f in pairs))
            assert torch.isfinite(out.pred).all()
    # clip / (1 - retention) of the meta weights, once more for every level that restarts another.
    bound = len(model.config.cms.periods) * 0.1 / (1 - 0.9)
    for block, memory in zip(model.blocks, state.blocks, strict=True):
        for level, own in zip(block.levels.levels, memory.levels, strict=True):
            w = level.weights(own)
            assert (w.rate_up * own.fast_up).norm(dim=(1, 2)).max() < 1.001 * bound * w.up.norm()
            size = (w.rate_down * own.fast_down).norm(dim=(1, 2)).max()
            assert size < 1.001 * bound * w.down.norm()
            assert all(torch.isfinite(t).all() for t in states.tensors(own))
