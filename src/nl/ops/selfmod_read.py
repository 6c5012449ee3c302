"""What a self-modifying memory does with tokens before it writes, as one function. Floor 1.

Letters as in ``nl.ops.fast_mlp``, H heads in N = B H. The projected inputs of keys, values and
queries pass a causal convolution and SiLU, those of the gates do not; then, at the state of the
chunk start (unit = unit L2 norm over K),

    k = unit(M_k(x_k))    v = unit(M_v(x_v))    q = unit(x_q), or unit(M_q(x_q)) with three makers
    r = sigmoid(M_eta(x_g) + logit)    log alpha = -softplus(M_alpha(x_g) + logit)
    o = M_memory(q)

(Nested Learning, NeurIPS 2025, self-modifying Titans). The backward pass keeps the projections,
the memories, keys and values, and computes everything else again. Plain fp32 and fp64 tensors of
the CPU go through a kernel (``nl.ops.selfmod_native``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad, silu, softplus

from nl.core.program import Program
from nl.ops.fast_mlp import Activation, FastWeights, fast_mlp, in_force, slope_of
from nl.ops.selfmod_native import KERNEL, NativeRead

UNIT_EPS = 1e-6
"""Added to a squared norm, so that zero has a direction: none."""


class Banks(NamedTuple):
    """The three banks of a layer: initial weights, what was added to them, or gradients."""

    memory: FastWeights
    makers: FastWeights
    gates: FastWeights

    @classmethod
    def of(cls, six: Any) -> Banks:
        """From the six tensors in order."""
        return cls(*(FastWeights(*six[i : i + 2]) for i in (0, 2, 4)))

    def tensors(self) -> list[Tensor]:
        """The six tensors in order."""
        return [t for bank in self for t in bank]


class ReadInputs(NamedTuple):
    """What is read.

    Attributes:
        padded: (B, W - 1 + T, 4 D) projections for keys, values, queries, gates, with those of the
            W - 1 tokens before; the part for the gates ignores them.
        taps: (W, 3 D) of the convolution, or None (W = 1: neither convolution nor SiLU).
        logits: (N, 2, T) what the gates add to their memories' answers.
    """

    padded: Tensor
    taps: Tensor | None
    logits: Tensor


class Recalled(NamedTuple):
    """What reading gives: keys, values, answers (N, K, T); rate, log decay (N, T)."""

    keys: Tensor
    values: Tensor
    rate: Tensor
    log_decay: Tensor
    answers: Tensor


class _Spec(NamedTuple):
    """What is no tensor."""

    activation: Activation
    skip: bool
    dtype: torch.dtype


def unit(x: Tensor) -> Tensor:
    """Unit L2 norm over the features (..., K, T), at least fp32; smooth at zero."""
    return _unit(x)[0]


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """The unit vectors and the factor that made them so."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    factor = x.square().sum(-2, keepdim=True).add(UNIT_EPS).rsqrt()
    return x * factor, factor


def _unit_backward(grad: Tensor, units: Tensor, factor: Tensor) -> Tensor:
    along = (grad * units).sum(-2, keepdim=True)
    return torch.addcmul(grad, units, along, value=-1).mul_(factor)


def _heads(padded: Tensor, heads: int) -> Tensor:
    """(B, S, 4 D) -> (4, N, K, S): one contiguous block per kind of input; tokens last."""
    rows, size, _ = padded.shape
    if padded.device.type == "cpu" and not torch.compiler.is_compiling():
        # A single matrix is turned round in blocks, a batch of them one number after the other.
        padded = torch.stack([row.t().contiguous() for row in padded]).mT
    split = padded.view(rows, size, 4, heads, -1).permute(2, 0, 3, 4, 1)
    return split.reshape(4, rows * heads, -1, size)


def _joined(streams: Tensor, heads: int) -> Tensor:
    """The inverse of ``_heads``."""
    split = streams.unflatten(1, (-1, heads))
    return split.permute(1, 4, 0, 2, 3).flatten(2)


def _per_head(taps: Tensor, heads: int) -> Tensor:
    """(W, 3 D) taps -> (W, 3, 1, H, K, 1)."""
    return taps.view(len(taps), 3, 1, heads, -1, 1)


def _convolve(split: Tensor, taps: Tensor | None, heads: int) -> Tensor:
    """Convolution of the first three kinds (3, N, K, S) -> (3, N, K, T), before SiLU."""
    if taps is None:
        return split[:3]
    length = split.shape[-1] - len(taps) + 1
    given, weights = split[:3].unflatten(1, (-1, heads)), _per_head(taps, heads)
    mixed = given[..., :length] * weights[0]
    for i in range(1, len(taps)):
        mixed.addcmul_(given[..., i : i + length], weights[i])
    return mixed.flatten(1, 2)


def _convolve_backward(
    grad: Tensor, split: Tensor, taps: Tensor, heads: int
) -> tuple[Tensor, Tensor]:
    """Gradients of the inputs (3, N, K, S) and of the taps (W, 3 D)."""
    length, more, weights = grad.shape[-1], len(taps) - 1, _per_head(taps, heads)
    grad, given = grad.unflatten(1, (-1, heads)), split[:3].unflatten(1, (-1, heads))
    wide = pad(grad, (more, more))
    by_split = wide[..., more:] * weights[0]
    by_taps = [(grad * given[..., :length]).sum(-1)]
    for i in range(1, len(taps)):
        by_split.addcmul_(wide[..., more - i : -i], weights[i])
        by_taps.append((grad * given[..., i : i + length]).sum(-1))
    return by_split.flatten(1, 2), torch.stack(by_taps).sum(2).flatten(1)


class _Streams(NamedTuple):
    """Inputs of the memories (N, K, T) and what the backward pass needs to go behind them."""

    makers: list[Tensor]
    gates: Tensor
    query: Tensor
    mixed: Tensor
    split: Tensor


def _streams(padded: Tensor, taps: Tensor | None, heads: int, makers: int) -> _Streams:
    split = _heads(padded, heads)
    mixed = _convolve(split, None if taps is None else taps.to(padded.dtype), heads)
    given = mixed if taps is None else silu(mixed)
    width = 1 if taps is None else len(taps)
    last = split[3, ..., width - 1 :]
    return _Streams(list(given[:makers]), last, given[2], mixed, split)


def _answer(hidden: Tensor, output: Tensor, x: Tensor, name: Activation) -> Tensor:
    """W1 phi(W2 x) (N, M, P, T) of memories with one input x (N, K, T)."""
    z = hidden @ x
    a = silu(z) if name == "silu" else slope_of(z, name)[0]
    return output @ a.unflatten(1, (output.shape[1], -1))


def _answer_backward(
    grad: Tensor, hidden: Tensor, output: Tensor, x: Tensor, name: Activation
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of W2, W1 and x."""
    a, slope, _ = slope_of(hidden @ x, name)
    a = a.unflatten(1, (output.shape[1], -1))
    by_z = (output.mT @ grad).view_as(slope).mul_(slope)
    return by_z @ x.mT, grad @ a.mT, hidden.mT @ by_z


def _each(bank: FastWeights) -> Iterator[tuple[Tensor, Tensor]]:
    """The memories of a bank, each with its own input."""
    size = bank.output.shape[-1]
    for m in range(bank.output.shape[1]):
        yield bank.hidden[:, m * size : (m + 1) * size], bank.output[:, m : m + 1]


@Program
def _recalled(
    spec: _Spec, padded: Tensor, taps: Tensor | None, logits: Tensor, *banks: Tensor
) -> tuple[Tensor, ...]:
    """What ``Recalled`` holds, then the factors that made keys and values unit vectors."""
    weights = _weights(banks, spec)
    heads, makers = banks[0].shape[0], weights.makers.output.shape[1]
    streams = _streams(padded, taps, heads, makers)
    made = []
    for (w2, w1), x in zip(_each(weights.makers), streams.makers, strict=True):
        x = x.to(spec.dtype)
        made.append(_answer(w2, w1, x, spec.activation).squeeze(1) + x)
    keys, key_factor = _unit(made[0])
    values, value_factor = _unit(made[1])
    gates = _answer(*weights.gates, streams.gates.to(spec.dtype), spec.activation)
    gates = gates.squeeze(2).to(logits.dtype) + logits
    rate, log_decay = torch.sigmoid(gates[:, 0]), -softplus(gates[:, 1])
    query = unit(made[2] if makers > 2 else streams.query).to(spec.dtype)
    answers = _answer(*weights.memory, query, spec.activation).squeeze(1)
    if spec.skip:
        answers = answers + query
    return keys, values, rate, log_decay, answers, key_factor, value_factor


class _Read(torch.autograd.Function):
    """``selfmod_read`` with flat arguments."""

    @staticmethod
    def forward(
        ctx: Any, spec: _Spec, padded: Tensor, taps: Tensor | None, logits: Tensor, *banks: Tensor
    ) -> tuple[Tensor, ...]:
        native = _native(spec, padded, taps, logits, *banks)
        ctx.native = native is not None
        if native is not None:
            out = tuple(native.read(logits))
        else:
            with torch.autocast(padded.device.type, enabled=False):
                out = _recalled(spec, padded, taps, logits, *banks, tokens=logits.shape[-1])
        keys, values, rate, log_decay, answers, *factors = out
        ctx.spec = spec
        ctx.save_for_backward(padded, taps, keys, values, *factors, rate, log_decay, *banks)
        return keys, values, rate, log_decay, answers

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        saved = ctx.saved_tensors
        if ctx.native:
            native = _call(ctx.spec, grads[0].shape[-1], *saved[:2], *saved[8:])
            return None, *native.adjoints(grads, saved[2:8])
        with torch.autocast(grads[0].device.type, enabled=False):
            found = _read_adjoints(ctx.spec, *grads, *saved, tokens=grads[0].shape[-1])
        by_split, by_gates, *rest = found
        whole = by_split.new_zeros(4, *by_split.shape[1:])
        whole[:3], whole[3, ..., -by_gates.shape[-1] :] = by_split, by_gates
        return None, _joined(whole, saved[8].shape[0]), *rest


def _call(spec: _Spec, tokens: int, *given: Any) -> NativeRead:
    return NativeRead(spec.skip, spec.activation == "gelu", tokens, given)


def _native(
    spec: _Spec, padded: Tensor, taps: Tensor | None, logits: Tensor, *banks: Tensor
) -> NativeRead | None:
    """The call of the kernel, where it can take these tensors."""
    if padded.dtype != spec.dtype or not KERNEL.takes(padded, taps, logits, *banks):
        return None
    call = _call(spec, logits.shape[-1], padded, taps, *banks)
    return call if call.fits(logits) else None


def _weights(banks: Any, spec: _Spec) -> Banks:
    """The weights in force, in the dtype of the computation."""
    pairs = zip(banks[:6], banks[6:], strict=True)
    return Banks.of([in_force(start, more).to(spec.dtype) for start, more in pairs])


@Program
def _read_adjoints(spec: _Spec, *tensors: Any) -> tuple[Tensor | None, ...]:
    """Gradients of the inputs, from those of the results and what was kept.

    That of the projections is in two parts, (3, N, K, S) and (N, K, T): to turn them round is no
    work for a compiler.
    """
    grads, saved = tensors[:5], tensors[5:]
    padded, taps, keys, values, key_factor, value_factor, rate, log_decay, *banks = saved
    by_keys, by_values, by_rate, by_log, by_answers = grads
    weights, dtype, name = _weights(banks, spec), spec.dtype, spec.activation
    heads, makers = banks[0].shape[0], weights.makers.output.shape[1]
    streams = _streams(padded, taps, heads, makers)
    inputs = [x.to(dtype) for x in streams.makers]
    # memory, asked by the query
    raw = streams.query
    if makers > 2:
        w2, w1 = list(_each(weights.makers))[2]
        raw = _answer(w2, w1, inputs[2], name).squeeze(1) + inputs[2]
    query, factor = _unit(raw)
    asked, answered = query.to(dtype), by_answers.to(dtype)
    found = _answer_backward(answered.unsqueeze(1), *weights.memory, asked, name)
    by_query = (found[2] + answered if spec.skip else found[2]).to(query.dtype)
    by_query = _unit_backward(by_query, query, factor)
    # makers
    made = [
        _unit_backward(by_keys, keys, key_factor),
        _unit_backward(by_values, values, value_factor),
        by_query,
    ]
    by_makers, by_inputs = [], []
    for (w2, w1), x, grad in zip(_each(weights.makers), inputs, made, strict=False):
        grad = grad.to(dtype)
        by_w2, by_w1, by_x = _answer_backward(grad.unsqueeze(1), w2, w1, x, name)
        by_makers.append((by_w2, by_w1))
        by_inputs.append(by_x.add_(grad))
    if makers == 2:
        by_inputs.append(by_query)
    # gates; 1 - alpha is the slope of the softplus
    by_logits = torch.stack([by_rate * rate * (1 - rate), by_log * log_decay.expm1()], 1)
    by_gates = _answer_backward(
        by_logits.to(dtype).unsqueeze(2), *weights.gates, streams.gates.to(dtype), name
    )
    six = [*found[:2], *(torch.cat(parts, 1) for parts in zip(*by_makers, strict=True))]
    six += by_gates[:2]
    by_mixed = torch.stack([x.to(padded.dtype) for x in by_inputs])
    by_split, by_taps = _inputs_backward(by_mixed, streams, taps, heads)
    initial = [g.unflatten(0, (-1, heads)).sum(0) for g in six]
    return by_split, by_gates[2], by_taps, by_logits, *initial, *six


def _inputs_backward(
    grad: Tensor, streams: _Streams, taps: Tensor | None, heads: int
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the projections but for the gates (3, N, K, S), and of the taps."""
    by_taps = None
    if taps is not None:
        grad = grad * slope_of(streams.mixed, "silu")[1]
        grad, by_taps = _convolve_backward(grad, streams.split, taps.to(grad.dtype), heads)
    return grad, by_taps


def selfmod_read(
    inputs: ReadInputs, initial: Banks, added: Banks, activation: Activation, skip: bool
) -> Recalled:
    """Keys, values, gates and answers of T tokens, read at one state.

    Args:
        inputs: projections, convolution, logits of the gates.
        initial: (H, ...) weights; the makers are those of keys, values and, if there are three, of
            queries; the gates those of rate and decay.
        added: (N, ...) what has been added to them.
        activation: of every memory.
        skip: whether the answers contain the query; keys and values always contain their input.

    Returns:
        See ``Recalled``; all but the answers are at least fp32. Differentiable once.
    """
    device = inputs.padded.device.type
    dtype = torch.promote_types(initial.memory.hidden.dtype, added.memory.hidden.dtype)
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    spec = _Spec(activation, skip, dtype)
    return Recalled(*_Read.apply(spec, *inputs, *initial.tensors(), *added.tensors()))


def selfmod_read_reference(
    inputs: ReadInputs, initial: Banks, added: Banks, activation: Activation, skip: bool
) -> Recalled:
    """The same token by token from the module's equations; same arguments, same result."""
    padded, taps, logits = inputs
    heads = initial.memory.hidden.shape[0]
    rows, size, width = padded.shape
    length = logits.shape[-1]
    pairs = zip(initial.tensors(), added.tensors(), strict=True)
    banks = Banks.of([in_force(start, more) for start, more in pairs])
    makers = banks.makers.output.shape[1]
    tokens: list[tuple[Tensor, ...]] = []
    for t in range(length):
        mixed = padded[:, size - length + t]
        if taps is not None:
            past = padded[:, t : t + len(taps), : 3 * width // 4]
            mixed = torch.cat([silu((past * taps).sum(1)), mixed[:, 3 * width // 4 :]], dim=-1)
        x = mixed.view(rows, 4, heads, -1).transpose(1, 2).flatten(0, 1).unsqueeze(-1)
        made = [unit(m) for m in fast_mlp(banks.makers, x[:, :makers], activation).unbind(1)]
        query = made[2] if makers > 2 else unit(x[:, 2])
        gates = fast_mlp(banks.gates, x[:, 3:], activation)[..., 0, 0] + logits[..., t]
        answer = fast_mlp(banks.memory, query.unsqueeze(1), activation, skip).squeeze(1)
        rate, log_decay = torch.sigmoid(gates[:, :1]), -softplus(gates[:, 1:])
        tokens.append((made[0], made[1], rate, log_decay, answer))
    return Recalled(*(torch.cat(parts, dim=-1) for parts in zip(*tokens, strict=True)))
