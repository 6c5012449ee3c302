"""What a self-modifying block keeps for the backward pass; counted, the same on every machine."""

from __future__ import annotations

import torch

from nl.bench.kept import kept_bytes
from nl.models.language import LanguageConfig

DIM = 256


def kept(block: str, length: int) -> float:
    """Numbers kept per token and channel by a model of one block, everything at its default."""
    torch.manual_seed(0)
    model = LanguageConfig(vocab_size=16, dim=DIM, layers=1, block=block).build()
    tokens = torch.randint(0, 16, (1, length + 1))

    def read() -> object:
        return model.nll(tokens[:, :-1], tokens[:, 1:], keep=False)

    return kept_bytes(read, model.parameters()) / (4 * DIM * length)


def test_a_self_modifying_block_keeps_at_most_half_more_than_a_transformer() -> None:
    assert kept("hope_selfmod", 512) <= 1.5 * kept("transformer", 512)


def test_what_a_token_costs_does_not_grow_with_the_sequence() -> None:
    assert kept("hope_selfmod", 1024) <= 1.05 * kept("hope_selfmod", 512)


def test_attention_in_tiles_keeps_the_past_once_and_once_more_where_pieces_are_joined() -> None:
    once = kept("hope_attention", 512)  # eight tiles: nothing is joined
    assert once + 1.9 <= kept("hope_attention", 1024) <= once + 2.1  # its keys and values
    assert kept("hope_attention", 512) <= 1.5 * kept("transformer", 512)
