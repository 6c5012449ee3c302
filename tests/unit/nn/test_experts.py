"""The sparse layer: gradients of routers, a bandit, balance, knobs, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import nl.assembly  # noqa: F401 - registers the parts
from nl.config import ConfigError, structure
from nl.config.groups import ModelConfig
from nl.core.output import Knobs
from nl.nn.experts import SparseExperts
from nl.nn.experts_config import ExpertsConfig
from nl.nn.router import RouteContext, Router

KINDS: dict[str, dict[str, Any]] = {
    "flat": {},
    "group_limited": {"groups": 4, "group_limit": 2},
    "hierarchical": {"groups": 4},
    "product_key": {},
}
GATES = ("normalised", "probability", "sigmoid")


def layer(seed: int = 0, dim: int = 8, **options: Any) -> SparseExperts:
    torch.manual_seed(seed)
    given = {"form": "low_rank", "count": 16, "rank": 4, **options}
    return SparseExperts(ExpertsConfig(**given), dim, 1.0)


def told(k: int, temperature: float = 1.0) -> RouteContext:
    return RouteContext(torch.tensor(k), torch.tensor(temperature))


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("router", KINDS)
def test_a_gradient_reaches_every_router_parameter(router: str, gate: Any, k: int) -> None:
    if router == "hierarchical" and gate == "sigmoid":
        return
    sparse = layer(router=router, gate=gate, k=k, k_max=4, **KINDS[router])
    y, found = sparse(torch.randn(4, 64, 8), told(k))
    (y * torch.randn_like(y)).sum().backward()
    for name, parameter in sparse.router.named_parameters():
        # Of every row: of an expert, a group, a key, a unit of the query.
        rows = parameter.grad.flatten(0, -2).abs().amax(-1) > 0
        if gate != "sigmoid":
            assert rows.all(), name
        elif router == "product_key":
            assert rows.float().mean() > 0.9, name
        else:  # of the chosen ones
            assert torch.equal(rows, found.counts.sum(0) > 0)
            assert rows.sum() >= 12


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("seed", range(5))
def test_the_better_arm_of_a_bandit_is_found(gate: Any, seed: int) -> None:
    """Two experts, k = 1, reward +1 or -1 for the one that was chosen, with noise in the choice."""
    sparse = layer(seed, dim=2, count=2, rank=1, k=1, gate=gate)
    router, x = sparse.router, torch.ones(1, 16, 2)
    with torch.no_grad():  # the worse arm comes first
        router.weight.copy_(torch.tensor([[-0.2, -0.2], [0.2, 0.2]]))
    optimizer = torch.optim.Adam(router.parameters(), lr=0.05)
    for step in range(200):
        keys = torch.arange(16).view(1, 16) + 16 * step
        chosen, _ = router(x, RouteContext(*told(1)[:2], torch.tensor(1.0), keys))
        reward = torch.where(chosen.ids == 0, 1.0, -1.0)
        optimizer.zero_grad()
        (-(chosen.gates * reward).mean()).backward()
        optimizer.step()
    logits = (x[0, :1] @ router.weight.T).detach()[0]
    good = logits.softmax(0)[0] if gate != "sigmoid" else logits[0].sigmoid()
    assert good >= 0.95
    assert (router(x, told(1))[0].ids == 0).all()


def test_fewer_experts_are_a_knob_and_the_first_of_more() -> None:
    sparse, x = layer(k=4), torch.randn(2, 30, 8)
    chosen, found = sparse.router(x, told(4))
    fewer, counted = sparse.router(x, told(2))
    assert torch.equal(fewer.ids[:, :2], chosen.ids[:, :2])
    assert (fewer.ids[:, 2:] == 16).all()
    assert found.counts.sum() == 240
    assert counted.counts.sum() == 120
    two = SparseExperts(ExpertsConfig(form="low_rank", count=16, rank=4, k=2), 8, 1.0)
    two.load_state_dict(sparse.state_dict())
    torch.testing.assert_close(sparse(x, told(2))[0], two(x, told(2))[0])


def test_temperature_moves_gates_and_noise_moves_choices() -> None:
    sparse, x = layer(gate="probability"), torch.randn(2, 30, 8)
    keys = torch.arange(60).view(2, 30)
    base, _ = sparse.router(x, told(2))
    cold, _ = sparse.router(x, told(2, 0.1))
    assert torch.equal(cold.ids, base.ids)
    assert (cold.gates[:, 0] > base.gates[:, 0]).all()
    noisy, _ = sparse.router(x, RouteContext(*told(2)[:2], torch.tensor(1.0), keys))
    assert (noisy.ids != base.ids).float().mean() > 0.3
    both = (noisy.ids[:, 0] == base.ids[:, 0]).nonzero()[:, 0]
    torch.testing.assert_close(noisy.gates[both, 0], base.gates[both, 0])


def test_the_bias_moves_by_the_sign_and_changes_the_choice_only() -> None:
    sparse, x = layer(balance=0.5, k=1, gate="probability"), torch.randn(2, 300, 8)
    router: Router = sparse.router
    before, found = router(x, told(1))
    router.counted(found)
    router.counted(found)
    load = router.load.clone()
    assert torch.equal(load, 2 * found.counts.sum(0))
    router.rebalance(load)
    step = torch.sign(load.mean() - load)
    torch.testing.assert_close(router.bias, 0.5 * (step - step.mean()))
    assert not router.load.any()
    after, _ = router(x, told(1))
    same = (after.ids == before.ids)[:, 0]
    assert 0 < same.float().mean() < 1
    torch.testing.assert_close(after.gates[same], before.gates[same])
    assert "bias" in router.state_dict()
    assert "load" not in router.state_dict()
    router.counted(found)
    router.rebalance(None)
    assert not router.load.any()
    torch.testing.assert_close(router.bias, 0.5 * (step - step.mean()))


def language(**experts: Any) -> nn.Module:
    data = {"kind": "language", "vocab_size": 17, "dim": 8, "layers": 3, "block": "transformer"}
    given = {"form": "low_rank", "count": 6, "rank": 4, **experts}
    torch.manual_seed(0)
    built: Any = structure(ModelConfig, data | {"attention": {"heads": 2}, "experts": given})
    return built.build()


def test_layers_have_their_own_k_and_the_first_may_stay_dense() -> None:
    model: Any = language(k=[1, 2, 3], first_dense=1)
    assert [len(routers) for routers in model.routers] == [0, 1, 1]
    x = torch.randint(0, 17, (2, 12))
    counts: list[float] = []
    for block in model.blocks[1:]:
        block.mlp.register_forward_hook(lambda m, i, o: counts.append(float(o[1].counts.sum())))
    base = model(x)
    model(x, knobs=Knobs(experts_k=1))
    turned = model(x, knobs=Knobs(experts_k=(1, 3, 1)))
    assert counts == [48, 72, 24, 24, 72, 24]
    assert not torch.equal(turned.pred, base.pred)
    active = 2 * 8 * 4 * (2 + 3)
    dense: Any = language(k=[1, 2, 3], first_dense=1, count=12)
    assert dense.flops_per_token() - model.flops_per_token() == 2 * 2 * 6 * 8  # its routers
    whole = sum(p.numel() for b in model.blocks[1:] for p in (b.mlp.up, b.mlp.down))
    every = [p.numel() for b in model.blocks for p in b.parameters() if p.dim() >= 2]
    assert model.flops_per_token() == 2 * (sum(every) - whole + active + 8 * 17)


def test_training_counts_and_evaluation_does_not() -> None:
    model: Any = language(balance=0.1, switch_loss=0.01, z_loss=0.001)
    x = torch.randint(0, 17, (2, 13))
    _, out = model.nll(x[:, :-1], x[:, 1:])
    assert float(out.aux["loss/experts"].detach()) > 0
    assert [float(r.load.sum()) for rs in model.routers for r in rs] == [48] * 3
    for key in ("effective", "effective_min", "entropy", "dead", "busiest"):
        assert torch.isfinite(out.aux[f"experts/{key}"])
    assert 1 <= out.aux["experts/effective_min"] <= out.aux["experts/effective"] <= 6
    with torch.no_grad():
        _, out = model.eval().nll(x[:, :-1], x[:, 1:])
    assert "loss/experts" not in out.aux
    assert [float(r.load.sum()) for rs in model.routers for r in rs] == [48] * 3


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (Knobs(experts_k=3), r"experts_k: 3; must be from 1 to model\.experts\.k_max \(2\)"),
        (Knobs(experts_k=(1, 2)), r"experts_k: \(1, 2\); must be one number, or one for each"),
        (Knobs(router_noise=0.1), r"router_noise: 0\.1; .* model\.experts\.noise above 0"),
        (Knobs(router_temperature=0.0), r"router_temperature: 0\.0; must be > 0"),
    ],
)
def test_knobs_that_do_not_fit_are_refused(knobs: Knobs, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        language()(torch.zeros(1, 3, dtype=torch.long), knobs=knobs)
    data = {"kind": "language", "vocab_size": 17, "dim": 8, "layers": 1, "block": "transformer"}
    built: Any = structure(ModelConfig, data | {"attention": {"heads": 2}})
    with pytest.raises(ConfigError, match="this model has no experts"):
        built.build()(torch.zeros(1, 3, dtype=torch.long), knobs=knobs)


@pytest.mark.parametrize(
    ("cms", "experts", "message"),
    [
        ({"hidden": 8}, {}, r"cms\.hidden: 8; with experts the width of a level"),
        ({"activation": "swiglu"}, {}, r"form: low_rank; levels have cms\.activation=swiglu"),
        ({}, {"activation": "silu"}, r"experts\.activation: silu; levels have that of"),
        ({"signal": "self", "write_gradient": "through"}, {}, r"cms\.signal: self; a level's own"),
    ],
)
def test_levels_that_do_not_fit_are_refused(
    cms: dict[str, Any], experts: dict[str, Any], message: str
) -> None:
    data = {"kind": "language", "vocab_size": 17, "dim": 8, "layers": 1, "block": "hope_attention"}
    given = {"form": "low_rank", "count": 6, "rank": 4, **experts}
    with pytest.raises(ConfigError, match=message):
        structure(ModelConfig, data | {"cms": cms, "experts": given})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "none"}, r"experts\.count: 6; there are no experts with form=none"),
        ({"count": 1}, r"count: 1; form=low_rank needs at least 2"),
        ({"rank": None}, r"rank: None; form=low_rank needs at least 1 hidden unit"),
        ({"width": 4}, r"width: 4; form=low_rank does not read it"),
        ({"form": "swiglu", "rank": None, "width": 4, "activation": "silu"}, r"activation: silu"),
        ({"k": 7}, r"experts\.k: 7; there are only 6 experts"),
        ({"k_max": 7}, r"experts\.k_max: 7; there are only 6 experts"),
        ({"k": 3, "k_max": 2}, r"k: 3; must be from 1 to k_max \(2\)"),
        ({"k": [1, 2]}, r"experts\.k: \(1, 2\); must be one number, or one for each of the 3"),
        ({"groups": 2}, r"groups: 2; router=flat has no groups"),
        ({"router": "group_limited", "groups": 4}, r"groups: 4; .* a divisor of count \(6\)"),
        ({"router": "group_limited", "groups": 3}, r"group_limit: null; router=group_limited"),
        (
            {"router": "hierarchical", "groups": 6, "group_limit": 1},
            r"group_limit: 1; must be from 1 to 6 groups, which hold k_max \(2\)",
        ),
        ({"router": "product_key"}, r"count: 6; router=product_key needs a square number"),
        ({"router": "product_key", "count": 9, "balance": 0.1}, r"balance: 0\.1; a bias per"),
        ({"key_size": 3}, r"key_size: 3; router=flat has no keys"),
        ({"router": "hierarchical", "groups": 2, "gate": "sigmoid"}, r"gate: sigmoid"),
        ({"first_dense": 3}, r"experts\.first_dense: 3; of model\.layers=3 none"),
        ({"temperature": 0.0}, r"temperature: 0\.0; must be > 0"),
        ({"noise": -1.0}, r"noise: -1\.0; must be >= 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        language(**changes)
