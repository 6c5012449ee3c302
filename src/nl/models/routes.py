"""What routers are told, and what their choices add up to: losses, loads, statistics. Floor 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nl.config import require
from nl.core.output import Knobs
from nl.nn.cms_config import CMSConfig
from nl.nn.experts_config import ExpertsConfig
from nl.nn.router import RouteContext, Routing, added
from nl.ops.routing import effective_experts, mix_bits, token_keys

LOSS = "loss/experts"
"""Under this key of ``Output.aux``: the routers' own loss per token, weighted."""


def check_experts(model: Any, knobs: Knobs | None) -> None:
    """Refuse what the model's experts cannot be told."""
    if knobs is None:
        return
    asked = (knobs.experts_k, knobs.router_temperature, knobs.router_noise)
    config, depth = model.config.experts, model.config.layers
    require(
        config.sparse or asked == (None, None, None),
        f"knobs: experts_k, router_temperature, router_noise = {asked}; this model has no experts: "
        "set model.experts.form=low_rank (or swiglu) or leave them out.",
    )
    k, temperature, noise = asked
    each = (k,) if isinstance(k, int) else k or ()
    require(
        k is None or (min(each, default=0) >= 1 and max(each) <= config.most),
        f"experts_k: {k}; must be from 1 to model.experts.k_max ({config.most}).",
    )
    require(
        k is None or isinstance(k, int) or len(each) == depth,
        f"experts_k: {k}; must be one number, or one for each of the {depth} layers.",
    )
    require(
        temperature is None or temperature > 0,
        f"router_temperature: {temperature}; must be > 0.",
    )
    require(
        noise is None or (noise >= 0 and (config.noise > 0 or noise == 0)),
        f"router_noise: {noise}; must be >= 0, and model.experts.noise above 0 where there is to "
        "be any.",
    )


def check_depth(config: ExpertsConfig, layers: int) -> None:
    """Refuse layers that the experts do not fit."""
    require(
        config.first_dense < layers or not config.sparse,
        f"experts.first_dense: {config.first_dense}; of model.layers={layers} none would have "
        "experts: set model.experts.form=none or a smaller number.",
    )
    require(
        isinstance(config.k, int) or len(config.k) == layers,
        f"experts.k: {config.k}; must be one number, or one for each of the {layers} layers.",
    )


def check_levels(config: ExpertsConfig, cms: CMSConfig, alone: bool) -> None:
    """Refuse experts that cannot share out the hidden units of memory levels.

    Args:
        config: of the experts.
        cms: of the levels.
        alone: whether no block has a feed-forward layer of its own.
    """
    if not config.sparse:
        return
    require(
        cms.hidden is None,
        f"cms.hidden: {cms.hidden}; with experts the width of a level is their number times "
        f"{config.hidden}: set model.cms.hidden=null.",
    )
    gated = cms.activation == "swiglu"
    require(
        gated == (config.form == "swiglu"),
        f"experts.form: {config.form}; levels have cms.activation={cms.activation}: set "
        f"model.experts.form={'swiglu' if gated else 'low_rank'} or another model.cms.activation.",
    )
    require(
        config.activation is None or not alone,
        f"experts.activation: {config.activation}; levels have that of model.cms.activation: leave "
        "it out.",
    )
    require(
        cms.signal != "self",
        "cms.signal: self; a level's own keys are not routed: set model.cms.signal=head or "
        "model.experts.form=none.",
    )


def route_contexts(
    model: Any, inputs: Tensor, position: int, knobs: Knobs | None
) -> Sequence[RouteContext | None]:
    """What the routers of every block are told about one read of ``inputs`` from ``position``."""
    config, depth = model.config.experts, model.config.layers
    if not model.routers:
        return [None] * depth
    knobs = Knobs() if knobs is None else knobs
    asked, device = knobs.experts_k, inputs.device

    def number(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full((), value, dtype=dtype, device=device)

    ks = [asked] * depth if isinstance(asked, int) else asked
    heat = config.temperature if knobs.router_temperature is None else knobs.router_temperature
    noise, keys = None, None
    if config.noise and model.training:
        noise = number(config.noise if knobs.router_noise is None else knobs.router_noise)
        keys = token_keys(inputs, position, knobs.draw)
    temperature, found = number(heat), list[RouteContext | None]()
    for layer in range(depth):
        k = number(config.k_of(layer) if ks is None else ks[layer], torch.int64)
        own = None if keys is None else mix_bits(keys + layer)
        found.append(RouteContext(k, temperature, noise, own))
    return found


def routing_report(model: Any, routed: list[Any], *, learn: bool) -> dict[str, Tensor]:
    """What one call's routers chose, as scalar tensors; nothing is read on the host.

    Args:
        model: whose ``routers`` are listed block by block.
        routed: (layer, records) as they came, piece by piece.
        learn: whether this is training: loads are remembered, losses wanted.

    Returns:
        ``experts/effective``: exp(entropy) of the use of experts in this call, mean over layers;
        ``experts/effective_min``: of the layer with the smallest. ``experts/entropy``: in nats.
        ``experts/dead``: experts that were not used, mean over layers. ``experts/busiest``: the
        load of the busiest expert over the mean load. ``loss/experts``: see ``LOSS``.
    """
    if not routed:
        return {}
    whole: dict[tuple[int, int], Routing] = {}
    for layer, records in routed:
        for i, record in enumerate(records):
            held = whole.get((layer, i))
            whole[layer, i] = record if held is None else added(held, record)
    effective, dead, busiest, losses = [], [], [], []
    for (layer, i), record in sorted(whole.items(), key=lambda item: item[0]):
        router = model.routers[layer][i]
        counts = record.counts.detach().sum(0)
        effective.append(effective_experts(counts))
        dead.append((counts == 0).sum().to(counts.dtype))
        busiest.append(counts.max() / counts.mean().clamp(min=1e-9))
        own = router.losses(record) if learn else None
        losses += [] if own is None else [own]
        if learn:
            router.counted(record)
    found = {
        "experts/effective": torch.stack(effective).mean(),
        "experts/effective_min": torch.stack(effective).min(),
        "experts/entropy": torch.stack(effective).log().mean(),
        "experts/dead": torch.stack(dead).mean(),
        "experts/busiest": torch.stack(busiest).mean(),
    }
    if losses:
        found[LOSS] = torch.stack(losses).sum()
    return found
