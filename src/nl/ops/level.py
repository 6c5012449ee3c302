"""One level of the continuum memory: residual MLP read and closed-form write gradient. Floor 1.

Read:  n = norm(x);  z = n U^T + b;  a = phi(z);  y = x + a V^T + c.
Given the signal d = dL/dy per token:  dV = sum d^T a;  e = (d V) phi'(z);  dU = sum e^T n;
pull-back dL/dx = d + norm_backward(e U).  (Nested Learning, Eq. 70-71; derived here.)
By default norm(x) = x / rms(x), phi is SiLU and there are no biases; ``LevelForm`` names the rest.
With a gate g per token and hidden unit (experts: zero where they do not read) a = g phi(z).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nl.core.program import Program
from nl.ops.level_native import (
    FEW_TOKENS,
    _adjoints_native,
    _branch_native,
    _gradients_native,
    _hidden_native,
    _pull_back_native,
)

NORM_EPS = 1e-6
_APPROXIMATE = {"gelu": "none", "gelu_tanh": "tanh"}


class LevelForm(NamedTuple):
    """What a level is besides its weights.

    Attributes:
        activation: silu, gelu, gelu_tanh (its approximation), or swiglu, which multiplies the
            second half of z with SiLU of the first.
        norm: rms, or layer (mean taken off, too); without weights, which U can hold.
        eps: added to the mean square.
    """

    activation: Literal["silu", "swiglu", "gelu", "gelu_tanh"] = "silu"
    norm: Literal["rms", "layer"] = "rms"
    eps: float = NORM_EPS


PLAIN = LevelForm()


class LevelWeights(NamedTuple):
    """Meta weights of a level and what its memory adds to them, row by row.

    The weights in force are ``up - rate_up * fast_up`` and ``down - rate_down * fast_down``.

    Attributes:
        up, down: (F, D) and (D, F), learned by the outer optimizer.
        fast_up, fast_down: (B, F, D) and (B, D, F) sums of write gradients, or without B where
            rows share them; None before the first write.
        rate_up, rate_down: () or (1,) inner learning rates.
        up_bias, down_bias: b (F,) and c (D,), which no write changes; None: none.
        form: see ``LevelForm``; with swiglu F counts both halves of z, and ``down`` is (D, F / 2).
    """

    up: Tensor
    down: Tensor
    fast_up: Tensor | None
    fast_down: Tensor | None
    rate_up: Tensor
    rate_down: Tensor
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    form: LevelForm = PLAIN

    def tensors(self) -> tuple[Tensor | None, ...]:
        """All but the form."""
        found: tuple[Tensor | None, ...] = self[:-1]
        return found

    def to(self, dtype: torch.dtype) -> LevelWeights:
        """The same weights in another dtype."""
        pairs = zip(self._fields, self.tensors(), strict=False)
        moved: dict[str, Any] = {name: t.to(dtype) for name, t in pairs if t is not None}
        return self._replace(**moved)


class Again(NamedTuple):
    """Fast weights that a backward pass does not keep but makes again.

    Attributes:
        tensors: what they are made of.
        make: of these, when they are needed, the fast weights (up, down); holds no tensors.
    """

    tensors: tuple[Tensor | None, ...]
    make: Callable[[Sequence[Any]], tuple[Tensor | None, Tensor | None]]


def level_normalize(x: Tensor, form: LevelForm) -> Tensor:
    """What the first layer reads."""
    norm = F.rms_norm if form.norm == "rms" else F.layer_norm
    return norm(x, x.shape[-1:], eps=form.eps)


def level_activate(z: Tensor, form: LevelForm) -> Tensor:
    """phi(z), half as wide with swiglu."""
    if form.activation == "silu":
        return F.silu(z)
    if form.activation == "swiglu":
        gate, value = z.chunk(2, -1)
        return F.silu(gate) * value
    return F.gelu(z, approximate=_APPROXIMATE[form.activation])


def level_read(x_BTD: Tensor, w: LevelWeights) -> tuple[Tensor, Tensor]:
    """Read a level.

    Args:
        x_BTD: (B, T, D) input.

    Returns:
        y (B, T, D) and the pre-activation z (B, T, F).
    """
    branch, z = level_branch(x_BTD, w)
    return x_BTD + branch, z


def level_branch(
    x_BTD: Tensor,
    w: LevelWeights,
    gate_BTF: Tensor | None = None,
    again: Again | None = None,
) -> tuple[Tensor, Tensor]:
    """What a level adds to its input: phi(z) V^T + c (B, T, D), and z (B, T, F).

    Differentiable once. Input, z, gate and the weights are all that is kept for it; with ``again``
    what the fast weights are made of in their place, which then get no gradient.
    """
    y, z = _Branch.apply(w.form, again, x_BTD, gate_BTF, *w.tensors())
    return y, z


def level_branch_reference(
    x_BTD: Tensor, w: LevelWeights, gate_BTF: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same by autograd, the fast weights in terms of their own."""
    n = level_normalize(x_BTD, w.form)
    z = n @ w.up.T + (0 if w.up_bias is None else w.up_bias)
    if w.fast_up is not None:
        z = z - w.rate_up * (n @ w.fast_up.mT.to(n.dtype))
    a = level_activate(z, w.form) * (1 if gate_BTF is None else gate_BTF)
    y = a @ w.down.T + (0 if w.down_bias is None else w.down_bias)
    if w.fast_down is not None:
        y = y - w.rate_down * (a @ w.fast_down.mT.to(a.dtype))
    return y, z


def _in_force(meta: Tensor, fast: Tensor | None, rate: Tensor) -> Tensor:
    """The weights of every row, (B, P, N), or of all, (P, N)."""
    return meta if fast is None else torch.addcmul(meta, rate, fast, value=-1)


def _linear(x_BTN: Tensor, meta: Tensor, fast: Tensor | None, rate: Tensor) -> Tensor:
    """x W^T (B, T, P), one product where a row has tokens enough to pay for its weights."""
    if fast is None or x_BTN.shape[1] >= FEW_TOKENS:
        return x_BTN @ _in_force(meta, fast, rate).mT.to(x_BTN.dtype)
    return x_BTN @ meta.T.to(x_BTN.dtype) - rate * (x_BTN @ fast.mT.to(x_BTN.dtype))


def _linear_backward(
    grad_BTP: Tensor, x_BTN: Tensor, meta: Tensor, fast: Tensor | None, rate: Tensor
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of input, meta weights, fast weights and rate."""
    by_x = grad_BTP @ _in_force(meta, fast, rate).to(grad_BTP.dtype)
    if fast is None:
        return by_x, grad_BTP.flatten(0, 1).mT @ x_BTN.flatten(0, 1), None, None
    if fast.dim() == 2:
        by_meta = by_fast = grad_BTP.flatten(0, 1).mT @ x_BTN.flatten(0, 1)
    else:
        by_fast = grad_BTP.mT @ x_BTN
        by_meta = by_fast.sum(0)
    by_rate = -torch.linalg.vecdot(by_fast.flatten().to(fast.dtype), fast.flatten())
    return by_x, by_meta, by_fast, by_rate.view(rate.shape)


def _activated(z: Tensor, form: LevelForm) -> tuple[Tensor, Tensor]:
    """phi(z) and what ``_through`` multiplies with, as wide as z."""
    if form.activation in _APPROXIMATE:
        how = _APPROXIMATE[form.activation]
        slope = torch.ops.aten.gelu_backward(torch.ones_like(z), z, approximate=how)
        return F.gelu(z, approximate=how), slope
    first, *value = z.chunk(2, -1) if form.activation == "swiglu" else (z,)
    gate = torch.sigmoid(first)
    a = first * gate
    slope = torch.addcmul(gate, a, 1 - gate)  # g + phi (1 - g)
    if not value:
        return a, slope
    return a * value[0], torch.cat([slope * value[0], a], -1)


def _gated(a: Tensor, unit: Tensor | None) -> Tensor:
    """Each token's hidden units times its gate."""
    return a if unit is None else a * unit.to(a.dtype)


def _through(by_a: Tensor, slope: Tensor) -> Tensor:
    """The gradient of z from that of phi(z)."""
    if slope.shape[-1] == by_a.shape[-1]:
        return by_a * slope
    return torch.cat([by_a, by_a], -1) * slope


def _norm_parts(x: Tensor, form: LevelForm) -> tuple[Tensor, Tensor]:
    """norm(x) and what the input was multiplied with."""
    if form.norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + form.eps)
    return x * inverse, inverse


def _norm_backward(grad: Tensor, normalized: Tensor, inverse: Tensor, form: LevelForm) -> Tensor:
    """Gradient of x from that of norm(x)."""
    along = (grad * normalized).mean(-1, keepdim=True)
    if form.norm == "layer":
        grad = grad - grad.mean(-1, keepdim=True)
    return torch.addcmul(grad, normalized, along, value=-1).mul_(inverse)


@Program
def _branch(
    spec: tuple[torch.dtype, LevelForm], x: Tensor, unit: Tensor | None, *weights: Any
) -> tuple[Tensor, Tensor]:
    dtype, form = spec
    w = LevelWeights(*weights)
    n = level_normalize(x, form).to(dtype)
    z = _linear(n, w.up, w.fast_up, w.rate_up).to(dtype)
    if w.up_bias is not None:
        z = z + w.up_bias.to(dtype)
    y = _linear(_gated(level_activate(z, form), unit), w.down, w.fast_down, w.rate_down)
    if w.down_bias is not None:
        y = y + w.down_bias.to(dtype)
    return y.to(dtype), z


@Program
def _branch_adjoints(
    spec: tuple[LevelForm, bool, bool], grad_y: Tensor | None, grad_z: Tensor | None, *kept: Any
) -> tuple[Any, ...]:
    """Gradients of x and of the tensors of the weights; ``spec``: of the fast ones too."""
    form, to_up, to_down = spec
    x, z, unit, *weights = kept
    w = LevelWeights(*weights)
    if grad_y is None:
        grad_y = z.new_zeros(*z.shape[:2], w.down.shape[0])
    n, inverse = _norm_parts(x, form)
    a, slope = _activated(z, form)
    by_a, by_down, by_fast_down, by_rate_down = _linear_backward(
        grad_y, _gated(a, unit), w.down, w.fast_down, w.rate_down
    )
    by_unit = None if unit is None else (by_a * a).to(unit.dtype)
    by_z = _through(_gated(by_a, unit), slope)
    by_z = by_z if grad_z is None else by_z.add_(grad_z)
    by_n, by_up, by_fast_up, by_rate_up = _linear_backward(
        by_z, n.to(z.dtype), w.up, w.fast_up, w.rate_up
    )
    by_x = _norm_backward(by_n.to(x.dtype), n, inverse, form)
    by_fast_up = -w.rate_up * by_fast_up if to_up and by_fast_up is not None else None
    by_fast_down = -w.rate_down * by_fast_down if to_down and by_fast_down is not None else None
    by_bias = None if w.up_bias is None else by_z.sum((0, 1))
    by_offset = None if w.down_bias is None else grad_y.sum((0, 1))
    fast = by_fast_up, by_fast_down, by_rate_up, by_rate_down
    return by_x, by_unit, by_up, by_down, *fast, by_bias, by_offset


class _Branch(torch.autograd.Function):
    """``level_branch``: the form, x, the gate, then the tensors of the weights."""

    @staticmethod
    def forward(
        ctx: Any,
        form: LevelForm,
        again: Again | None,
        x: Tensor,
        unit: Tensor | None,
        *weights: Any,
    ) -> tuple[Tensor, Tensor]:
        device = x.device.type
        half = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if half else x.dtype
        with torch.autocast(device, enabled=False):
            found = _branch_native(form, x, unit, *weights) if dtype == x.dtype else None
            y, z = found or _branch((dtype, form), x, unit, *weights, tokens=x.shape[1])
        ctx.form, ctx.make = form, None if again is None else again.make
        if again is not None:
            weights = (*weights[:2], None, None, *weights[4:], *again.tensors)
        ctx.save_for_backward(x, z, unit, *weights)
        ctx.set_materialize_grads(False)
        return y, z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, grad_z: Tensor | None) -> tuple[Any, ...]:
        kept = ctx.saved_tensors
        spec = (ctx.form, ctx.needs_input_grad[6], ctx.needs_input_grad[7])
        with torch.autocast(kept[0].device.type, enabled=False):
            if ctx.make is not None:
                kept = (*kept[:5], *ctx.make(kept[11:]), *kept[7:11])
            parts = spec, grad_y, grad_z, *kept
            found = _adjoints_native(*parts) or _branch_adjoints(*parts, tokens=kept[0].shape[1])
        return None, None, *found


def level_hidden_signal(
    z_BTF: Tensor, signal_BTD: Tensor, w: LevelWeights, gate_BTF: Tensor | None = None
) -> Tensor:
    """e = g (d V) phi'(z): the signal at the pre-activation, (B, T, F)."""
    parts = (w.form, z_BTF, signal_BTD, gate_BTF, w.down, w.fast_down, w.rate_down)
    made = _hidden_native(*parts)
    found: Tensor = _hidden_signal(*parts, tokens=z_BTF.shape[1]) if made is None else made
    return found


@Program
def _hidden_signal(
    form: LevelForm, z: Tensor, signal: Tensor, unit: Tensor | None, *down: Any
) -> Tensor:
    return _through(_gated(_pulled(signal, *down), unit), _activated(z, form)[1])


def _pulled(signal: Tensor, meta: Tensor, fast: Tensor | None, rate: Tensor) -> Tensor:
    """signal W, as ``_linear``."""
    if fast is None or signal.shape[1] >= FEW_TOKENS:
        return signal @ _in_force(meta, fast, rate)
    return signal @ meta - rate * (signal @ fast)


def level_pull_back(
    x_BTD: Tensor, signal_BTD: Tensor, hidden_signal_BTF: Tensor, w: LevelWeights
) -> Tensor:
    """dL/dx of the level: the residual path plus the path through norm and first layer."""
    parts = (w.form, x_BTD, signal_BTD, hidden_signal_BTF, w.up, w.fast_up, w.rate_up)
    made = _pull_back_native(*parts)
    found: Tensor = _pull_back(*parts, tokens=x_BTD.shape[1]) if made is None else made
    return found


@Program
def _pull_back(
    form: LevelForm, x: Tensor, signal: Tensor, hidden_signal: Tensor, *up: Any
) -> Tensor:
    return signal + _norm_backward(_pulled(hidden_signal, *up), *_norm_parts(x, form), form)


def level_gradients(
    x_BTD: Tensor,
    z_BTF: Tensor,
    signal_BTD: Tensor,
    hidden_signal_BTF: Tensor,
    form: LevelForm = PLAIN,
    gate_BTF: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Per-row gradient of the summed signal: dU (B, F, D) and dV (B, D, F)."""
    parts = (form, x_BTD, z_BTF, signal_BTD, hidden_signal_BTF, gate_BTF)
    up, down = _gradients_native(*parts) or _gradients(*parts, tokens=x_BTD.shape[1])
    return up, down


@Program
def _gradients(
    form: LevelForm, x: Tensor, z: Tensor, signal: Tensor, hidden_signal: Tensor, unit: Any
) -> tuple[Tensor, Tensor]:
    a = _gated(level_activate(z, form), unit)
    return hidden_signal.mT @ level_normalize(x, form), signal.mT @ a


def level_gradients_reference(
    x_BTD: Tensor,
    signal_BTD: Tensor,
    up_BFD: Tensor,
    down_BDF: Tensor,
    form: LevelForm = PLAIN,
) -> tuple[Tensor, Tensor, Tensor]:
    """dU, dV and dL/dx by autograd through a plainly written read, row by row.

    Args:
        up_BFD, down_BDF: the full weights of every row.
    """
    rows = []
    for x, signal, up, down in zip(x_BTD, signal_BTD, up_BFD, down_BDF, strict=True):
        leaves = [t.detach().clone().requires_grad_() for t in (up, down, x)]
        u, v, inp = leaves
        centred = inp - inp.mean(-1, keepdim=True) if form.norm == "layer" else inp
        n = centred / (centred.square().mean(-1, keepdim=True) + form.eps).sqrt()
        y = inp + level_activate(n @ u.T, form) @ v.T
        rows.append(torch.autograd.grad((y * signal).sum(), leaves))
    grad_up, grad_down, grad_x = (torch.stack(parts) for parts in zip(*rows, strict=True))
    return grad_up, grad_down, grad_x
