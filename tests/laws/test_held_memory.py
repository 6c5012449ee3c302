"""A State holds its own numbers: no view of it keeps the buffers of a whole call alive."""

from __future__ import annotations

import torch

from nl.core.state import flatten
from tests.laws.conftest import small, tokens

LENGTH = 1001


def test_a_state_holds_no_more_than_its_numbers(kind: str) -> None:
    """Caches of all that was read apart: their values lie among queries and keys of one product."""
    model = small(kind).eval()
    with torch.no_grad():
        state = model(tokens(1, LENGTH)).state
    named, _ = flatten(state)
    long = {name for name, tensor in named.items() if LENGTH in tensor.shape}
    assert long or kind not in ("transformer", "hope_attention")
    for name in named.keys() - long:
        held = named[name].untyped_storage().nbytes()
        own = named[name].numel() * named[name].element_size()
        assert held <= 2 * own, name
