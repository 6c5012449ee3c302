"""Keys of earlier systems' configurations, as overrides or stored. Floor 0.

Where a key means here what it meant there it is replaced, with a log line that names the new key.
Where it would not, it is refused, and the message says what to set instead.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from nl.config.legacy_groups import GROUPS
from nl.config.legacy_rules import GONE, REFUSED, SAME, Rule, only, refused, renamed
from nl.config.registry import ConfigError

log = logging.getLogger(__name__)


def _periods(levels: Any) -> Any:
    """``[{name, update_period, warmup_steps, jitter, optimizer_key}]`` -> periods or REFUSED."""
    if not isinstance(levels, list) or not levels:
        return REFUSED
    for level in levels:
        period = level.get("update_period") if isinstance(level, dict) else None
        if not isinstance(period, int) or isinstance(period, bool):
            return REFUSED
        # A name names; whatever else says something has no counterpart.
        if any(value for key, value in level.items() if key not in ("name", "update_period")):
            return REFUSED
    return [level["update_period"] for level in levels]


def _inner(optimizers: Any) -> None:
    """Always refused, by the nearest inner optimizer for the first variant that is named."""
    near = {
        "basic": "{kind:momentum}",
        "preconditioned": "{kind:adam}",
        "muon": "{kind:muon} (the old one was a tanh, not an orthogonalisation)",
        "nl_l2_precond": "{kind:delta} (the old one removed the mean input's direction)",
        "dmgd": "{kind:deep} (the old one was a tanh), or optim=dmgd outside",
        "l2_objective": "{kind:momentum}",
    }
    text = str(optimizers)
    found = next((name for name in near if name in text), "preconditioned")
    raise ConfigError(
        f"model.optimizers: {found!r}; inner optimizers are a choice per memory: set "
        f"model.cms.inner={near[found]} and model.cms.rate."
    )


_TILE = "memories are written while reading, at multiples of their periods; leave it out"
_GATE = "the gate is per token: set model.cms.surprise.gate and model.cms.surprise.quantile"

LEGACY: dict[str, Rule] = {
    "model.block_variant": renamed("model.block"),
    "model.type": Rule(
        ("model.block",),
        {"hope": GONE, "titan": "titan_mal"},
        "set model.block to a block kind (nl help block)",
    ),
    "model.num_layers": renamed("model.layers"),
    "model.heads": renamed("model.attention.heads"),
    "model.qk_l2_norm": Rule(
        ("model.attention.qk_norm",),
        {False: False},
        "the norm is RMS here, which keeps the temperature: set model.attention.qk_norm=true",
    ),
    "model.local_conv_window": only(
        None, hint="attention has no convolution; memories do: model.selfmod.conv, model.titan.conv"
    ),
    "model.titan_level": refused("it counted calls; set model.titan.period in tokens"),
    "model.cms_levels": Rule(
        ("model.cms.periods",),
        hint="set model.cms.periods to the list of periods in tokens; levels have no warm-up, "
        "jitter or optimizer of their own",
        convert=_periods,
    ),
    "model.cms_flush_partial_at_end": only(False, hint="unfinished periods wait in the state"),
    "model.cms_use_layernorm": only(True, hint="every level normalises its input; leave it out"),
    "model.cms_hidden_multiplier": refused("it was ignored; set model.cms.hidden in units"),
    "model.optimizers": Rule(convert=_inner),
    "model.teach_scale": only(1.0, hint="set model.cms.rate, the first rate of every level"),
    "model.teach_clip": only(0.0, hint="set model.cms.clip, relative to the weights' norm"),
    "model.teach_schedule": only(None, hint="rates are learned: set model.cms.rate"),
    "model.gradient_checkpointing": Rule(
        ("train.activation_checkpointing",), {False: GONE, True: True}, "true or false"
    ),
    "model.surprise_threshold": only(None, hint=_GATE),
    "model.surprise_metric": only("l2", hint=_GATE),
    "model.freeze_backbone": Rule(("optim.policy",), {True: "memory_only", False: GONE}),
    "model.self_mod_lr": refused("set model.selfmod.rate, a share in (0, 1)"),
    "model.self_mod_hidden": refused("set model.selfmod.hidden in units"),
    "model.self_mod_chunk_size": renamed("model.selfmod.period_other", "model.selfmod.period"),
    "model.self_mod_chunk_size_memory": Rule(("model.selfmod.period",), {None: GONE, SAME: True}),
    "model.self_mod_objective": renamed("model.selfmod.objective"),
    "model.self_mod_stopgrad_vhat": only(True, hint="targets are constants; leave it out"),
    "model.self_mod_use_rank1_precond": only(True, hint="set model.selfmod.output_rule"),
    "model.self_mod_use_alpha": only(True, hint="set model.selfmod.retain near 1 instead"),
    "model.self_mod_use_skip": renamed("model.selfmod.direct_gates"),
    "model.self_mod_momentum": only(
        0.0, hint="memories with momentum are Titans: model.block=titan_lmm"
    ),
    "model.self_mod_adaptive_q": renamed("model.selfmod.adaptive_q"),
    "model.self_mod_local_conv_window": Rule(("model.selfmod.conv",), {None: 0, SAME: True}),
    "model.transformer_mlp_hidden_multiplier": refused("set model.mlp_hidden in units"),
    "model.transformer_activation": Rule(
        ("model.mlp",), {"gelu": "gelu"}, "set model.mlp to swiglu, gelu or gelu_tanh"
    ),
    "optim.type": Rule(
        ("optim.kind",), {k: k for k in ("adamw", "muon", "m3")}, "choose one of nl help optim"
    ),
    "optim.param_policy": Rule(
        ("optim.policy",),
        {"all": "all", "exclude_memory": "exclude_memory", "only_memory": "memory_only"},
        "set optim.policy to all, memory_only or exclude_memory",
    ),
    "optim.outer_updates_memory_modules": Rule(
        ("optim.policy",), {True: "all", False: "exclude_memory"}
    ),
    "optim.fused": only("auto", True, hint="it always is; leave it out"),
    "optim.ns_steps": renamed("optim.steps"),
    "optim.ns_coefficients": refused("Muon's quintic is used; optim.literal=true has m3's cubic"),
    "optim.beta1": refused("set optim.betas=[beta1,beta2,beta3]"),
    "optim.beta2": refused("set optim.betas=[beta1,beta2,beta3]"),
    "optim.beta3": refused("set optim.betas=[beta1,beta2,beta3]"),
    "train.algorithm_mode": Rule(
        ("model.cms.write_gradient",),
        {"two_pass_stopgrad_updates": GONE, "boundary_state_grad_through_write": "through"},
        "set model.cms.write_gradient to stop or through",
    ),
    "train.online_updates": only(True, hint=_TILE),
    "train.online_chunk_size": only(0, hint=_TILE),
    "train.per_layer_teach_signal": Rule(("model.cms.signal",), {True: "block", False: GONE}),
    "train.use_fast_state": only(True, hint="memories are state of each row; leave it out"),
    "train.log_interval": renamed("logging.every"),
    "train.seed": renamed("seed"),
    "data.batch_size": renamed("stream.batch_size"),
    "data.seq_len": renamed("stream.seq_len"),
}
LEGACY |= GROUPS


def owner(key: str) -> str | None:
    """The row of the table that a dotted key belongs to: itself or an ancestor."""
    parts = key.split(".")
    names = (".".join(parts[: n + 1]) for n in range(len(parts)))
    return next((name for name in names if name in LEGACY), None)


def translate(old: Mapping[str, Any]) -> dict[str, Any]:
    """New dotted keys for old ones, in the order of the table; later rows win.

    Args:
        old: dotted keys with a row in the table (``owner``), and their values.

    Raises:
        ConfigError: naming the old key, its value and what to set instead.
    """
    found: dict[str, Any] = {}
    order = list(LEGACY)
    for key, value in sorted(old.items(), key=lambda item: order.index(str(owner(item[0])))):
        name = str(owner(key))
        rule = LEGACY[name] if name == key else Rule(hint=_whole(name))
        new = rule.apply(key, value)
        text = ", ".join(f"{k}={v}" for k, v in new.items()) or "nothing: it always holds here"
        log.warning("%s=%s is an old key; it now means %s", key, value, text)
        found |= new
    return found


def _whole(name: str) -> str:
    rule = LEGACY[name]
    return rule.hint if rule.convert is not _inner else "set model.cms.inner and model.cms.rate"


def translate_config(data: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration with its old keys replaced; the argument stays as it is.

    Raises:
        ConfigError: a value without a counterpart.
    """
    old: dict[str, Any] = {}
    for name in LEGACY:
        group, _, key = name.partition(".")
        inside = data.get(group)
        if isinstance(inside, dict) and key in inside:
            old[name] = inside[key]
    if not old:
        return data
    new = {k: dict(v) if isinstance(v, dict) else v for k, v in data.items()}
    for name in old:
        group, _, key = name.partition(".")
        del new[group][key]
    for key, value in translate(old).items():
        *path, last = key.split(".")
        node = new
        for part in path:
            node[part] = dict(node.get(part) or {})
            node = node[part]
        node[last] = value
    return {k: v for k, v in new.items() if k != "data" or v}
