"""Bytes of tensors alive, operation by operation, on real or fake tensors. Floor 8."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context manager that follows every storage made inside it until it is freed.

    What an operation needs while it runs and gives back is not seen.

    Attributes:
        live: bytes alive now that were made inside.
        peak: the most there ever were.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the operation, then look at what came out."""
        out = func(*args, **(kwargs or {}))
        known = {id(t.untyped_storage()) for t in tree_iter(args) if isinstance(t, Tensor)}
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage(), known)
        return out

    def _add(self, storage: torch.UntypedStorage, known: set[int]) -> None:
        key, size = id(storage), storage.nbytes()
        if key in known or key in self._seen:
            return

        def gone(_: Any) -> None:
            del self._seen[key]
            self.live -= size

        self._seen[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)
