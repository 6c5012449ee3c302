"""The MLPs of a trained Transformer as levels of a continuum memory. Floor 3.

Nested Learning, ad-hoc level stacking: levels begin as trained MLPs and go on learning, each at its
own period. Here the hidden units of each MLP are shared out evenly among independent levels, whose
sum is the MLP: before the first write, and always with ``write=False``, the model is the
Transformer. Weight and bias of the norm in front become part of the first layers, which read the
norm without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nl.config import require
from nl.models.language import LanguageConfig
from nl.nn.cms_config import CMSConfig

BLOCK = "hope_attention"


def stacked(
    config: LanguageConfig, tensors: dict[str, Tensor], cms: CMSConfig
) -> tuple[LanguageConfig, dict[str, Tensor]]:
    """A Transformer as hope_attention.

    Args:
        config: of the Transformer (block transformer).
        tensors: of the Transformer.
        cms: periods, rates and everything else that decides how levels are written; its
            arrangement, width, activation, norm and biases are set here.

    Returns:
        Configuration and tensors of the model with levels.

    Raises:
        ConfigError: other blocks, or a width that the levels cannot share evenly.
    """
    require(
        config.kinds == ("transformer",),
        f"model.block: {list(config.kinds)}; levels are made from a transformer.",
    )
    count, hidden = len(cms.periods), config.mlp_hidden_size
    require(
        hidden % count == 0,
        f"--levels: {count} levels cannot share {hidden} hidden units evenly; choose another "
        "number of periods.",
    )
    memory = replace(
        cms,
        arrangement="independent",
        hidden=hidden // count,
        activation=config.mlp,
        norm=config.norm,
        norm_eps=config.norm_eps,
        bias=config.bias or config.norm == "layer",
    )
    model = replace(config, block=BLOCK, cms=memory)
    kept = {k: t for k, t in tensors.items() if ".mlp." not in k and ".mlp_norm." not in k}
    fresh = model.build().state_dict()
    for i in range(config.layers):
        layers = _layers(config, tensors, f"blocks.{i}")
        for name, parts in zip(_NAMES, layers, strict=True):
            for level, part in enumerate(_shares(name, parts, count, config)):
                target = f"blocks.{i}.levels.levels.{level}.{name}"
                if target in fresh:
                    kept[target] = part.contiguous()
    own = ("log_rate", "gains")
    kept |= {k: t for k, t in fresh.items() if k.rsplit(".", 1)[-1] in own}
    return model, kept


_NAMES = ("up.weight", "up.bias", "down.weight", "down.bias")


def _layers(config: LanguageConfig, tensors: dict[str, Tensor], block: str) -> Sequence[Tensor]:
    """Both layers of an MLP with the norm in front as part of the first."""
    into, out = tensors[f"{block}.mlp.into.weight"], tensors[f"{block}.mlp.out.weight"]
    zeros = torch.zeros(len(into)), torch.zeros(len(out))
    inner = tensors.get(f"{block}.mlp.into.bias", zeros[0])
    offset = tensors.get(f"{block}.mlp.out.bias", zeros[1])
    if config.norm == "layer":
        inner = inner + into @ tensors[f"{block}.mlp_norm.bias"]
    return into * tensors[f"{block}.mlp_norm.weight"], inner, out, offset


def _shares(name: str, whole: Tensor, count: int, config: LanguageConfig) -> Sequence[Tensor]:
    """The part of each level: hidden units in order; the last bias belongs to the first level."""
    if name == "down.bias":
        return [whole, *(torch.zeros_like(whole) for _ in range(count - 1))]
    if name == "down.weight":
        return whole.chunk(count, 1)
    if config.mlp != "swiglu":
        return whole.chunk(count, 0)
    gates, values = (half.chunk(count, 0) for half in whole.chunk(2, 0))
    return [torch.cat(pair) for pair in zip(gates, values, strict=True)]
