"""The laws of the self-modifying memory; ``test_selfmod_exact`` has the token loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from nl.config import ConfigError
from nl.core.state import detach, flatten, select_rows, tensors, unflatten
from nl.nn.selfmod import SelfMod, SelfModConfig

EXACT = 1e-9
SINGLE = 1e-4
DIM = 8

SMALL: dict[str, Any] = {"head_size": 4, "hidden": 8, "period": 4}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"period": 1},
    {"output_rule": "delta", "activation": "gelu"},
    {"output_rule": "decay", "objective": "dot"},
    {"skip": True, "direct_gates": False},
    {"target": "self", "adaptive_q": True},
    {"target": "self", "skip": True},
    {"target": "self", "target_norm": False, "hidden": 4},
    {"gate_hidden": 3},
    {"retention": "zero", "conv": 0},
    {"retention": "row_norm", "conv": 2},
    {"period": 6, "period_other": 3},
    {"period": 2, "period_other": 8},
]
NAMES = ["-".join(f"{k}={v}" for k, v in kw.items()) or "default" for kw in VARIANTS]
each_variant = pytest.mark.parametrize("kw", VARIANTS, ids=NAMES)


def layer(seed: int = 0, dim: int = DIM, **kw: Any) -> SelfMod:
    """A float64 layer whose output projection is not zero and whose gates are lively."""
    torch.manual_seed(seed)
    module = SelfMod(SelfModConfig(**{**SMALL, **kw}), dim).double()
    with torch.no_grad():
        module.out.weight.normal_()
        module.gain.normal_(1.0, 0.1)
        module.memory_output.mul_(3)
        module.gates_output.mul_(5)
        module.other_rate.add_(3)
        module.hidden_rate.add_(3)
    return module


def tokens(rows: int, length: int, dim: int = DIM, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, length, dim, generator=generator, dtype=torch.float64)


def graded(m: SelfMod, x: Tensor, run: Callable[[Tensor], tuple[Tensor, ...]]) -> list[Tensor]:
    """Everything a run yields, then the gradients of a fixed mix of it for x and parameters."""
    leaf = x.clone().requires_grad_()
    values = run(leaf)
    generator = torch.Generator().manual_seed(7)
    loss = sum((v * torch.randn(v.shape, generator=generator, dtype=v.dtype)).sum() for v in values)
    grads = torch.autograd.grad(loss, [leaf, *m.parameters()])
    return [*(v.detach() for v in values), *grads]


def run_cut(m: SelfMod, x: Tensor, cuts: list[int]) -> tuple[Tensor, ...]:
    state, position, parts = None, 0, []
    for size in cuts:
        y, state = m(x[:, position : position + size], state, position=position)
        parts.append(y)
        position += size
    return (torch.cat(parts, dim=1), *tensors(state))


@each_variant
@pytest.mark.parametrize("cuts", [[1] * 13, [5, 8], [3, 1, 9], [4, 4, 4, 1]])
def test_any_cut_gives_the_same(kw: dict[str, Any], cuts: list[int]) -> None:
    m, x = layer(**kw), tokens(2, 13)
    whole = graded(m, x, lambda leaf: run_cut(m, leaf, [13]))
    parts = graded(m, x, lambda leaf: run_cut(m, leaf, cuts))
    for value, wanted in zip(parts, whole, strict=True):
        assert (value - wanted).norm() <= EXACT * wanted.norm().clamp(min=1.0)


@each_variant
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_causal(kw: dict[str, Any], seed: int) -> None:
    m, x = layer(seed, **kw), tokens(1, 13, seed=seed)
    before = m(x, position=0)[0]
    for t in (0, 5, 12):
        changed = x.clone()
        changed[:, t] += 1
        after = m(changed, position=0)[0]
        assert torch.equal(before[:, :t], after[:, :t])
        assert (before[:, t] - after[:, t]).abs().max() > 1e-6


@each_variant
def test_rows_do_not_meet(kw: dict[str, Any]) -> None:
    m, x = layer(**kw), tokens(3, 13)
    y, state = m(x, position=0)
    alone, own = m(x[1:2], position=0)
    assert torch.allclose(y[1:2], alone, atol=1e-12)
    picked = tensors(select_rows(state, [1]))
    for value, wanted in zip(tensors(own), picked, strict=True):
        assert torch.allclose(value, wanted, atol=1e-12)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(m(leaf, position=0)[0][1].sum(), leaf)
    assert gradient[0].abs().max() == 0
    assert gradient[2].abs().max() == 0


@each_variant
@pytest.mark.parametrize("position", [0, 5])
def test_a_write_happens_exactly_where_a_chunk_ends(kw: dict[str, Any], position: int) -> None:
    m, state, count = layer(**kw), None, [0, 0]
    x = tokens(1, 13)
    for t in range(13):
        old = m.init_state(1) if state is None else state
        _, state = m(x[:, t : t + 1], old, position=position + t)
        for i, (period, was, now) in enumerate(
            [
                (m.period, old.memory, state.memory),
                (m.period_other, (old.makers, old.gates), (state.makers, state.gates)),
            ]
        ):
            due = (position + t + 1) % period == 0
            count[i] += due
            same = all(torch.equal(a, b) for a, b in zip(tensors(was), tensors(now), strict=True))
            assert same != due
        assert list(state.writes) == count
    assert count[0] == (position + 13) // m.period - position // m.period


@each_variant
def test_frozen_tokens_are_read_but_not_written(kw: dict[str, Any]) -> None:
    m, x = layer(**kw), tokens(2, 13)
    _, state = m(x[:, :5], position=0)
    y, frozen = m(x[:, 5:], state, position=5, write=False)
    kept = {"frozen": 0, "tail": None}
    same = tensors(frozen._replace(**kept)), tensors(state._replace(**kept))
    assert all(torch.equal(a, b) for a, b in zip(*same, strict=True))
    assert (frozen.frozen, frozen.writes) == (8, state.writes)
    parts, halfway = [], state
    for t in range(5, 13):
        part, halfway = m(x[:, t : t + 1], halfway, position=t, write=False)
        parts.append(part)
    assert torch.allclose(torch.cat(parts, dim=1), y, atol=1e-12)
    # With no convolution to see them, the frozen tokens might as well not have been there.
    if m.conv is None:
        resumed = tensors(m(x[:, :4], frozen, position=13)[1]._replace(**kept))
        wanted = tensors(m(x[:, :4], state, position=5)[1]._replace(**kept))
        assert all(torch.equal(a, b) for a, b in zip(resumed, wanted, strict=True))


def test_no_rate_no_change() -> None:
    m = layer()
    with torch.no_grad():
        m.rate_bias.fill_(-1e4)
    _, state = m(tokens(2, 12), position=0)
    assert state.writes == (3, 3)
    assert all(t.abs().max() == 0 for t in tensors((state.memory, state.makers, state.gates)))


@each_variant
def test_every_parameter_learns(kw: dict[str, Any]) -> None:
    m = layer(**kw)
    x = tokens(2, 2 * max(m.period, m.period_other) + 1)
    m(x, position=0)[0].square().sum().backward()
    for name, parameter in m.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_a_fresh_layer_adds_nothing_and_starts_with_small_writes() -> None:
    m = SelfMod(SelfModConfig(head_size=16, hidden=16), 32)
    y, state = m(torch.randn(2, 64, 32), position=0)
    assert y.abs().max() == 0
    assert state.writes == (1, 1)
    start = m.makers_hidden.norm() * 2**0.5
    assert 0 < state.makers.hidden.norm() < 0.2 * start


@pytest.mark.parametrize("kind", ["random", "constant"])
def test_sixty_five_thousand_tokens_stay_bounded(kind: str) -> None:
    torch.manual_seed(0)
    m = SelfMod(SelfModConfig(head_size=16, hidden=16), 16)
    torch.nn.init.normal_(m.out.weight)
    x = torch.randn(2, 4096, 16) if kind == "random" else torch.randn(2, 1, 16).expand(2, 4096, 16)
    state, sizes = None, []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for i in range(16):
            y, state = m(x.roll(i, dims=1), state, position=4096 * i)
            sizes.append(float(torch.stack([t.norm() for t in tensors(state)]).norm()))
            assert torch.isfinite(y).all()
    assert state is not None
    assert state.writes == (1024, 1024)
    assert all(t.dtype == torch.float32 for t in tensors(state))
    assert max(sizes) < 100
    assert sizes[-1] < 1.5 * max(sizes[:4])


def test_single_precision_follows_double() -> None:
    m, x = layer(), tokens(2, 21)
    wanted = m(x, position=0)[0]
    value = m.float()(x.float(), position=0)[0]
    assert (value.double() - wanted).norm() < SINGLE * wanted.norm()


@pytest.mark.parametrize("how", ["autocast", "parameters"])
def test_half_precision_keeps_its_state_single(how: str) -> None:
    m, x = layer(dim=16).float(), tokens(2, 21, 16).float()
    wanted = m(x, position=0)[0]
    if how == "parameters":
        m, x = m.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        y, state = m(x, position=0)
    assert y.dtype == torch.bfloat16
    assert (y - wanted).norm() < 0.1 * wanted.norm()
    assert all(t.dtype == torch.float32 for t in tensors(state))
    y.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in m.parameters() if p.grad is not None)


HOSTILE: dict[str, Callable[[SelfMod, Tensor], Tensor]] = {
    "large": lambda m, x: x * 1e4,
    "zero": lambda m, x: x * 0,
    "constant": lambda m, x: x[:, :1].expand_as(x),
    "full rate": lambda m, x: set_gates(m, x, rate=1e4),
    "no rate": lambda m, x: set_gates(m, x, rate=-1e4),
    "keeps all": lambda m, x: set_gates(m, x, decay=-1e4),
    "keeps nothing": lambda m, x: set_gates(m, x, decay=1e4),
}


def set_gates(m: SelfMod, x: Tensor, **gates: float) -> Tensor:
    with torch.no_grad():
        for name, bias in gates.items():
            getattr(m, f"{name}_bias").fill_(bias)
    return x


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("length", [1, 3, 21])
def test_hostile_inputs_stay_finite(kind: str, length: int) -> None:
    m = layer().float()
    x = HOSTILE[kind](m, tokens(1, length).float()).clone().requires_grad_()
    y, state = m(x, position=0)
    y.square().sum().backward()
    assert x.grad is not None
    grads = [p.grad for p in m.parameters() if p.grad is not None]
    assert all(torch.isfinite(t).all() for t in [y, x.grad, *grads, *tensors(state)])


def test_state_is_a_value_that_can_be_filed() -> None:
    m, x = layer(conv=0), tokens(2, 10)
    _, state = m(x, position=0)
    named, skeleton = flatten(state)
    again = unflatten(named, skeleton)
    wanted = m(x, state, position=10)[0]
    assert torch.equal(m(x, again, position=10)[0], wanted)
    assert torch.equal(m(x, detach(state), position=10)[0], wanted)
    assert all(t.shape[0] == 2 for t in tensors(state))


def test_the_literal_rule_says_what_it_does() -> None:
    config = SelfModConfig(**SMALL, compat="literal")
    with pytest.warns(UserWarning, match="first table"):
        m = SelfMod(config, DIM)
    rule = (m.config.retention, m.config.output_rule, m.config.target, m.config.target_norm)
    assert rule == ("zero", "decay", "self", False)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"hidden": 6}, "hidden"),
    ({"gate_hidden": 0}, "gate_hidden"),
    ({"head_size": 1}, "head_size"),
    ({"period": 0}, "period"),
    ({"period": 4, "period_other": 6}, "period_other"),
    ({"conv": -1}, "conv"),
    ({"rate": 1.0}, "rate"),
    ({"rate_other": 0.5}, "rate_other"),
    ({"rate_hidden": 0.0}, "rate_hidden"),
    ({"clip": -1.0}, "clip"),
    ({"clip": 0.5, "compat": "literal"}, "clip"),
    ({"retain": 0.0}, "retain"),
    ({"objective": "dot"}, "output_rule"),
    ({"compat": "literal", "retention": "row_norm"}, "retention"),
]


@pytest.mark.parametrize(("kw", "key"), BAD, ids=[str(sorted(kw)) for kw, _ in BAD])
def test_bad_settings_are_refused(kw: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}: "):
        SelfModConfig(**{**SMALL, **kw})


def test_head_size_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="head_size"):
        SelfMod(SelfModConfig(), 96)


def test_defaults_follow_the_evidence() -> None:
    config = dataclasses.asdict(SelfModConfig())
    assert (config["retention"], config["target"]) == ("anchor", "value")
    assert config["output_rule"] == "delta_error"
    assert (config["skip"], config["direct_gates"]) == (False, True)
    m = SelfMod(SelfModConfig(), 64)
    assert torch.allclose((-softplus(m.decay_bias) * 64).exp(), torch.tensor(0.9))


def test_fresh_features_keep_the_angles_of_keys() -> None:
    m = SelfMod(SelfModConfig(head_size=8, hidden=16, gate_hidden=16, adaptive_q=True), 16)
    for hidden, count in ((m.memory_hidden, 1), (m.makers_hidden, 3), (m.gates_hidden, 2)):
        layers = hidden.detach().view(2 * count, 16, 8)
        assert torch.allclose(
            layers.mT @ layers, 2 * torch.eye(8).expand(2 * count, 8, 8), atol=1e-5
        )


def test_features_of_gates_are_as_large_among_few_as_among_many() -> None:
    m = SelfMod(SelfModConfig(head_size=8, hidden=16, gate_hidden=4), 16)
    layers = m.gates_hidden.detach().view(4, 4, 8)
    assert torch.allclose(layers @ layers.mT, torch.eye(4).expand(4, 4, 4), atol=1e-5)


def test_a_memory_without_skip_answers_with_what_was_stored_alone() -> None:
    m = layer(skip=False, period=4)
    x = tokens(1, 8)
    with torch.no_grad():
        m.memory_output.zero_()
    assert m(x[:, :4], position=0)[0].abs().max() < 1e-6
    assert m(x, position=0)[0][:, 4:].abs().max() > 1e-2


def test_gates_may_see_their_token() -> None:
    x = torch.randn(1, 16, 32)

    def spread(**kw: bool) -> float:
        torch.manual_seed(0)
        m = SelfMod(SelfModConfig(head_size=16, hidden=16, period=64, **kw), 32)  # type: ignore[arg-type]
        return float(m(x, position=0)[1].rate[..., :16].detach().std())

    assert spread(direct_gates=True) > 5 * spread(direct_gates=False)
