"""The laws of the memory blocks, over every registered block kind."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nl.core import state as states
from nl.core.output import Knobs
from tests.laws.conftest import PERIODS, VOCAB, tokens

CUTS = ([1] * 23, [5, 11, 7], [4, 4, 15], [8, 8, 7], [22, 1], [3, 20])
EXACT = 1e-9
Build = Callable[..., Any]


def read_in_pieces(model: Any, x: torch.Tensor, cuts: list[int], **kw: Any) -> tuple[Any, Any]:
    """Logits and final State of reading ``x`` segment by segment."""
    state, out, at = None, [], 0
    for n in cuts:
        read = model(x[:, at : at + n], state, **kw)
        state, at = read.state, at + n
        out.append(read.pred)
    return torch.cat(out, 1), state


def largest_gap(a: Any, b: Any) -> float:
    """Largest difference between two States of the same structure."""
    first, skeleton = states.flatten(a)
    second, other = states.flatten(b)
    assert skeleton == other
    return max(
        (float((first[k] - second[k]).abs().max()) for k in first if first[k].numel()), default=0.0
    )


def check_cuts(
    model: Any,
    x: torch.Tensor,
    cuts: Sequence[list[int]] = CUTS,
    state_gap: float = EXACT,
    **kw: Any,
) -> Any:
    """23 tokens give the same logits and State in whatever pieces they are read; the whole."""
    whole = model(x, **kw)
    for cut in cuts:
        pred, state = read_in_pieces(model, x, cut, **kw)
        assert (pred - whole.pred).abs().max() < EXACT
        assert largest_gap(state, whole.state) < state_gap
        assert state.position == x.shape[1]
    return whole


def check_gradients_of_cuts(model: Any, x: torch.Tensor, labels: torch.Tensor) -> None:
    """23 tokens give the same gradients in whatever pieces they are read."""
    model.nll(x, labels)[0].sum().backward()
    whole = {n: p.grad.clone() for n, p in model.named_parameters()}
    for cuts in ([5, 11, 7], [1] * 23):
        model.zero_grad()
        state, at, total = None, 0, 0.0
        for n in cuts:
            part = slice(at, at + n)
            nll, out = model.nll(x[:, part], labels[:, part], state)
            state, at, total = out.state, at + n, total + nll.sum()
        total.backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad - whole[name]).abs().max() < EXACT, name


def check_switched_writing(
    model: Any, x: torch.Tensor, labels: torch.Tensor, labelled: bool
) -> None:
    """41 tokens, writing on and off by turns, give the same in whatever pieces they are read."""
    bounds = [0, 3, 6, 15, 16, 25, 33, 41]

    def read(most: int) -> tuple[torch.Tensor, Any]:
        state, out = None, []
        for i, (start, end) in enumerate(itertools.pairwise(bounds)):
            for at in range(start, end, most):
                part = slice(at, min(end, at + most))
                targets = labels[:, part] if labelled else None
                read = model(x[:, part], state, targets=targets, write=i % 2 == 0)
                state = read.state
                out.append(read.pred)
        return torch.cat(out, 1), state

    whole, state = read(41)
    for most in (1, 2, 5):
        pred, other = read(most)
        assert (pred - whole).abs().max() < EXACT
        assert largest_gap(other, state) < EXACT


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_causal(kind: str, build: Build, float64: None, seed: int) -> None:
    model, x = build(kind, seed), tokens(2, 23, seed)
    base = model(x).pred
    for t in (0, 3, 4, 9, 16, 22):
        changed = x.clone()
        changed[:, t] = (changed[:, t] + 1 + seed) % VOCAB
        other = model(changed).pred
        assert torch.equal(other[:, :t], base[:, :t])
        assert not torch.equal(other[:, t:], base[:, t:])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_label_acts_after_its_chunk_only(build: Build, float64: None, seed: int) -> None:
    model, x = build("hope_attention", seed), tokens(2, 24, seed)
    labels = tokens(2, 24, seed + 10)
    base = model(x, targets=labels).pred
    other = labels.clone()
    other[:, 5] = (other[:, 5] + 1) % VOCAB
    moved = (model(x, targets=other).pred - base).abs().amax((0, 2)) > 0
    assert not moved[:8].any()
    assert moved[8:].all()


@pytest.mark.parametrize(("seed", "write"), [(0, True), (1, False), (2, True)])
def test_split_invariant(kind: str, build: Build, float64: None, seed: int, write: bool) -> None:
    model, x = build(kind, seed), tokens(3, 23, seed)
    check_cuts(model, x, write=write)


@pytest.mark.parametrize(("seed", "labelled"), [(0, True), (1, False), (2, True)])
def test_split_invariant_when_writing_is_switched(
    kind: str, build: Build, float64: None, seed: int, labelled: bool
) -> None:
    model = build(kind, seed, selfmod={"period_other": (8, 2, None)[seed]})
    x, labels = tokens(2, 41, seed), tokens(2, 41, seed + 1)
    check_switched_writing(model, x, labels, labelled)


@pytest.mark.parametrize("inner", ["momentum", "delta", "adam", "muon", "deep"])
def test_split_invariant_with_every_inner_optimizer(
    build: Build, float64: None, inner: str
) -> None:
    model, x = build("hope_attention", cms={"inner": {"kind": inner}}), tokens(3, 23)
    whole = check_cuts(model, x, state_gap=1e-7)
    labels = tokens(3, 23, 1)
    kept, _ = model.nll(x, labels, keep=True)
    dropped, _ = model.nll(x, labels, keep=False)
    assert torch.equal(kept, dropped)
    assert not torch.equal(whole.pred, build("hope_attention")(x).pred)


GATES = ({"gate": "hard", "threshold": 0.4}, {"gate": "soft", "quantile": 0.6})


@pytest.mark.parametrize("gate", GATES)
def test_split_invariant_with_a_surprise_gate(
    build: Build, float64: None, gate: dict[str, Any]
) -> None:
    model, x = build("hope_attention", cms={"surprise": gate}), tokens(3, 23)
    whole = check_cuts(model, x)
    assert 0 < float(whole.aux["memory/open_rate"]) < 1
    for row in range(3):
        assert (model(x[row : row + 1]).pred[0] - whole.pred[row]).abs().max() < EXACT
    assert not torch.equal(whole.pred, build("hope_attention")(x).pred)


def test_an_open_gate_changes_nothing(build: Build, float64: None) -> None:
    x = tokens(3, 23)
    gate = {"gate": "hard", "threshold": 0.0}
    gated, plain = build("hope_attention", cms={"surprise": gate})(x), build("hope_attention")(x)
    assert torch.equal(gated.pred, plain.pred)
    assert float(gated.aux["memory/open_rate"]) == 1


@pytest.mark.parametrize("signal", ["head", "block"])
@pytest.mark.parametrize("gate", GATES)
def test_the_scale_of_writes_is_no_surprise(
    build: Build, float64: None, gate: dict[str, Any], signal: str
) -> None:
    cms = {"surprise": gate, "signal": signal, "clip": 0.0}
    model, x = build("hope_attention", cms=cms), tokens(2, 4)
    whole, half = (model(x, None, Knobs(write_scale=s), targets=x).state for s in (1.0, 0.5))
    assert all(torch.equal(a, b) for a, b in zip(whole.gate, half.gate, strict=True))
    for own, scaled in zip(whole.blocks[0].levels, half.blocks[0].levels, strict=True):
        for name in ("fast_up", "sum_up"):
            pair = getattr(own, name), getattr(scaled, name)
            assert pair == (None, None) or (pair[0] / 2 - pair[1]).abs().max() < EXACT


def test_split_invariant_in_single_precision(kind: str, build: Build) -> None:
    model, x = build(kind), tokens(3, 23)
    whole = model(x)
    pred, state = read_in_pieces(model, x, [1, 6, 16])
    assert (pred - whole.pred).abs().max() < 1e-4
    assert largest_gap(state, whole.state) < 1e-4


@pytest.mark.parametrize("seed", [0, 1])
def test_split_invariant_gradients(kind: str, build: Build, float64: None, seed: int) -> None:
    model, x = build(kind, seed), tokens(2, 23, seed)
    labels = tokens(2, 23, seed + 5)
    check_gradients_of_cuts(model, x, labels)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_row_independent(kind: str, build: Build, float64: None, seed: int) -> None:
    model, x = build(kind, seed), tokens(4, 23, seed)
    together = model(x)
    for row in range(4):
        alone = model(x[row : row + 1])
        assert (alone.pred[0] - together.pred[row]).abs().max() < EXACT
        assert largest_gap(states.select_rows(together.state, [row]), alone.state) < EXACT
    changed = x.clone()
    changed[1] = (changed[1] + 1) % VOCAB
    other = model(changed)
    for row in (0, 2, 3):
        assert torch.equal(other.pred[row], together.pred[row])


def test_a_row_without_labels_writes_nothing(build: Build, float64: None) -> None:
    model, x, labels = build("hope_attention"), tokens(3, 40), tokens(3, 40, 1)
    labels[1, :20] = -100
    read, frozen = model(x, targets=labels), model(x, write=False)
    assert (read.pred[1, :24] - frozen.pred[1, :24]).abs().max() < EXACT
    assert (read.pred[1, 24:] - frozen.pred[1, 24:]).abs().max() > EXACT
    alone = model(x[1:2], targets=labels[1:2])
    assert (alone.pred[0] - read.pred[1]).abs().max() < EXACT
    assert largest_gap(states.select_rows(read.state, [1]), alone.state) < EXACT


def test_counted_writes_of_levels(build: Build, float64: None) -> None:
    model, x = build("hope_attention"), tokens(2, 41)
    labels = tokens(2, 41, 1)
    writes, state, at = [0] * len(PERIODS), None, 0
    for n in (1, 2, 5, 8, 3, 1, 21):
        before = state.blocks[0].levels if state is not None else [None] * len(PERIODS)
        for t in range(at, at + n):
            state = model(x[:, t : t + 1], state, targets=labels[:, t : t + 1]).state
            after = state.blocks[0].levels
            for i, period in enumerate(PERIODS):
                old = before[i].fast_down if before[i] is not None else None
                wrote = after[i].fast_down is not old
                assert wrote == ((t + 1) % period == 0)
                writes[i] += wrote
            before = after
        at += n
    assert writes == [41 // p for p in PERIODS]


def test_zero_signal_changes_nothing(build: Build, float64: None) -> None:
    model, x = build("hope_attention"), tokens(2, 16)
    taught = model(x, targets=tokens(2, 16, 1)).state
    unscored = torch.full((2, 16), -100)
    fresh = model(x, targets=unscored).state
    for level in fresh.blocks[0].levels:
        assert level.fast_up is None or not level.fast_up.any()
    later = model(x, taught, targets=unscored).state
    for old, new in zip(taught.blocks[0].levels, later.blocks[0].levels, strict=True):
        assert torch.equal(old.fast_up, new.fast_up)
        assert torch.equal(old.fast_down, new.fast_down)


def test_same_function_in_train_and_eval(kind: str, build: Build) -> None:
    model, x = build(kind), tokens(2, 23)
    assert torch.equal(model.train()(x).pred, model.eval()(x).pred)


@pytest.mark.parametrize(("layers", "head_std"), [(2, 0.5), (12, 0.5), (48, 0.5), (2, 0.2)])
def test_first_loss_is_that_of_guessing(kind: str, layers: int, head_std: float) -> None:
    from nl.config import structure
    from nl.config.groups import ModelConfig

    torch.manual_seed(layers)
    data = {"kind": "language", "vocab_size": 1000, "dim": 64, "layers": layers, "block": kind}
    data["head_std"] = head_std
    model = structure(ModelConfig, data).build()
    x = torch.randint(0, 1000, (2, 129))
    with torch.no_grad():
        nll, _ = model.nll(x[:, :-1], x[:, 1:])
        logits = model(x[:, :-1]).pred
    assert abs(float(nll.mean()) / math.log(1000) - 1) < 0.05
    # Over all targets, which are then no noise: logits of a variance cost half of it.
    expected = float((logits.logsumexp(-1) - logits.mean(-1)).mean())
    assert abs(expected - math.log(1000) - head_std**2 / 2) < 0.05


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_parameter_learns(kind: str, build: Build, seed: int) -> None:
    model, x = build(kind, seed), tokens(4, 2 * max(PERIODS) + 1, seed)
    model.nll(x[:, :-1], x[:, 1:])[0].sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_reading_changes_no_parameter_and_no_state(kind: str, build: Build) -> None:
    model, x = build(kind), tokens(2, 23)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    state = model(x).state
    kept = states.clone(state)
    first, second = model(x, state), model(x, state)
    assert torch.equal(first.pred, second.pred)
    assert largest_gap(state, kept) == 0
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())


def test_dropping_the_state_changes_no_output(kind: str, build: Build, float64: None) -> None:
    model, x = build(kind), tokens(2, 23)
    labels = tokens(2, 23, 1)
    kept, _ = model.nll(x, labels, keep=True)
    kept.sum().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    dropped, _ = model.nll(x, labels, keep=False)
    dropped.sum().backward()
    assert torch.equal(kept, dropped)
    for name, parameter in model.named_parameters():
        assert (parameter.grad - grads[name]).abs().max() < EXACT, name


def test_nll_agrees_with_logits(kind: str, build: Build, float64: None) -> None:
    model, x = build(kind), tokens(3, 23)
    labels = tokens(3, 23, 1)
    labels[0, 5] = -100
    nll, out = model.nll(x, labels)
    logits = model(x, targets=labels)
    expected = torch.nn.functional.cross_entropy(
        logits.pred.flatten(0, 1), labels.flatten(), reduction="none"
    ).view_as(labels)
    assert (nll - expected).abs().max() < 1e-12
    assert torch.equal(out.pred, logits.pred.argmax(-1) == labels)
    assert largest_gap(out.state, logits.state) < EXACT


class Recorder(TorchDispatchMode):
    """Names of all operations that run, backward included."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket._qualified_op_name)
        return func(*args, **(kwargs or {}))


def test_no_scalar_is_read_inside_a_step(kind: str, build: Build) -> None:
    model, x = build(kind), tokens(2, 2 * max(PERIODS) + 1)
    with Recorder() as recorded:
        nll, _ = model.nll(x[:, :-1], x[:, 1:])
        nll.sum().backward()
    assert "aten::mm" in recorded.names
    syncs = {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::is_nonzero"}
    assert not recorded.names & syncs
    with Recorder() as control:
        float(x.sum())
    assert control.names & syncs


def largest_memory(model: Any, state: Any) -> float:
    """Largest norm of a tensor of the State; those of levels as they act, times their rate."""
    found = [states.tensors(block.mixers) for block in state.blocks]
    for block, held in zip(model.blocks, state.blocks, strict=True):
        for level, memory in zip(
            block.levels.levels if block.levels else (), held.levels or (), strict=True
        ):
            acts = level.weights(memory)
            up, down = (memory.fast_up, memory.sum_up), (memory.fast_down, memory.sum_down)
            found.append([acts.rate_up * t for t in up if t is not None])
            found.append([acts.rate_down * t for t in down if t is not None])
    return max((float(t.float().norm()) for part in found for t in part), default=0.0)


@pytest.mark.parametrize("fill", ["random", "constant"])
def test_stable_over_a_long_stream(kind: str, fill: str, build: Build) -> None:
    periods = {"cms": {"periods": [64, 256], "rate": 1.0}, "selfmod": {"period": 64}}
    model = build(kind, **periods, titan={"period": 64, "window": 64})
    state, sizes = None, []
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for i in range(65536 // 512):
            x = tokens(2, 512, i) if fill == "random" else torch.full((2, 512), 3)
            out = model(x, state)
            # Attention keeps its whole past by design: forget it here, memories stay.
            fresh = model.init_state(2).blocks
            blocks = tuple(
                b._replace(
                    mixers=tuple(
                        f if hasattr(m, "keys") and not hasattr(m, "frozen") else m
                        for m, f in zip(b.mixers, fresh[j].mixers, strict=True)
                    )
                )
                for j, b in enumerate(out.state.blocks)
            )
            state = out.state._replace(blocks=blocks)
            assert torch.isfinite(out.pred).all()
            sizes.append(largest_memory(model, state))
    assert max(sizes) < 1e4
    assert sizes[-1] < 2 * max(sizes[:4]) + 1.0
