"""How often each expert is chosen while something is read. Floor 6."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def expert_use(model: Any, read: Callable[[], object]) -> list[list[int]]:
    """Choices of every router during ``read``, [router][expert], blocks from the first on.

    Args:
        model: with ``routers``, a list per block.
        read: what lets the model read; routers say with every call what they chose.
    """
    routers = [router for block in model.routers for router in block]
    counts = [torch.zeros(router.count, dtype=torch.float64) for router in routers]

    def counted(place: int) -> Callable[..., None]:
        def add(_router: object, _inputs: object, out: tuple[Any, Any]) -> None:
            chosen: Tensor = out[1].counts
            counts[place] += chosen.detach().sum(0).double().cpu()

        return add

    hooks = [router.register_forward_hook(counted(i)) for i, router in enumerate(routers)]
    try:
        read()
    finally:
        for hook in hooks:
            hook.remove()
    return [[round(value) for value in one.tolist()] for one in counts]
