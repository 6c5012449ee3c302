"""Parameter counts without allocating the parameters. Floor 3."""

from __future__ import annotations

from typing import Any

import torch

from nl.config.groups import ModelConfig


def count_parameters(config: ModelConfig) -> int:
    """Trainable parameters of a model configuration, built on the meta device."""
    buildable: Any = config
    with torch.device("meta"):
        model = buildable.build()
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
