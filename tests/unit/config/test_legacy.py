"""Every row of the table of old keys: what it becomes, or what the refusal says to set."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import nl.assembly  # noqa: F401 - registers the parts
from nl.config import ConfigError, unstructure
from nl.config.hydra import compose, quoted, run_config
from nl.config.legacy import LEGACY, owner, translate, translate_config
from nl.config.legacy_groups import GROUPS

LEVELS = [{"name": "fast", "update_period": 16}, {"name": "slow", "update_period": 64, "jitter": 0}]
KEPT: dict[str, list[tuple[Any, dict[str, Any]]]] = {
    "model.block_variant": [("hope_selfmod", {"model.block": "hope_selfmod"})],
    "model.type": [("hope", {}), ("titan", {"model.block": "titan_mal"})],
    "model.num_layers": [(3, {"model.layers": 3})],
    "model.heads": [(2, {"model.attention.heads": 2})],
    "model.qk_l2_norm": [(False, {"model.attention.qk_norm": False})],
    "model.local_conv_window": [(None, {})],
    "model.cms_levels": [(LEVELS, {"model.cms.periods": [16, 64]})],
    "model.cms_flush_partial_at_end": [(False, {})],
    "model.cms_use_layernorm": [(True, {})],
    "model.teach_scale": [(1.0, {}), (1, {})],
    "model.teach_clip": [(0.0, {})],
    "model.teach_schedule": [(None, {})],
    "model.gradient_checkpointing": [(False, {}), (True, {"train.activation_checkpointing": True})],
    "model.surprise_threshold": [(None, {})],
    "model.surprise_metric": [("l2", {})],
    "model.freeze_backbone": [(True, {"optim.policy": "memory_only"}), (False, {})],
    "model.self_mod_chunk_size": [
        (8, {"model.selfmod.period_other": 8, "model.selfmod.period": 8})
    ],
    "model.self_mod_chunk_size_memory": [(64, {"model.selfmod.period": 64}), (None, {})],
    "model.self_mod_objective": [("dot", {"model.selfmod.objective": "dot"})],
    "model.self_mod_stopgrad_vhat": [(True, {})],
    "model.self_mod_use_rank1_precond": [(True, {})],
    "model.self_mod_use_alpha": [(True, {})],
    "model.self_mod_use_skip": [
        (True, {"model.selfmod.direct_gates": True}),
        (False, {"model.selfmod.direct_gates": False}),
    ],
    "model.transformer_activation": [("gelu", {"model.mlp": "gelu"})],
    "model.self_mod_momentum": [(0.0, {})],
    "model.self_mod_adaptive_q": [(True, {"model.selfmod.adaptive_q": True})],
    "model.self_mod_local_conv_window": [
        (3, {"model.selfmod.conv": 3}),
        (None, {"model.selfmod.conv": 0}),
    ],
    "optim.type": [(kind, {"optim.kind": kind}) for kind in ("adamw", "muon", "m3")],
    "optim.param_policy": [
        ("all", {"optim.policy": "all"}),
        ("only_memory", {"optim.policy": "memory_only"}),
        ("exclude_memory", {"optim.policy": "exclude_memory"}),
    ],
    "optim.outer_updates_memory_modules": [
        (True, {"optim.policy": "all"}),
        (False, {"optim.policy": "exclude_memory"}),
    ],
    "optim.fused": [("auto", {})],
    "optim.ns_steps": [(5, {"optim.steps": 5})],
    "train.algorithm_mode": [
        ("two_pass_stopgrad_updates", {}),
        ("boundary_state_grad_through_write", {"model.cms.write_gradient": "through"}),
    ],
    "train.online_updates": [(True, {})],
    "train.online_chunk_size": [(0, {})],
    "train.per_layer_teach_signal": [(False, {}), (True, {"model.cms.signal": "block"})],
    "train.use_fast_state": [(True, {})],
    "train.log_interval": [(5, {"logging.every": 5})],
    "train.seed": [(7, {"seed": 7})],
    "data.batch_size": [(4, {"stream.batch_size": 4})],
    "data.seq_len": [(128, {"stream.seq_len": 128})],
}
REFUSED: dict[str, list[tuple[Any, str]]] = {
    "model.type": [("rnn", "model.block")],
    "model.qk_l2_norm": [(True, "model.attention.qk_norm=true")],
    "model.local_conv_window": [(4, "model.selfmod.conv")],
    "model.titan_level": [({"name": "titan", "update_period": 8}, "model.titan.period")],
    "model.cms_levels": [
        ([], "model.cms.periods"),
        ([{"name": "a", "update_period": 16, "warmup_steps": 3}], "model.cms.periods"),
        ([{"name": "a", "update_period": "often"}], "model.cms.periods"),
        ([{"name": "a", "update_period": None}], "model.cms.periods"),
        ([{"name": "a", "update_period": 32.9}], "model.cms.periods"),
        ([{"name": "a", "update_period": 32, "clip": 3}], "model.cms.periods"),
    ],
    "model.cms_flush_partial_at_end": [(True, "wait in the state")],
    "model.cms_use_layernorm": [(False, "normalises its input")],
    "model.cms_hidden_multiplier": [(2, "model.cms.hidden")],
    "model.optimizers": [
        ({"default": {"params": {"variant": "basic"}}}, "{kind:momentum}"),
        ({"default": {"params": {"variant": "preconditioned"}}}, "{kind:adam}"),
        ({"default": {"params": {"variant": "muon"}}}, "{kind:muon}"),
        ({"default": {"params": {"variant": "dmgd"}}}, "optim=dmgd"),
        ({"default": {"params": {"variant": "l2_objective"}}}, "{kind:momentum}"),
        ({"default": {"params": {"variant": "nl_l2_precond"}}}, "{kind:delta}"),
        ({"default": {"type": "deep_momentum", "lr": 1e-3}}, "model.cms.rate"),
    ],
    "model.teach_scale": [(0.1, "model.cms.rate")],
    "model.teach_clip": [(5.0, "model.cms.clip")],
    "model.teach_schedule": [({"warmup_steps": 5}, "model.cms.rate")],
    "model.gradient_checkpointing": [("some", "true or false")],
    "model.surprise_threshold": [(0.02, "model.cms.surprise.gate")],
    "model.surprise_metric": [("loss", "model.cms.surprise.gate")],
    "model.self_mod_lr": [(1e-3, "model.selfmod.rate")],
    "model.self_mod_hidden": [(4, "model.selfmod.hidden")],
    "model.self_mod_stopgrad_vhat": [(False, "constants")],
    "model.self_mod_use_rank1_precond": [(False, "model.selfmod.output_rule")],
    "model.self_mod_use_alpha": [(False, "model.selfmod.retain")],
    "model.self_mod_momentum": [(0.9, "titan_lmm")],
    "model.transformer_mlp_hidden_multiplier": [(4, "model.mlp_hidden")],
    "model.transformer_activation": [("relu", "gelu_tanh")],
    "optim.type": [("sgd", "nl help optim")],
    "optim.param_policy": [("some", "memory_only")],
    "optim.ns_coefficients": [([1, 2, 3], "optim.literal")],
    "optim.beta1": [(0.9, "optim.betas")],
    "optim.beta2": [(0.9, "optim.betas")],
    "optim.beta3": [(0.9, "optim.betas")],
    "optim.fused": [(False, "leave it out")],
    "train.algorithm_mode": [("offline", "model.cms.write_gradient")],
    "train.online_updates": [(False, "leave it out")],
    "train.online_chunk_size": [(64, "periods")],
    "train.use_fast_state": [(False, "state")],
}


def test_every_row_has_a_case() -> None:
    assert KEPT.keys() | REFUSED.keys() == LEGACY.keys() - GROUPS.keys()


def test_new_keys_exist() -> None:
    run: dict[str, Any] = unstructure(run_config(compose("pilot_smoke", ["optim=muon"])))
    for rule in (rule for name, rule in LEGACY.items() if name not in GROUPS):
        for key in rule.keys:
            node = run
            for part in key.split("."):
                assert part in node, key
                node = node[part]


@pytest.mark.parametrize("key", KEPT)
def test_values_with_a_counterpart_are_taken_over(
    key: str, caplog: pytest.LogCaptureFixture
) -> None:
    for value, want in KEPT[key]:
        with caplog.at_level(logging.WARNING):
            assert translate({key: value}) == want
        assert all(f"{new}={value}" in caplog.text for new, value in want.items())
        caplog.clear()


@pytest.mark.parametrize("key", REFUSED)
def test_other_values_are_refused_with_the_new_key(key: str) -> None:
    for value, text in REFUSED[key]:
        with pytest.raises(ConfigError) as told:
            translate({key: value})
        assert str(told.value).startswith(f"{key}: ")
        assert text in str(told.value)


def test_parts_of_old_groups_are_refused_too() -> None:
    for key, text in (
        ("model.titan_level.update_period", "model.titan.period"),
        ("model.cms_levels.0.update_period", "model.cms.periods"),
        ("model.optimizers.default.lr", "model.cms.inner"),
    ):
        with pytest.raises(ConfigError, match=rf"^{key}: .*{text}"):
            translate({key: 8})
    assert owner("model.cms.periods") is None


def test_overrides_and_stored_configurations_give_the_same_run() -> None:
    old = ["model.block_variant=hope_selfmod", "model.cms_levels=[{name:fast,update_period:32}]"]
    old += ["+model.self_mod_chunk_size_memory=16", "model.self_mod_chunk_size=8"]
    old += ["optim.param_policy=only_memory", "optim.type=muon", "train.seed=5", "model.heads=2"]
    new = ["model.block=hope_selfmod", "model.cms.periods=[32]", "model.selfmod.period_other=8"]
    new += ["model.selfmod.period=16", "optim=muon", "optim.policy=memory_only", "seed=5"]
    new += ["model.attention.heads=2"]
    want = run_config(compose("pilot_smoke", new))
    assert run_config(compose("pilot_smoke", old)) == want
    stored: dict[str, Any] = unstructure(want)
    del stored["model"]["block"], stored["optim"]["policy"], stored["model"]["selfmod"]["period"]
    stored["model"] |= {"block_variant": "hope_selfmod", "self_mod_chunk_size_memory": 16}
    stored["optim"]["param_policy"] = "only_memory"
    stored["data"] = {"seq_len": stored["stream"].pop("seq_len")}
    before = unstructure(stored)
    assert run_config(stored) == want
    assert unstructure(stored) == before


def test_an_old_key_is_not_swept_over() -> None:
    with pytest.raises(ConfigError, match=r"^model\.heads: .*new one"):
        quoted(["-m", "model.heads=2,4"])


def test_new_configurations_pass_through() -> None:
    data = {"model": {"block": "transformer"}}
    assert translate_config(data) is data
    assert quoted(["model.block=transformer", "--config-name", "x"])[0] == "model.block=transformer"
