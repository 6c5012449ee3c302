"""``nl.ops.level`` in machine code: the tensors that go there and come back. Floor 1.

Every function does what that of its name there does, or gives None where it must run there: other
forms than SiLU with RMS norm, experts' gates, biases, weights that rows share, few tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nl.core.native import Kernel, ungraded

KERNEL = Kernel("level")
_FEW_TOKENS = 8
"""With fewer tokens what a row costs is reading its weights, not products."""


def _sizes(form: Any, rest: Any, x: Tensor, meta: Tensor, fast: Any) -> tuple[int, ...] | None:
    """Rows, tokens, width and hidden units, or None where the kernel has no form for the call."""
    rows, tokens, width = x.shape
    plain = form.activation == "silu" and form.norm == "rms" and all(t is None for t in rest)
    own = all(t is None or t.dim() == 3 for t in fast)
    hidden = meta.numel() // width
    return (rows, tokens, width, hidden) if plain and own and tokens >= _FEW_TOKENS else None


def _call(function: str, form: Any, sizes: Any, given: Any, made: Any) -> None:
    """Run a function on contiguous forms of what is given."""
    first = given[0]
    tensors = [first.new_tensor([form.eps]), *given, *made]
    KERNEL.run(function, sizes, [None if t is None else t.contiguous() for t in tensors])


def _branch_native(form: Any, x: Tensor, unit: Any, *weights: Any) -> tuple[Tensor, Tensor] | None:
    up, down, fast_up, fast_down, rate_up, rate_down, *biases = weights
    sizes = _sizes(form, (unit, *biases), x, up, (fast_up, fast_down))
    given = (x, up, down, fast_up, fast_down, rate_up, rate_down)
    if sizes is None or not KERNEL.takes(*given):
        return None
    y, z = (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        x.new_empty(*x.shape[:2], up.shape[0]),
    )
    _call("branch", form, sizes, given, (y, z))
    return y, z


def _adjoints_native(spec: Any, grad_y: Any, grad_z: Any, *kept: Any) -> tuple[Any, ...] | None:
    form, to_up, to_down = spec
    x, z, unit, up, down, fast_up, fast_down, rate_up, rate_down, *biases = kept
    sizes = _sizes(form, (unit, *biases), x, up, (fast_up, fast_down))
    given = (x, z, up, down, fast_up, fast_down, rate_up, rate_down, grad_y, grad_z)
    if sizes is None or not KERNEL.takes(*given):
        return None
    by_x = x.new_empty(x.shape)
    by_up, by_down = x.new_empty(len(x), *up.shape), x.new_empty(len(x), *down.shape)
    along = x.new_empty(len(x), 2)
    _call("branch_back", form, sizes, given, (by_x, by_up, by_down, along))
    by_rates = along.sum(0).neg_().unbind()
    parts: list[list[Any]] = [[], [], []]
    every = ((by_up, fast_up, rate_up, to_up), (by_down, fast_down, rate_down, to_down))
    for (by, fast, rate, wanted), by_rate in zip(every, by_rates, strict=True):
        parts[0].append(by.sum(0))
        parts[1].append(None if fast is None or not wanted else -rate * by)
        parts[2].append(None if fast is None else by_rate.view(rate.shape))
    return by_x, None, *parts[0], *parts[1], *parts[2], None, None


def _hidden_native(form: Any, z: Tensor, signal: Tensor, unit: Any, *down: Any) -> Tensor | None:
    sizes = _sizes(form, (unit,), signal, down[0], down[1:2])
    given = (z, signal, *down)
    if sizes is None or not ungraded(*given) or not KERNEL.takes(*given):
        return None
    made = z.new_empty(z.shape)
    _call("hidden_signal", form, sizes, given, (made,))
    return made


def _pull_back_native(form: Any, x: Tensor, *rest: Any) -> Tensor | None:
    signal, hidden_signal, up, fast, rate = rest
    sizes = _sizes(form, (), x, up, (fast,))
    given = (x, signal, hidden_signal, up, fast, rate)
    if sizes is None or not ungraded(*given) or not KERNEL.takes(*given):
        return None
    made = x.new_empty(x.shape)
    _call("pull_back", form, sizes, given, (made,))
    return made


def _gradients_native(form: Any, *tokens: Any) -> tuple[Tensor, Tensor] | None:
    x, z, signal, hidden_signal, unit = tokens
    rows, width, hidden = len(x), x.shape[-1], z.shape[-1]
    sizes = _sizes(form, (unit,), x, x.new_empty(0), ())
    given = (x, z, signal, hidden_signal)
    if sizes is None or not ungraded(*given) or not KERNEL.takes(*given):
        return None
    up, down = x.new_empty(rows, hidden, width), x.new_empty(rows, width, hidden)
    _call("gradients", form, (*sizes[:3], hidden), given, (up, down))
    return up, down
