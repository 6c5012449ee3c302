"""State as a value: nested NamedTuples of tensors (batch first), ints and None. Floor 0.

A state type is a NamedTuple decorated with ``@state_type``; only such types, tuples, ints, None
and tensors may appear in a State. That makes it serialisable without pickle: ``flatten`` gives
named tensors and a JSON skeleton, ``unflatten`` builds the same value back.

A type whose used value has another shape than its fresh one (a cache, a waiting label) says itself
how rows of it become fresh again: it has a method ``reset_rows(fresh, mask)``. One with another
form inside a call has a method ``settled()``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T", bound=type)
_TYPES: dict[str, type] = {}


def state_type(cls: T) -> T:
    """Class decorator: allow this NamedTuple inside a State and in files that hold one."""
    known = _TYPES.get(cls.__name__)
    if known is not None and known.__module__ != cls.__module__:
        raise ValueError(f"state type {cls.__name__} is already defined in {known.__module__}")
    _TYPES[cls.__name__] = cls
    return cls


def map_tensors(fn: Callable[[Tensor], Tensor], state: Any) -> Any:
    """Apply ``fn`` to every tensor of a State, keeping its shape."""
    if isinstance(state, Tensor):
        return fn(state)
    if isinstance(state, tuple):
        parts = [map_tensors(fn, part) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    if state is None or isinstance(state, int):
        return state
    raise TypeError(f"a State holds tensors, tuples, ints and None, not {type(state).__name__}")


def tensors(state: Any) -> list[Tensor]:
    """All tensors of a State, in a fixed order."""
    found: list[Tensor] = []

    def visit(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(visit, state)
    return found


def detach(state: Any) -> Any:
    """The same values, cut from the autograd graph."""
    return map_tensors(torch.Tensor.detach, state)


def clone(state: Any) -> Any:
    """A fork: an independent copy (detached) that can be advanced on its own."""
    return map_tensors(lambda t: shared(t).detach().clone().expand(t.shape), state)


def shared(tensor: Tensor) -> Tensor:
    """The one row of a memory that all rows share (views of it), else the tensor as it is."""
    if tensor.dim() and len(tensor) > 1 and tensor.stride(0) == 0:
        return tensor[:1]
    return tensor


def to(state: Any, device: torch.device | str) -> Any:
    """The same State on another device (dtypes are kept: memories are fp32)."""
    return map_tensors(lambda t: t.to(device), state)


def select_rows(state: Any, rows: Tensor | list[int]) -> Any:
    """The State of some rows of the batch, in the given order (repeats allowed)."""

    def pick(tensor: Tensor) -> Tensor:
        index = torch.as_tensor(rows, dtype=torch.long, device=tensor.device)
        return tensor.index_select(0, index)

    return map_tensors(pick, state)


def reset_rows(state: Any, fresh: Any, rows: Tensor | Sequence[int]) -> Any:
    """The State with some rows fresh again. Other rows stay as they are, and so do all ints.

    Values and gradients of a reset row are cut: what it held reaches nothing that comes later.

    Args:
        state: what the rows hold now; it is not changed.
        fresh: the fresh State, of as many rows or of one.
        rows: indices known to the host, or (B,) bool on the device of the State.

    Raises:
        ValueError: ``fresh`` is the State of another model, or ``rows`` are no rows of this one.
    """
    held = tensors(state)
    if not held:
        return state
    count, device = len(held[0]), held[0].device
    if isinstance(rows, Tensor):
        if rows.dtype != torch.bool or rows.shape != (count,):
            shape = tuple(rows.shape)
            raise ValueError(f"rows: {rows.dtype} {shape}; a tensor of rows is ({count},) bool")
        return _reset(state, fresh, rows)
    if any(isinstance(row, bool) or not 0 <= row < count for row in rows):
        raise ValueError(f"rows: {list(rows)}; the State has rows 0 to {count - 1}")
    if len(set(rows)) == count and all(len(t) == count for t in tensors(fresh)):
        return _keep_ints(state, fresh)
    mask = torch.zeros(count, dtype=torch.bool)
    mask[list(rows)] = True
    return _reset(state, fresh, send(mask, device))


def check_fits(state: Any, fresh: Any, path: str = "state") -> None:
    """Refuse a State that is not of the model whose fresh State is given.

    Seen are the types and the widths of what a fresh State has already; rows do not count.

    Raises:
        ValueError: names the first part that is of another kind or size.
    """
    if state is None or fresh is None:
        return
    if type(state) is not type(fresh) and not isinstance(state, Tensor) & isinstance(fresh, Tensor):
        raise ValueError(f"{path}: {type(state).__name__}, not {type(fresh).__name__}")
    if hasattr(state, "reset_rows"):
        return
    if isinstance(state, Tensor) and state.shape[1:] != fresh.shape[1:]:
        sizes = tuple(state.shape[1:]), tuple(fresh.shape[1:])
        raise ValueError(f"{path}: {sizes[0]} per row, not {sizes[1]}")
    if isinstance(state, tuple) and not hasattr(state, "settled"):
        if len(state) != len(fresh):
            raise ValueError(f"{path}: {len(state)} parts, not {len(fresh)}")
        names = getattr(state, "_fields", range(len(state)))
        for name, part, other in zip(names, state, fresh, strict=True):
            check_fits(part, other, f"{path}.{name}")


def settled(state: Any) -> Any:
    """The State in the form that does not tell how its tokens were read, call by call.

    A type that has another form inside a call says itself how to leave it: ``settled()``.
    """
    if hasattr(state, "settled"):
        return state.settled()
    if isinstance(state, tuple):
        parts = [settled(part) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on ``device``, without waiting for what the device is doing."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _reset(state: Any, fresh: Any, mask: Tensor) -> Any:
    """``mask`` (B,) selects ``fresh``; where ``fresh`` is None it stands for zeros."""
    if hasattr(state, "reset_rows"):
        return state.reset_rows(fresh, mask)
    if isinstance(state, Tensor):
        new = torch.zeros_like(state[:1]) if fresh is None else fresh
        if new.shape[1:] != state.shape[1:]:
            raise ValueError(f"fresh: {tuple(new.shape)} for a tensor {tuple(state.shape)}")
        return torch.where(mask.view(-1, *[1] * (state.dim() - 1)), new, state)
    if isinstance(state, tuple):
        other = [None] * len(state) if fresh is None else fresh
        parts = [_reset(s, f, mask) for s, f in zip(state, other, strict=True)]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state


def _keep_ints(state: Any, fresh: Any) -> Any:
    """``fresh`` with the ints of ``state``."""
    if hasattr(state, "settled"):  # in pieces, of which the fresh one has none; no ints
        return fresh
    if isinstance(state, tuple) and isinstance(fresh, tuple):
        parts = [_keep_ints(s, f) for s, f in zip(state, fresh, strict=True)]
        return type(fresh)(*parts) if hasattr(fresh, "_fields") else tuple(parts)
    return state if isinstance(fresh, int) else fresh


def num_bytes(state: Any) -> int:
    """Bytes held by the tensors of a State; a memory that all rows share counts once."""
    return sum(shared(t).numel() * t.element_size() for t in tensors(state))


def flatten(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Named tensors and a JSON skeleton; ``unflatten`` is the inverse."""
    named: dict[str, Tensor] = {}

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            one = shared(value)
            named[path] = one.detach().contiguous()
            return {"tensor": path} if one is value else {"tensor": path, "rows": len(value)}
        if isinstance(value, tuple):
            name = type(value).__name__ if hasattr(value, "_fields") else "tuple"
            if name != "tuple" and _TYPES.get(name) is not type(value):
                raise TypeError(f"{name} at {path}: decorate it with @state_type")
            return {"type": name, "items": [walk(v, f"{path}.{i}") for i, v in enumerate(value)]}
        if value is None or isinstance(value, int):
            return {"value": value}
        raise TypeError(f"{path}: a State cannot hold {type(value).__name__}")

    return named, walk(state, "state")


def unflatten(named: dict[str, Tensor], skeleton: Any) -> Any:
    """Rebuild a State from ``flatten``'s tensors and skeleton.

    Raises:
        ValueError: the skeleton names an unknown type or a tensor that is not there.
    """
    if "tensor" in skeleton:
        if skeleton["tensor"] not in named:
            raise ValueError(f"state tensor {skeleton['tensor']!r} is missing")
        tensor = named[skeleton["tensor"]]
        if "rows" not in skeleton:
            return tensor
        if not isinstance(skeleton["rows"], int) or len(tensor) != 1:
            raise ValueError(f"state tensor {skeleton['tensor']!r} is not one row for all")
        return tensor.expand(skeleton["rows"], *tensor.shape[1:])
    if "type" in skeleton:
        items = [unflatten(named, item) for item in skeleton["items"]]
        if skeleton["type"] == "tuple":
            return tuple(items)
        if skeleton["type"] not in _TYPES:
            raise ValueError(f"unknown state type {skeleton['type']!r}")
        return _TYPES[skeleton["type"]](*items)
    return skeleton["value"]
