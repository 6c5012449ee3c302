"""Networks for group composition: against loops; they climb down the stairs that theory says."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from nl.config import ConfigError, structure
from nl.config.groups import ModelConfig
from nl.core.groups.staircase import growth_rate, levels, staircase
from nl.data.groups import GroupCompositionConfig
from nl.models.composition import SequentialMLPConfig, TwoLayerConfig
from nl.objectives.regress import RegressConfig
from nl.optim.roles import parameter_roles
from nl.optim.scaled_sgd import ScaledSGDConfig


def test_sequential_mlp_neuron_by_neuron() -> None:
    config = SequentialMLPConfig(size=4, length=3, hidden=5, init_scale=1.0)
    model = config.build().double()
    words = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    for row, word in enumerate(words):
        wanted = torch.zeros(4, dtype=torch.float64)
        for i in range(5):
            drive = sum(model.drive[i, 4 * t : 4 * t + 4] @ word[t] for t in range(3))
            wanted = wanted + model.out[:, i] * drive**3
        torch.testing.assert_close(model(words).pred[row], wanted)
    assert torch.autograd.gradcheck(lambda x: model(x).pred, (words,))
    wide = SequentialMLPConfig(size=4, length=3, hidden=500, init_scale=2.0).build()
    assert wide.drive.std().item() == pytest.approx(2 / 12**0.5, rel=0.05)
    assert model.flops_per_token() == 2 * (5 * 12 + 5 * 4) // 3
    assert model.shard_units() == []
    with pytest.raises(ValueError, match="2 elements; this model composes 3"):
        model(torch.randn(2, 2, 4))


@pytest.mark.parametrize("activation", ["square", "relu", "linear", "tanh", "gelu"])
def test_two_layers_neuron_by_neuron(activation: Any) -> None:
    config = TwoLayerConfig(
        size=4, hidden=6, init_scale=1.0, activation=activation, output_scale=0.5
    )
    model = config.build().double()
    phi: Any = {"square": lambda x: x * x, "linear": lambda x: x}.get(
        activation, getattr(torch.nn.functional, activation, None)
    )
    words = torch.randn(3, 2, 4, dtype=torch.float64)
    for row, (x, y) in enumerate(words):
        wanted = 0.5 * sum(
            phi(model.left[i] @ x + model.right[i] @ y) * model.out[i] for i in range(6)
        )
        torch.testing.assert_close(model(words).pred[row], wanted)
    assert model.flops_per_token() * 2 == 2 * 3 * 6 * 4
    with pytest.raises(ValueError, match="3 elements; this model composes 2"):
        model(torch.randn(2, 3, 4))


@pytest.mark.parametrize(
    ("model", "degree"),
    [
        (SequentialMLPConfig(size=3, length=3, hidden=4, init_scale=1.0), 4),
        (TwoLayerConfig(size=3, hidden=4, init_scale=1.0), 3),
        (TwoLayerConfig(size=3, hidden=4, init_scale=1.0, activation="relu"), 2),
    ],
)
def test_the_degree_of_a_neuron_is_the_one_of_its_output(model: Any, degree: int) -> None:
    built = model.build().double()
    words = torch.randn(5, getattr(model, "length", 2), 3, dtype=torch.float64)
    before = built(words).pred
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(1.5)
    torch.testing.assert_close(built(words).pred, before * 1.5**degree)
    roles = parameter_roles(RegressConfig().build(built))
    assert {role.degree for role in roles.values()} == {degree}
    named = list(RegressConfig().build(built).named_parameters())
    optimizer = ScaledSGDConfig().build(named, roles)
    assert optimizer.param_groups[0]["exponent"] == 2 - degree


def test_an_unknown_degree_asks_for_the_exponent() -> None:
    objective = RegressConfig().build(TwoLayerConfig(activation="tanh").build())
    named = list(objective.named_parameters())
    with pytest.raises(ConfigError, match="exponent: null; this model is not homogeneous"):
        ScaledSGDConfig().build(named, parameter_roles(objective))
    built = ScaledSGDConfig(exponent=-1.0).build(named, parameter_roles(objective))
    assert built.param_groups[0]["exponent"] == -1.0


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"kind": "sequential_mlp", "length": 1}, "model.length: 1; must be >= 2"),
        ({"kind": "sequential_mlp", "init_scale": 0}, "model.init_scale: 0.0; must be > 0"),
        ({"kind": "two_layer", "hidden": 0}, "model.hidden: 0; must be >= 1"),
        ({"kind": "two_layer", "output_scale": 0}, "model.output_scale: 0; nothing could"),
        ({"kind": "two_layer", "activation": "sine"}, "model.activation: unknown 'sine'"),
    ],
)
def test_bad_settings(data: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        structure(ModelConfig, data, "model")


def descent(
    cfg: GroupCompositionConfig, model: Any, lr: float, steps: int
) -> tuple[list[float], list[dict[str, float]]]:
    """Losses and powers per irrep of full-batch training with per-neuron steps."""
    torch.manual_seed(0)
    objective = RegressConfig(spectrum=cfg.group_name).build(model.build())
    named = list(objective.named_parameters())
    optimizer = ScaledSGDConfig(lr=lr).build(named, parameter_roles(objective))
    batch = next(iter(cfg.build("train", seed=0, rank=0, world=1)))
    losses, powers = [], []
    for _ in range(steps):
        optimizer.zero_grad()
        out = objective(batch)
        (out.loss / batch.weight).backward()
        optimizer.step()
        losses.append(out.loss.item() / batch.weight)
        powers.append(
            {
                key.removeprefix("power/").removesuffix("_sum"): value.item() / batch.weight
                for key, value in out.metrics.items()
                if key.startswith("power/")
            }
        )
    return losses, powers


CASES = {
    "C10": (
        GroupCompositionConfig(group_name="C10", batch_size=100),
        SequentialMLPConfig(size=10, hidden=128, init_scale=1e-4),
        3.4,
        900,
    ),
    "C3xC3": (
        GroupCompositionConfig(
            group_name="C3xC3",
            length=3,
            template="fourier",
            frequencies=2,
            amplitudes=(100, 50),
            batch_size=729,
        ),
        SequentialMLPConfig(size=9, length=3, hidden=128, init_scale=0.01),
        0.033,
        1100,
    ),
    "D3": (
        GroupCompositionConfig(
            group_name="D3", template="powers", powers={"1b": 3, "2a": 30}, batch_size=36
        ),
        TwoLayerConfig(size=6, hidden=180, init_scale=0.001),
        0.0089,
        1100,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_learning_follows_the_staircase(name: str) -> None:
    """Plateaus within 1 %, irreps in the predicted order, growth of the first within 12 %."""
    cfg, model, lr, steps = CASES[name]
    group, template = cfg.finite_group(), cfg.values()
    stairs = staircase(group, template, cfg.length)
    losses, powers = descent(cfg, model, lr, steps)
    known = {one: float(p) for one, p in zip(powers[0], template_powers(cfg), strict=True)}
    assert losses[0] == pytest.approx(levels(stairs)[0], rel=0.01)
    assert losses[-1] < 0.01 * losses[0]
    # On every plateau there is a moment that is within 1 % of theory and slower than its sides.
    for level in levels(stairs)[1:-1]:
        assert np.abs(np.asarray(losses) / level - 1).min() < 0.01
        near = [n for n, loss in enumerate(losses) if abs(loss / level - 1) < 0.05]
        assert len(near) >= 25, f"{level}: {len(near)} steps"
    half = {
        one: next(n for n, p in enumerate(powers) if p[one] > 0.5 * known[one])
        for step in stairs
        for one in step.names
    }
    for earlier, later in itertools.pairwise(stairs):
        assert max(half[one] for one in earlier.names) < min(half[one] for one in later.names)
    # As long as it is small, what neurons of size |theta| write has the power |theta|^(2 (k + 1)).
    first = stairs[0].names[0]
    small = [1e-8 * known[first] < p[first] < 1e-5 * known[first] for p in powers]
    rising = [(n, p[first]) for n, (p, one) in enumerate(zip(powers, small, strict=True)) if one]
    (start, begin), (end, done) = rising[0], rising[-1]
    measured = float(np.log(done / begin)) / (end - start) / (2 * (cfg.length + 1))
    expected = growth_rate(group, stairs[0].utility, cfg.length, lr)
    assert measured == pytest.approx(np.log1p(expected), rel=0.05)


def template_powers(cfg: GroupCompositionConfig) -> list[float]:
    from nl.core.groups.irreps import powers

    group = cfg.finite_group()
    return [float(p) / group.order for p in powers(group, cfg.values()).values()]


def test_the_spectrum_of_predictions() -> None:
    cfg = GroupCompositionConfig(group_name="S4", template="powers", powers={"2a": 3, "3b": 2})
    batch = next(iter(cfg.build("val", seed=0, rank=0, world=1)))

    class Perfect(torch.nn.Module):
        def forward(self, inputs: Any, state: Any = None, knobs: Any = None) -> Any:
            from nl.core.output import Output

            return Output(batch.targets)

    out = RegressConfig(spectrum="S4").build(Perfect())(batch)
    found = {k: v.item() / batch.weight for k, v in out.metrics.items() if k.startswith("power")}
    expected = {"1a": 0, "1b": 0, "2a": 3 / 24, "3a": 0, "3b": 2 / 24}
    assert found == pytest.approx({f"power/{k}_sum": v for k, v in expected.items()}, abs=1e-6)
    with pytest.raises(ValueError, match="24 numbers against a group of 6"):
        RegressConfig(spectrum="D3").build(Perfect())(batch)
    with pytest.raises(ConfigError, match="spectrum: 'Z9': no group"):
        RegressConfig(spectrum="Z9")
