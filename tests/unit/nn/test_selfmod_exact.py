"""The self-modifying memory against a naive token loop: states, outputs, all gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, rms_norm, silu, softplus

from nl.nn.selfmod import SelfMod, SelfModConfig, SelfModState
from nl.ops.norm_linear import RMS_EPS

EXACT = 1e-9
DIM = 8
EPS = 1e-6

SMALL: dict[str, Any] = {"head_size": 4, "hidden": 8, "period": 4}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"period": 1},
    {"output_rule": "delta", "activation": "gelu"},
    {"output_rule": "decay", "objective": "dot"},
    {"skip": True, "direct_gates": False},
    {"target": "self", "adaptive_q": True},
    {"target": "self", "skip": True},
    {"target": "self", "target_norm": False, "hidden": 4},
    {"gate_hidden": 3},
    {"clip": 0.0},
    {"clip": 0.1, "skip": True},
    {"retention": "zero", "conv": 0},
    {"retention": "row_norm", "conv": 2},
    {"period": 6, "period_other": 3},
    {"period": 2, "period_other": 8},
]
NAMES = ["-".join(f"{k}={v}" for k, v in kw.items()) or "default" for kw in VARIANTS]
each_variant = pytest.mark.parametrize("kw", VARIANTS, ids=NAMES)


def layer(seed: int = 0, dim: int = DIM, **kw: Any) -> SelfMod:
    """A float64 layer whose output projection is not zero and whose gates are lively."""
    torch.manual_seed(seed)
    module = SelfMod(SelfModConfig(**{**SMALL, **kw}), dim).double()
    with torch.no_grad():
        module.out.weight.normal_()
        module.gain.normal_(1.0, 0.1)
        module.memory_output.mul_(3)
        module.gates_output.mul_(5)
        module.other_rate.add_(3)
        module.hidden_rate.add_(3)
    return module


def tokens(rows: int, length: int, dim: int = DIM, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, length, dim, generator=generator, dtype=torch.float64)


def unit(x: Tensor) -> Tensor:
    return x / (x.square().sum() + EPS).sqrt()


class Memory:
    """One memory of one row and head: matrices W2 (F, K), W1 (P, F), and the paper's loop."""

    def __init__(
        self, config: SelfModConfig, hidden: Tensor, output: Tensor, skip: bool = True
    ) -> None:
        self.c, self.start = config, (hidden, output)
        self.now = self.start
        self.phi = silu if config.activation == "silu" else gelu
        self.vector = output.shape[0] > 1
        self.skip = self.vector and skip

    def __call__(self, x: Tensor, weights: tuple[Tensor, Tensor] | None = None) -> Tensor:
        hidden, output = weights or self.now
        y = output @ self.phi(hidden @ x)
        return x + y if self.skip else y

    def target(self, value: Tensor) -> Tensor:
        made = self(value)
        return unit(made) if self.c.target_norm and self.vector else made

    def learn(self, chunk: list[tuple[Tensor, ...]], slow: Tensor | float = 1.0) -> None:
        """Write (key, target, rate, log decay) of one chunk, gradients at the chunk start.

        ``slow`` is the share of the rate that the first layer learns at.
        """
        anchored = self.c.retention == "anchor"
        base = self.start if anchored else tuple(torch.zeros_like(w) for w in self.start)
        frozen = tuple(w + 0 for w in self.now)
        hidden, output = (w - b for w, b in zip(self.now, base, strict=True))
        for key, target, rate, log_decay in chunk:
            z = frozen[0] @ key
            made = frozen[1] @ self.phi(z) + (key if self.skip else 0)
            loss = -(made * target).sum()
            if self.c.objective == "l2":
                loss = 0.5 * made.square().sum() + loss
            delta, by_output = torch.autograd.grad(loss, (z, frozen[1]), create_graph=True)
            if self.c.clip:
                delta = delta.clamp(-self.c.clip, self.c.clip)
            alpha = log_decay.exp()
            hidden = alpha * hidden - rate * slow * torch.outer(hidden @ key + delta, key)
            a = self.phi(z)
            norm = (a.square().sum() + EPS).sqrt()
            x = a / norm
            if self.c.output_rule == "decay":
                output = alpha * output - rate * by_output
            elif self.c.output_rule == "delta":
                output = alpha * output - rate * (torch.outer(output @ x, x) + by_output)
            else:
                wanted = target - key if self.skip else target
                error = (base[1] + output) @ x - wanted / norm
                output = alpha * output - rate * torch.outer(error, x)
        now = (base[0] + hidden, base[1] + output)
        if self.c.retention == "row_norm":
            now = tuple(
                w / w.norm(dim=-1, keepdim=True) * s.norm(dim=-1, keepdim=True)
                for w, s in zip(now, self.start, strict=True)
            )
        self.now = now


def head_reference(
    m: SelfMod, h: int, streams: Tensor, direct: Tensor
) -> tuple[Tensor, list[Memory]]:
    """One head of one row: (T, 4, K) inputs, (T, 2) of gates -> (T, K) reads and its memories."""
    c = m.config
    first = [*m.makers_hidden[h].split(c.hidden), *m.gates_hidden[h].split(c.gate_hidden)]
    second = [*m.makers_output[h], *m.gates_output[h]]
    others = [Memory(c, a, b) for a, b in zip(first, second, strict=True)]
    memory = Memory(c, m.memory_hidden[h], m.memory_output[h, 0], c.skip)
    scale = torch.sigmoid(m.other_rate[h])
    waiting: list[list[Tensor]] = []
    reads = []
    for t, (for_key, for_value, for_query, for_gate) in enumerate(streams):
        key, value = unit(others[0](for_key)), unit(others[1](for_value))
        query = unit(others[2](for_query) if c.adaptive_q else for_query)
        rate = torch.sigmoid(others[-2](for_gate)[0] + direct[t, 0] + m.rate_bias[h])
        log_decay = -softplus(others[-1](for_gate)[0] + direct[t, 1] + m.decay_bias[h])
        reads.append(memory(query))
        waiting.append([key, value, rate, log_decay])
        chunks: list[tuple[Memory, list[tuple[Tensor, ...]]]] = []
        if (t + 1) % m.period == 0:
            taught = memory.target if c.target == "self" else lambda v: v
            part = waiting[-m.period :]
            chunks.append((memory, [(k, taught(v), r, d) for k, v, r, d in part]))
        if (t + 1) % m.period_other == 0:
            part = waiting[-m.period_other :]
            for o in others:
                made = [(k, o.target(v).detach(), r * scale, d) for k, v, r, d in part]
                chunks.append((o, made))
        for which, chunk in chunks:
            which.learn(chunk, torch.sigmoid(m.hidden_rate[h]) if which is memory else 1.0)
    return torch.stack(reads), [memory, *others]


def selfmod_reference(m: SelfMod, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (B, T, D), all first layers (B, H, ...) and second layers, token by token."""
    length, dim = x.shape[1:]
    K = m.config.head_size
    outs, first, second = [], [], []
    for row in x:
        parts = row @ m.project.weight.T
        if m.conv is not None:
            some, for_gates = parts[:, : 3 * dim], parts[:, 3 * dim :]
            padded = torch.cat([some.new_zeros(m.conv.width - 1, 3 * dim), some])
            taps = range(m.conv.width)
            mixed = torch.stack(
                [sum(m.conv.weight[i] * padded[t + i] for i in taps) for t in range(length)]
            )
            parts = torch.cat([silu(mixed), for_gates], dim=-1)
        parts = parts.view(length, 4, m.heads, K)
        direct = torch.zeros(length, 2, m.heads, dtype=x.dtype)
        if m.gate_input is not None:
            direct = (row @ m.gate_input.weight.T).view(length, 2, m.heads)
        heads = [head_reference(m, h, parts[:, :, h], direct[:, :, h]) for h in range(m.heads)]
        read = torch.cat([r for r, _ in heads], dim=-1)
        outs.append((rms_norm(read, (dim,), eps=RMS_EPS) * m.gain) @ m.out.weight.T)
        first.append(torch.cat([o.now[0].flatten() for _, ms in heads for o in ms]))
        second.append(torch.cat([o.now[1].flatten() for _, ms in heads for o in ms]))
    return torch.stack(outs), torch.stack(first), torch.stack(second)


def weights_of(m: SelfMod, state: SelfModState) -> tuple[Tensor, Tensor]:
    """The weights a state stands for, in the order of the reference."""

    def rows(start: list[Tensor], added: list[Tensor]) -> Tensor:
        whole = [(s + a).flatten(2, -1) for s, a in zip(start, added, strict=True)]
        return torch.cat(whole, dim=-1).flatten(1)

    banks = (state.memory, state.makers, state.gates)
    first = rows(
        [m.memory_hidden, m.makers_hidden, m.gates_hidden], [bank.hidden for bank in banks]
    )
    second = rows(
        [m.memory_output, m.makers_output, m.gates_output], [bank.output for bank in banks]
    )
    return first, second


def graded(m: SelfMod, x: Tensor, run: Callable[[Tensor], tuple[Tensor, ...]]) -> list[Tensor]:
    """Everything a run yields, then the gradients of a fixed mix of it for x and parameters."""
    leaf = x.clone().requires_grad_()
    values = run(leaf)
    generator = torch.Generator().manual_seed(7)
    loss = sum((v * torch.randn(v.shape, generator=generator, dtype=v.dtype)).sum() for v in values)
    grads = torch.autograd.grad(loss, [leaf, *m.parameters()])
    return [*(v.detach() for v in values), *grads]


def check_exact(m: SelfMod, x: Tensor) -> None:
    def chunked(leaf: Tensor) -> tuple[Tensor, ...]:
        y, state = m(leaf, position=0)
        return (y, *weights_of(m, state))

    fast = graded(m, x, chunked)
    slow = graded(m, x, lambda leaf: selfmod_reference(m, leaf))
    for value, wanted in zip(fast, slow, strict=True):
        assert torch.isfinite(value).all()
        assert (value - wanted).norm() <= EXACT * wanted.norm().clamp(min=1.0)


@each_variant
def test_equals_the_token_loop(kw: dict[str, Any]) -> None:
    check_exact(layer(**kw), tokens(2, 11))


@pytest.mark.parametrize("rule", ["delta_error", "delta"])
@pytest.mark.parametrize(("period", "length"), [(1, 4), (3, 10), (16, 37), (64, 130)])
def test_equals_the_token_loop_at_any_period(period: int, length: int, rule: str) -> None:
    check_exact(layer(dim=4, period=period, output_rule=rule), tokens(1, length, 4))


@pytest.mark.parametrize("bias", [-40.0, 45.0])
def test_equals_the_token_loop_when_all_or_nothing_is_kept(bias: float) -> None:
    m = layer()
    with torch.no_grad():
        m.decay_bias.fill_(bias)
    check_exact(m, tokens(1, 10))


def test_equals_the_token_loop_on_repeated_and_zero_tokens() -> None:
    x = tokens(2, 13)
    x[0] = x[0, :1]
    x[1, 3:11] = 0
    check_exact(layer(), x)
