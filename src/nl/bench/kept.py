"""Memory that autograd keeps between forward and backward. Floor 8."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def kept_bytes(forward: Callable[[], object], parameters: Iterable[Tensor]) -> int:
    """Bytes of all tensors saved for the backward pass of ``forward``.

    Counted once per storage, whole storages; parameters do not count. What is computed again in
    the backward pass is not kept and so not counted.

    Args:
        forward: its result is held until everything is counted.
        parameters: storages that are there anyway.
    """
    own = {p.untyped_storage().data_ptr() for p in parameters}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return tensor.detach()  # the result itself would hold the graph that holds it

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    total = sum(storage.nbytes() for storage in storages.values())
    del result
    return total
