"""``nl.ops.level`` in machine code: the tensors that go there and come back. Floor 1.

Every function does what that of its name there does, or gives None where it must run there: other
forms than SiLU with RMS norm, experts' gates, biases, weights that rows share, few tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nl.core.native import Kernel, bits, sizes_of, ungraded

KERNEL = Kernel("level")
FEW_TOKENS = 8
"""With fewer tokens what a row costs is its weights: no kernel, and no weights of its own."""

Named = list[tuple[str, Tensor | None]]
"""Tensors with letters for their dimensions: rows B, tokens T, width D, hidden units F."""


def _fits(form: Any) -> bool:
    """Whether the kernel has levels of this form."""
    return bool(form.activation == "silu" and form.norm == "rms")


def _numbers(
    sizes: Mapping[str, int],
    eps: float,
    *,
    levels: int = 1,
    scales: tuple[float, float] = (1.0, 1.0),
    lost: float = 0.0,
    clip: float = 0.0,
) -> list[int]:
    """What the kernel is told beside its tensors."""
    reals = [bits(x) for x in (*scales, lost, clip)]
    return [*(sizes[c] for c in "BTDF"), bits(eps), levels, *reals]


def _call(function: str, form: Any, left_out: Any, given: Named, made: str) -> Any:
    """Run a function; gives new tensors of the dimensions in ``made``, or None if it cannot.

    ``left_out`` is what the kernel has no form for.
    """
    if not _fits(form) or any(t is not None for t in left_out):
        return None
    sizes, tensors = sizes_of(given), [t for _, t in given]
    if sizes is None or sizes["T"] < FEW_TOKENS or not KERNEL.takes(*tensors):
        return None
    first: Any = tensors[0]
    new = [first.new_empty([sizes.get(c, 2) for c in letters]) for letters in made.split()]
    plain = [None if t is None else t.contiguous() for t in tensors]
    KERNEL.run(function, _numbers(sizes, form.eps), [*plain, *new])
    return new


def _weights(up: Any, down: Any, fast_up: Any, fast_down: Any, *rates: Any) -> Named:
    meta = [("FD", up), ("DF", down)]
    return [*meta, ("BFD", fast_up), ("BDF", fast_down), *(("", rate) for rate in rates)]


def _branch_native(form: Any, x: Tensor, unit: Any, *weights: Any) -> tuple[Tensor, Tensor] | None:
    given: Named = [("BTD", x), *_weights(*weights[:6])]
    found = _call("branch", form, (unit, *weights[6:]), given, "BTD BTF")
    return None if found is None else (found[0], found[1])


def _adjoints_native(spec: Any, grad_y: Any, grad_z: Any, *kept: Any) -> tuple[Any, ...] | None:
    form, to_up, to_down = spec
    x, z, unit, *weights = kept
    given: Named = [("BTD", x), ("BTF", z), *_weights(*weights[:6])]
    given += [("BTD", grad_y), ("BTF", grad_z)]
    found = _call("branch_back", form, (unit, *weights[6:]), given, "BTD BFD BDF B2")
    if found is None:
        return None
    by_x, by_up, by_down, along = found
    _, _, fast_up, fast_down, rate_up, rate_down, *_ = weights
    by_rates = along.sum(0).neg_().unbind()
    parts: list[list[Any]] = [[], [], []]
    every = ((by_up, fast_up, rate_up, to_up), (by_down, fast_down, rate_down, to_down))
    for (by, fast, rate, wanted), by_rate in zip(every, by_rates, strict=True):
        parts[0].append(by[0] if len(by) == 1 else by.sum(0))
        parts[1].append(None if fast is None or not wanted else -rate * by)
        parts[2].append(None if fast is None else by_rate.view(rate.shape))
    return by_x, None, *parts[0], *parts[1], *parts[2], None, None


def _ungraded(function: str, form: Any, left_out: Any, given: Named, made: str) -> Any:
    # Where autocast would choose a dtype, it does.
    if torch.is_autocast_enabled("cpu") or not ungraded(*(t for _, t in given)):
        return None
    return _call(function, form, left_out, given, made)


def _hidden_native(form: Any, z: Tensor, signal: Tensor, unit: Any, *down: Any) -> Tensor | None:
    given: Named = [("BTF", z), ("BTD", signal)]
    given += zip(("DF", "BDF", ""), down, strict=True)
    found = _ungraded("hidden_signal", form, (unit,), given, "BTF")
    return None if found is None else found[0]


def _pull_back_native(form: Any, x: Tensor, *rest: Any) -> Tensor | None:
    given: Named = [("BTD", x)]
    given += zip(("BTD", "BTF", "FD", "BFD", ""), rest, strict=True)
    found = _ungraded("pull_back", form, (), given, "BTD")
    return None if found is None else found[0]


def _gradients_native(form: Any, *tokens: Any) -> tuple[Tensor, Tensor] | None:
    *given, unit = tokens
    named: Named = list(zip(("BTD", "BTF", "BTD", "BTF"), given, strict=True))
    found = _ungraded("gradients", form, (unit,), named, "BFD BDF")
    return None if found is None else (found[0], found[1])
