"""Muon, M3, deep momentum and scaled SGD against their equations written out, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nl.config import ConfigError, structure
from nl.ops.orthogonal import CUBIC, orthogonalize_reference
from nl.optim.adamw import AdamWSettings
from nl.optim.deep_momentum import DeepMomentumConfig
from nl.optim.m3 import M3Config
from nl.optim.muon import MatrixConfig, MuonConfig
from nl.optim.roles import Role
from nl.optim.scaled_sgd import ScaledSGDConfig

LR, DECAY = 0.03, 0.2
ROLES = {"wide": Role(matrix=True), "tall": Role(matrix=True), "bias": Role(), "conv": Role()}


def parameters() -> list[tuple[str, nn.Parameter]]:
    torch.manual_seed(0)
    shapes = {"wide": (4, 7), "bias": (5,), "tall": (6, 3), "conv": (3, 4)}
    return [(n, nn.Parameter(torch.randn(s, dtype=torch.float64))) for n, s in shapes.items()]


Rule = Callable[[Tensor, Tensor, dict[str, Any], int], Tensor]


def check(config: MatrixConfig, rule: Rule, tolerance: float = 1e-9) -> None:
    """Seven steps of the optimizer against ``rule(W, G, memory, step)`` and, elsewhere, AdamW."""
    named = parameters()
    optimizer = config.build(named, ROLES)
    value = {n: p.detach().clone() for n, p in named}
    memory: dict[str, dict[str, Any]] = {n: {} for n in value}
    others = {n: nn.Parameter(v.clone()) for n, v in value.items() if not ROLES[n].matrix}
    adamw = AdamWSettings().over(list(others.items()))
    for step in range(1, 8):
        for name, parameter in named:
            grad = torch.randn_like(parameter) * 10.0 ** (-step % 3)
            parameter.grad = grad.clone()
            if name in others:
                others[name].grad = grad.clone()
            else:
                value[name] = rule(value[name], grad, memory[name], step)
        optimizer.step()
        adamw.step()
    for name, parameter in named:
        want = others[name].detach() if name in others else value[name]
        torch.testing.assert_close(parameter.detach(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_orthogonalised_momentum(nesterov: bool) -> None:
    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], step: int) -> Tensor:
        del step
        memory["m"] = 0.9 * memory.get("m", 0 * g) + 0.1 * g
        seen = 0.1 * g + 0.9 * memory["m"] if nesterov else memory["m"]
        size = 0.2 * math.sqrt(max(w.shape))
        return w * (1 - LR * DECAY) - LR * size * orthogonalize_reference(seen)

    config = MuonConfig(lr=LR, weight_decay=DECAY, momentum=0.9, nesterov=nesterov)
    check(config, rule, tolerance=0.02)  # torch.optim.Muon iterates in bf16


def test_muon_with_the_original_size() -> None:
    named = parameters()
    before = {n: p.detach().clone() for n, p in named}
    config = MuonConfig(lr=LR, weight_decay=0.0, momentum=0.0, nesterov=False, adjust="original")
    optimizer = config.build(named, ROLES)
    for _, parameter in named:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    for name, parameter in named[::2]:
        assert parameter.grad is not None
        step = LR * math.sqrt(max(1, parameter.shape[0] / parameter.shape[1]))
        want = before[name] - step * orthogonalize_reference(parameter.grad)
        torch.testing.assert_close(parameter.detach(), want, rtol=0, atol=0.02 * step)


def test_m3_decayed() -> None:
    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], step: int) -> Tensor:
        for name in ("m1", "m2", "v", "b", "o2"):
            memory.setdefault(name, 0 * g)
        memory["m1"] = 0.8 * memory["m1"] + 0.2 * g
        memory["v"] = 0.95 * memory["v"] + 0.05 * g**2
        memory["b"] = memory["b"] + g
        direction = orthogonalize_reference(memory["m1"]) + 0.5 * memory["o2"]
        root = (memory["v"] / memory["v"].mean()).sqrt() + 0.1
        new: Tensor = w * (1 - LR * DECAY)
        new = new - LR * 0.2 * math.sqrt(max(w.shape)) * direction / root / 1.5
        if step % 3 == 0:
            memory["m2"] = 0.7 * memory["m2"] + 0.3 * memory["b"]
            memory["o2"], memory["b"] = orthogonalize_reference(memory["m2"]), 0 * g
        return new

    betas = (0.8, 0.95, 0.7)
    check(M3Config(lr=LR, weight_decay=DECAY, betas=betas, alpha=0.5, slow_chunk=3), rule)


def test_m3_as_printed() -> None:
    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], step: int) -> Tensor:
        for name in ("m1", "m2", "v", "b", "o2"):
            memory.setdefault(name, 0 * g)
        g = g + DECAY * w
        memory["m1"] = memory["m1"] + 0.8 * g
        memory["v"] = memory["v"] + 0.95 * g**2
        memory["b"] = memory["b"] + g
        first = orthogonalize_reference(memory["m1"], steps=3, coefficients=CUBIC)
        new: Tensor = w - LR * (first + 0.5 * memory["o2"]) / (memory["v"].sqrt() + 1e-8)
        if step % 3 == 0:
            memory["m2"] = memory["m2"] + 0.7 * memory["b"]
            memory["b"] = 0 * g
            memory["o2"] = orthogonalize_reference(memory["m2"], steps=3, coefficients=CUBIC)
        return new

    config = M3Config(
        lr=LR, weight_decay=DECAY, betas=(0.8, 0.95, 0.7), alpha=0.5, slow_chunk=3, literal=True
    )
    check(config, rule, tolerance=1e-8)


@pytest.mark.parametrize("objective", ["l2", "dot"])
@pytest.mark.parametrize("output", ["rms", "orthogonal"])
def test_deep_momentum_is_gradient_descent_on_its_inner_loss(objective: Any, output: Any) -> None:
    def recall(up: Tensor, down: Tensor, x: Tensor) -> Tensor:
        return torch.nn.functional.silu(x @ up.T) @ down.T / math.sqrt(5)

    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], step: int) -> Tensor:
        del step
        if not memory:
            index = 0 if w.shape == (4, 7) else 1
            draw = torch.randn(5, w.shape[1], generator=torch.Generator().manual_seed(index))
            memory["a"] = memory["up"] = draw.double()
            memory["down"] = torch.zeros(w.shape[1], 5, dtype=torch.float64)
        x = g / (g.square().mean().sqrt() * math.sqrt(g.shape[1]))
        up, down = (memory[n].clone().requires_grad_() for n in ("up", "down"))
        m = recall(up, down, x)
        rows = ((m + x) ** 2).sum(1) / 2 if objective == "l2" else (m * x).sum(1)
        grads = torch.autograd.grad(rows.mean(), (up, down))
        memory["up"] = memory["a"] + 0.6 * (memory["up"] - memory["a"]) - 0.3 * grads[0]
        memory["down"] = 0.6 * memory["down"] - 0.3 * grads[1]
        m = recall(memory["up"], memory["down"], x)
        if output == "rms":
            update = 0.2 * m / m.square().mean().sqrt()
        else:
            update = 0.2 * math.sqrt(max(w.shape)) * orthogonalize_reference(m)
        return w * (1 - LR * DECAY) + LR * update

    config = DeepMomentumConfig(
        lr=LR,
        weight_decay=DECAY,
        hidden=5,
        retention=0.6,
        inner_rate=0.3,
        objective=objective,
        output=output,
    )
    check(config, rule, tolerance=1e-8)


def test_scaled_sgd_follows_the_norm_of_each_neuron() -> None:
    torch.manual_seed(1)
    shapes = {"into": (4, 3), "out": (2, 4), "free": (3, 3)}
    named = [(n, nn.Parameter(torch.randn(s, dtype=torch.float64))) for n, s in shapes.items()]
    roles = {"into": Role(neurons=("", 0)), "out": Role(neurons=("", 1)), "free": Role()}
    optimizer = ScaledSGDConfig(lr=0.1, exponent=-1.5).build(named, roles)
    into, out, free = (p.detach().clone() for _, p in named)
    adam = nn.Parameter(free)
    reference = torch.optim.Adam([adam], lr=1e-3, betas=(0.9, 0.999))
    for _ in range(3):
        for _, parameter in named:
            parameter.grad = torch.randn_like(parameter)
        g_into, g_out, adam.grad = (p.grad for _, p in named)
        assert g_into is not None
        assert g_out is not None
        for i in range(4):
            norm = math.sqrt(float((into[i] ** 2).sum() + (out[:, i] ** 2).sum()) + 1e-12)
            into[i] -= 0.1 * norm**-1.5 * g_into[i]
            out[:, i] -= 0.1 * norm**-1.5 * g_out[:, i]
        optimizer.step()
        reference.step()
    for (_, parameter), want in zip(named, (into, out, adam.detach()), strict=True):
        torch.testing.assert_close(parameter.detach(), want, rtol=1e-10, atol=1e-12)


CONFIGS = [MuonConfig(), M3Config(slow_chunk=4), DeepMomentumConfig(), MuonConfig(steps=3)]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.kind)
def test_a_small_regression_is_learned(config: MatrixConfig) -> None:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))
    x = torch.randn(256, 8)
    y = torch.stack((x[:, 0] * x[:, 1], x[:, 2].sin()), 1)
    named = list(net.named_parameters())
    optimizer = config.build(named, {n: Role(matrix=n == "2.weight") for n, _ in named})
    losses = []
    for step in range(200):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 - step / 200)
        loss = nn.functional.mse_loss(net(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("config", CONFIGS[:3], ids=lambda c: c.kind)
def test_no_gradient_and_zero_gradients_move_nothing_but_the_decay(config: MatrixConfig) -> None:
    named = parameters()
    optimizer = config.build(named, ROLES)
    before = [p.detach().clone() for _, p in named]
    optimizer.step()
    assert all(torch.equal(a, p) for a, (_, p) in zip(before, named, strict=True))
    for _, parameter in named:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(named[0][1].detach(), before[0] * (1 - 1e-3 * 0.1))


@pytest.mark.parametrize(
    "config",
    [c for c in CONFIGS if not getattr(c, "literal", False)],  # as printed sums do not decay
    ids=lambda c: f"{c.kind}-{CONFIGS.index(c)}",
)
def test_a_matrix_without_gradients_comes_to_rest(config: MatrixConfig) -> None:
    """Momentum decays to nothing over many steps: numbers stay finite on the way."""
    named = parameters()
    optimizer = config.build(named, ROLES)
    generator = torch.Generator().manual_seed(0)
    for step in range(1100):
        for _, parameter in named:
            drawn = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.grad = drawn if step < 5 else torch.zeros_like(parameter)
        before = [p.detach().clone() for _, p in named]
        optimizer.step()
    assert all(bool(torch.isfinite(p).all()) for _, p in named)
    decay = 1 - 1e-3 * 0.1
    moved = named[0][1].detach() - before[0]
    assert float(moved.norm()) < 2 * (1 - decay) * float(before[0].norm())


def test_models_without_matrices_or_neurons_are_refused() -> None:
    named = parameters()[1:2]
    with pytest.raises(ConfigError, match="muon; this model has no hidden matrix"):
        MuonConfig().build(named, ROLES)
    with pytest.raises(ConfigError, match="which weights belong to which neuron"):
        ScaledSGDConfig().build(named, ROLES)


@pytest.mark.parametrize(
    ("cls", "key", "value"),
    [
        (MuonConfig, "lr", 0.0),
        (MuonConfig, "momentum", 1.0),
        (MuonConfig, "steps", 0),
        (MuonConfig, "weight_decay", -0.1),
        (M3Config, "betas", [0.9, 0.9]),
        (M3Config, "alpha", -1.0),
        (M3Config, "slow_chunk", 0),
        (M3Config, "steps", 100),
        (M3Config, "floor", 0.0),
        (DeepMomentumConfig, "hidden", 0),
        (DeepMomentumConfig, "retention", 1.0),
        (DeepMomentumConfig, "inner_rate", 0.0),
        (ScaledSGDConfig, "lr", 0.0),
    ],
)
def test_values_out_of_range_are_refused(cls: type, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^optim\.{key}: "):
        structure(cls, {key: value}, "optim")
