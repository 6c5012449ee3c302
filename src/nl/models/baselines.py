"""Dense models beside one with experts: equal parameters, or equal active FLOPs. Floor 3."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch

from nl.config import lookup, require
from nl.models.language import LanguageConfig
from nl.nn.experts_config import ExpertsConfig

Equal = Literal["parameters", "flops"]


def dense_like(config: LanguageConfig, equal: Equal) -> LanguageConfig:
    """The dense model whose feed-forward layers are as wide as makes it equal.

    Args:
        config: a model with experts in the place of feed-forward layers.
        equal: ``parameters``, all of them, or ``flops``: what a token is multiplied with at the
            configured k, routers included.

    Returns:
        The same without experts; ``mlp_hidden`` is the nearest whole number, at least 1.

    Raises:
        ConfigError: no experts, or blocks whose levels are the experts.
    """
    require(config.experts.sparse, "model.experts.form: none; there is nothing to be equal to.")
    kinds: list[Any] = [lookup("block", kind, "model.block") for kind in config.kinds]
    require(
        not any(kind.levels for kind in kinds),
        f"model.block: {list(config.kinds)}; levels are no feed-forward layers: choose blocks "
        "without (model.block=transformer ...).",
    )
    of: Callable[[LanguageConfig], int] = _parameters if equal == "parameters" else _flops
    plain = replace(config, experts=ExpertsConfig())
    one, two = (of(replace(plain, mlp_hidden=width)) for width in (1, 2))
    return replace(plain, mlp_hidden=max(1, 1 + round((of(config) - one) / (two - one))))


def _parameters(config: LanguageConfig) -> int:
    return sum(p.numel() for p in _empty(config).parameters())


def _flops(config: LanguageConfig) -> int:
    flops: int = _empty(config).flops_per_token()
    return flops


def _empty(config: LanguageConfig) -> Any:
    """The model without memory for its parameters."""
    with torch.device("meta"):
        return config.build()
