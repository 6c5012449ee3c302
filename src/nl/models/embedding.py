"""From token ids to the residual stream. Floor 3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding

from nl.config import ConfigError

# Smaller than 1: what blocks add then weighs more than the token itself, which learns faster.
EMBED_STD = 0.3


def embedded(model: Any, inputs: Tensor, position: int) -> Tensor:
    """Tokens (B, T), the first of them at ``position``, as (B, T, D).

    Without a table of its own the model takes that of the head, in the size of one.

    Raises:
        ConfigError: an id outside the vocabulary.
    """
    config = model.config
    try:
        if model.embed is not None:
            x: Tensor = model.embed(inputs)
        else:
            scale = EMBED_STD / config.head_std * config.dim**0.5
            x = embedding(inputs, model.head.weight) * scale
    except IndexError as error:  # on the CPU; a GPU stops the process by an assertion
        found = f"{int(inputs.min())} to {int(inputs.max())}"
        raise ConfigError(
            f"inputs: token ids {found}; model.vocab_size is {config.vocab_size}: use the "
            "tokenizer that the model was made for."
        ) from error
    if model.places is not None:
        # Through the module, where strategies that cut parameters put them together.
        x = x + model.places(torch.arange(position, position + inputs.shape[1], device=x.device))
    return x
