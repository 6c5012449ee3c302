"""A State holds its own numbers: no view of it keeps the buffers of a whole call alive."""

from __future__ import annotations

import pytest
import torch

from nl.core.state import num_bytes, tensors
from tests.laws.conftest import small, tokens

LENGTH = 1001


@pytest.mark.parametrize("grads", [False, True])
def test_a_state_holds_no_more_than_its_numbers(kind: str, grads: bool) -> None:
    """Caches of all that was read, too: values lie among queries and keys of one product."""
    model = small(kind).eval()
    with torch.set_grad_enabled(grads):
        state = model(tokens(1, LENGTH)).state
    shapes = [tensor.shape for tensor in tensors(state)]
    assert any(LENGTH in s for s in shapes) or kind not in ("transformer", "hope_attention")
    for place, tensor in enumerate(tensors(state)):
        held = tensor.untyped_storage().nbytes()
        assert held <= 2 * tensor.numel() * tensor.element_size(), (place, tensor.shape)


def test_heads_of_keys_that_queries_share_are_kept_once() -> None:
    sizes = []
    for heads in (4, 2, 1):
        model = small("transformer", dim=16, attention={"heads": 4, "kv_heads": heads}).eval()
        with torch.no_grad():
            sizes.append(num_bytes(model(tokens(1, 20)).state))
    assert sizes[0] == 2 * sizes[1] == 4 * sizes[2] > 0
