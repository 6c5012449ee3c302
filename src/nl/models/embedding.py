"""From token ids to the residual stream. Floor 3."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding

from nl.config import ConfigError
from nl.models.documents import Part

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


def embedded_tiles(
    model: Any, inputs: Tensor, position: int, parts: Sequence[Part]
) -> Iterator[tuple[Part, Tensor]]:
    """The parts of a call (B, T), each with its tokens embedded; the first is at ``position``.

    All tokens are looked up at once: going back, each look into the table makes a gradient of the
    table's size.
    """
    tokens = slice(parts[0].tokens.start, parts[-1].tokens.stop)
    sizes = [part.tokens.stop - part.tokens.start for part in parts]
    tiles = embedded(model, inputs[:, tokens], position).split(sizes, 1)
    for part, x in zip(parts, tiles, strict=True):
        yield part, x.contiguous()
