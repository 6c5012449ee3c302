"""Roles by module, frozen parameters that stay, and the same numbers after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nl.assembly
from nl.config import ConfigError, structure, table
from nl.config.groups import ModelConfig, OptimConfig
from nl.core.batch import Batch
from nl.dist.single import Single
from nl.models.language import LanguageConfig
from nl.nn.attention import AttentionConfig
from nl.nn.cms_config import CMSConfig
from nl.nn.experts_config import ExpertsConfig
from nl.nn.router import Router
from nl.nn.selfmod_config import SelfModConfig
from nl.nn.titan_config import TitanConfig
from nl.objectives.next_token import NextTokenConfig
from nl.optim.policy import apply_policy
from nl.optim.roles import parameter_roles

HYBRID = ("hope_attention", "hope_selfmod")
DENSE = ExpertsConfig()


def language(*block: str, experts: ExpertsConfig = DENSE) -> nn.Module:
    torch.manual_seed(0)
    config = LanguageConfig(
        vocab_size=32,
        dim=16,
        layers=2,
        block=block,
        attention=AttentionConfig(heads=2),
        cms=CMSConfig(periods=(16, 32)),
        selfmod=SelfModConfig(head_size=8, hidden=8, period=8),
        titan=TitanConfig(head_size=8, period=8),
        experts=experts,
    )
    model = config.build()
    for name, parameter in model.named_parameters():
        if name.endswith("mixers.0.out.weight"):
            nn.init.normal_(
                parameter, std=0.1
            )  # a zero one hides its branch from what is before it
    return NextTokenConfig().build(model)


def small(kind: str, **fields: Any) -> ModelConfig:
    return structure(ModelConfig, {"kind": kind, **fields}, "model")


def batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(32, (2, 41), generator=generator)
    return Batch(tokens[:, :-1], tokens[:, 1:], weight=80)


def test_roles_follow_the_module_not_the_name() -> None:
    roles = parameter_roles(language(*HYBRID))
    memory = {n for n, role in roles.items() if role.memory}
    assert all("levels" in n or n.startswith("model.blocks.1.mixers") for n in memory)
    assert {n for n in roles if ".levels." in n} <= memory
    assert {n for n in roles if n.startswith("model.blocks.1.mixers.0")} <= memory
    matrix = {n for n, role in roles.items() if role.matrix}
    assert matrix == {
        "model.blocks.0.mixers.0.qkv.weight",
        "model.blocks.0.mixers.0.out.weight",
        *(f"model.blocks.{b}.levels.levels.{i}.{w}.weight"
          for b in range(2) for i in range(2) for w in ("up", "down")),
        "model.blocks.1.mixers.0.project.weight",
        "model.blocks.1.mixers.0.out.weight",
    }  # fmt: skip


@pytest.mark.parametrize("kind", sorted(table("block")))
def test_every_block_with_a_memory_says_which_parameters_are_its(kind: str) -> None:
    roles = parameter_roles(language(kind))
    names = {n for n, role in roles.items() if role.memory and "blocks.0" in n}
    assert bool(names) == kind.startswith(("hope_", "titan_"))
    attends = ("qkv.weight", "attention.out.weight", "persistent", "mlp", "norms")
    assert not [n for n in names if any(word in n for word in attends)]
    assert not [n for n, role in roles.items() if role.matrix and "gate_input" in n]
    if kind == "titan_mac":
        assert "model.blocks.0.mixers.0.ask.weight" in names
    assert {n for n in roles if "bank." in n or ".levels." in n or "gates" in n} <= {
        n for n, role in roles.items() if role.memory
    }


def test_the_gated_delta_rule_is_no_memory_and_its_rates_no_matrix() -> None:
    roles = parameter_roles(language("gated_delta"))
    assert not any(role.memory for role in roles.values())
    matrix = {n for n, role in roles.items() if role.matrix and "blocks.0.mixers" in n}
    assert {n.split(".")[-2] for n in matrix} == {"qkv", "gate", "out"}


def test_declarations_win_and_the_innermost_most_of_all() -> None:
    class Inner(nn.Module):
        memory_parameters = False

        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(2, 2)

    class Outer(nn.Module):
        shortest_period = 8
        hidden_matrices = {"gate.weight": False, "raw": True}  # noqa: RUF012
        neuron_axes = {"raw": 1}  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__()
            self.gate, self.inner = nn.Linear(2, 2), Inner()
            self.raw = nn.Parameter(torch.ones(2, 3))

        def shard_units(self) -> list[nn.Module]:
            return [self]

    roles = parameter_roles(nn.Sequential(Outer()))
    assert not any(role.matrix for n, role in roles.items() if n != "0.raw")  # no unit around them
    roles = parameter_roles(Outer())
    assert {n for n, role in roles.items() if role.matrix} == {"raw", "inner.line.weight"}
    assert {n for n, role in roles.items() if role.memory} == {"gate.weight", "gate.bias", "raw"}
    assert roles["raw"].neurons == ("", 1)


def test_neurons_of_the_quadratic_network() -> None:
    objective: Any = small("quadratic_rnn", size=3, hidden=4)
    roles = parameter_roles(objective.build())
    assert {n: role.neurons for n, role in roles.items()} == {
        "first": ("", 0),
        "cell.drive": ("", 0),
        "out": ("", 1),
        "cell.mix": None,
    }
    assert [n for n, role in roles.items() if role.matrix] == ["cell.mix"]


def prepared(optim: dict[str, Any], objective: nn.Module | None = None) -> Single:
    strategy = Single.start("cpu")
    objective = objective or language(*HYBRID)
    config: Any = structure(OptimConfig, optim, "optim")
    roles = parameter_roles(objective)
    apply_policy(objective, config.policy, roles)
    strategy.setup(
        objective, lambda named: config.build(named, roles), max_norm=1.0, precision="fp32"
    )
    return strategy


def steps(strategy: Single, first: int, last: int) -> None:
    for seed in range(first, last):
        strategy.backward(strategy.forward(batch(seed), None, None).loss / 80)
        strategy.grad_norm()
        strategy.step(1.0)


KINDS = [
    {"kind": "adamw"},
    {"kind": "muon"},
    {"kind": "m3", "slow_chunk": 2},
    {"kind": "m3", "literal": True, "slow_chunk": 2},
    {"kind": "dmgd", "hidden": 4},
]


@pytest.mark.parametrize("optim", KINDS, ids=str)
@pytest.mark.parametrize("policy", ["memory_only", "exclude_memory"])
def test_frozen_parameters_stay_bitwise_and_the_others_move(
    optim: dict[str, Any], policy: str
) -> None:
    strategy = prepared({**optim, "policy": policy})
    roles = parameter_roles(strategy.objective)
    before = {n: p.detach().clone() for n, p in strategy.objective.named_parameters()}
    steps(strategy, 0, 3)
    for name, parameter in strategy.objective.named_parameters():
        trained = roles[name].memory == (policy == "memory_only")
        assert parameter.requires_grad == trained
        assert torch.equal(parameter, before[name]) != trained, name


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    ("optim", "memory_learns", "backbone_learns"),
    [
        ({"kind": "adamw"}, True, True),
        ({"kind": "adamw", "policy": "memory_only"}, True, False),
        ({"kind": "adamw", "policy": "exclude_memory"}, False, True),
        ({"kind": "frozen_backbone", "full_steps": 1}, True, False),
    ],
)
def test_a_frozen_router_keeps_its_bias(
    optim: dict[str, Any], memory_learns: bool, backbone_learns: bool, inside: bool
) -> None:
    experts = ExpertsConfig(form="low_rank", count=4, rank=4, k=1, balance=0.1)
    objective = language("hope_attention" if inside else "titan_mal", experts=experts)
    strategy, found = prepared(optim, objective), []
    for seed in range(2):
        steps(strategy, seed, seed + 1)
        strategy.settle(taken=True)
        routers = [m for m in strategy.objective.modules() if isinstance(m, Router)]
        found.append([m.state_dict()["bias"].clone() for m in routers])
    assert found[0]
    moved = {not torch.equal(*biases) for biases in zip(*found, strict=True)}
    assert moved == {memory_learns if inside else backbone_learns}


def test_a_policy_that_leaves_nothing_is_refused() -> None:
    objective = language("transformer")
    with pytest.raises(ConfigError, match=r"memory_only; it leaves nothing.*has no memories"):
        apply_policy(objective, "memory_only", parameter_roles(objective))
    assert all(p.requires_grad for p in objective.parameters())


@pytest.mark.parametrize("optim", [*KINDS, {"kind": "muon", "policy": "memory_only"}], ids=str)
def test_a_resume_continues_bitwise(optim: dict[str, Any], tmp_path: Path) -> None:
    whole, start = prepared(optim), prepared(optim)
    steps(whole, 0, 5)
    steps(start, 0, 3)
    start.save(tmp_path)
    other = prepared(optim)
    other.load(tmp_path)
    steps(other, 3, 5)
    for (name, a), b in zip(
        whole.objective.named_parameters(), other.objective.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
    saved = whole.optimizer.state_dict(), other.optimizer.state_dict()
    assert str(saved[0]) == str(saved[1])


def test_scaled_sgd_trains_the_quadratic_network(tmp_path: Path) -> None:
    parts = {"model": {"kind": "quadratic_rnn", "size": 5}, "objective": {"kind": "regress"}}
    parts |= {"stream": {"kind": "group_composition"}, "schedule": {"kind": "constant"}}
    parts |= {"optim": {"kind": "scaled_sgd", "lr": 0.05}, "run": {"dir": str(tmp_path / "run")}}
    run = {"name": "c5", "train": {"steps": 20}, "checkpoint": {"best": "val/loss"}, **parts}
    path = nl.assembly.launch(run)
    meta = (path / "meta.json").read_text()
    assert '"neurons model"' in meta
    assert '"group": "decay"' in meta


@pytest.mark.parametrize(("name", "value"), [("steps", 4), ("floor", 0.2)])
def test_what_the_printed_m3_does_not_have_is_refused(name: str, value: float) -> None:
    said = rf"optim\.{name}: {value}; literal=true is the algorithm as printed"
    with pytest.raises(ConfigError, match=said):
        structure(OptimConfig, {"kind": "m3", "literal": True, name: value}, "optim")
    structure(OptimConfig, {"kind": "m3", "literal": True, "steps": 3}, "optim")
    structure(OptimConfig, {"kind": "m3", name: value}, "optim")
