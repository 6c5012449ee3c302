"""The Titans memory layer against a naive token loop, its clock, its precision, its stability."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, rms_norm, silu, softplus

from nl.config import ConfigError
from nl.core import state as states
from nl.core.native import torch_only
from nl.nn.chunks import pieces
from nl.nn.titan import TitanConfig, TitanMemory, TitanState
from nl.ops.norm_linear import RMS_EPS
from nl.ops.titans import TitansMemory, TitansTokens, titans_write_reference

EXACT = 1e-9
DIM = 8
SMALL: dict[str, Any] = {"head_size": 4, "hidden": 6, "period": 4}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"period": 1, "conv": 2},
    {"depth": 1},
    {"depth": 4, "hidden": None},
    {"momentum": False},
    {"gate": True},
    {"step": "plain", "retention": "zero", "rate": 0.1},
    {"retention": "zero", "conv": 0, "depth": 3},
    {"recompute": False},
]
NAMES = ["-".join(f"{k}={v}" for k, v in kw.items()) or "default" for kw in VARIANTS]


def layer(seed: int = 0, dim: int = DIM, **kw: Any) -> TitanMemory:
    """A float64 layer whose output projection is not zero and whose gates are lively."""
    torch.manual_seed(seed)
    module = TitanMemory(TitanConfig(**{**SMALL, **kw}), dim).double()
    with torch.no_grad():
        module.out.weight.normal_()
        module.gain.normal_(1.0, 0.1)
        module.bank.gates.weight.mul_(3)
        if module.bank.share is not None:
            module.bank.share.add_(3)
    return module


def tokens(rows: int, length: int, dim: int = DIM, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, length, dim, generator=generator, dtype=torch.float64)


def unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def answer(weights: tuple[Tensor, ...], x: Tensor) -> Tensor:
    for weight in weights[:-1]:
        y = silu(weight @ x)
        x = x + y if x.shape == y.shape else y
    return weights[-1] @ x


def convolved(conv: Any, x: Tensor) -> Tensor:
    """SiLU of the convolution of (T, channels), one token at a time."""
    if conv is None:
        return x
    padded = torch.cat([x.new_zeros(conv.width - 1, x.shape[1]), x])
    taps = range(conv.width)
    return silu(
        torch.stack([sum(conv.weight[i] * padded[t + i] for i in taps) for t in range(len(x))])
    )


def head_reference(m: TitanMemory, h: int, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One head of one row: inputs (T, D) -> reads (T, K) and the weights at the end."""
    c, bank = m.config, m.bank
    K, H = c.head_size, bank.heads
    part = slice(h * K, (h + 1) * K)
    query = unit(convolved(m.conv, x @ m.ask.weight[:DIM].T)[:, part])
    made = convolved(bank.conv, x @ bank.write.weight.T)
    key, value = unit(made[:, part]), unit(made[:, DIM:][:, part])
    logits = x @ bank.gates.weight.T + bank.gates.bias
    rate, kept = torch.sigmoid(logits[:, h]), -softplus(logits[:, H + h])
    eta = logsigmoid(logits[:, 2 * H + h]) if c.momentum else None
    share = None if bank.share is None else torch.sigmoid(bank.share[h])[None]
    start = tuple(w[h][None] for w in bank.weights)
    now, surprise = start, tuple(torch.zeros_like(w) for w in start) if c.momentum else ()
    reads = []
    for t in range(len(x)):
        reads.append(answer(tuple(w[0] for w in now), query[t]))
        if (t + 1) % c.period:
            continue
        at = slice(t + 1 - c.period, t + 1)
        chunk = TitansTokens(
            key[at].T[None],
            value[at].T[None],
            rate[None, at],
            kept[None, at],
            None if eta is None else eta[None, at],
        )
        base = start if c.retention == "anchor" else tuple(torch.zeros_like(w) for w in start)
        added = tuple(w - b for w, b in zip(now, base, strict=True))
        memory = TitansMemory(now, added, surprise)
        added, surprise = titans_write_reference(memory, chunk, share, c.step == "normalised")
        now = tuple(b + d for b, d in zip(base, added, strict=True))
    return torch.stack(reads), tuple(w[0] for w in now)


def layer_reference(m: TitanMemory, x: Tensor) -> tuple[Tensor, ...]:
    """Outputs (B, T, D) and, per layer, all weights (B, H, ...), token by token."""
    outs, weights = [], []
    for row in x:
        heads = [head_reference(m, h, row) for h in range(m.bank.heads)]
        read = rms_norm(torch.cat([r for r, _ in heads], dim=-1), (DIM,), eps=RMS_EPS) * m.gain
        gate = silu(row @ m.ask.weight[DIM:].T) if m.config.gate else 1.0
        outs.append((read * gate) @ m.out.weight.T)
        weights.append([w for _, w in heads])
    layers = [
        torch.stack([torch.stack([head[i] for head in row]) for row in weights])
        for i in range(m.config.depth)
    ]
    return (torch.stack(outs), *layers)


def weights_of(m: TitanMemory, state: TitanState) -> tuple[Tensor, ...]:
    return tuple(w + d for w, d in zip(m.bank.weights, state.bank.added, strict=True))


def graded(m: TitanMemory, x: Tensor, run: Callable[[Tensor], tuple[Tensor, ...]]) -> list[Tensor]:
    """Everything a run yields, then the gradients of a fixed mix of it for x and parameters."""
    leaf = x.clone().requires_grad_()
    values = run(leaf)
    generator = torch.Generator().manual_seed(7)
    loss = sum((v * torch.randn(v.shape, generator=generator, dtype=v.dtype)).sum() for v in values)
    grads = torch.autograd.grad(loss, [leaf, *m.parameters()])
    return [*(v.detach() for v in values), *grads]


def check_exact(m: TitanMemory, x: Tensor) -> None:
    def chunked(leaf: Tensor) -> tuple[Tensor, ...]:
        y, state = m(leaf, position=0)
        return (y, *weights_of(m, state))

    fast = graded(m, x, chunked)
    slow = graded(m, x, lambda leaf: layer_reference(m, leaf))
    for value, wanted in zip(fast, slow, strict=True):
        assert torch.isfinite(value).all()
        assert (value - wanted).norm() <= EXACT * wanted.norm().clamp(min=1.0)


@pytest.mark.parametrize("kw", VARIANTS, ids=NAMES)
def test_equals_the_token_loop(kw: dict[str, Any]) -> None:
    check_exact(layer(**kw), tokens(2, 10))


@pytest.mark.parametrize(("period", "length"), [(3, 10), (16, 37), (64, 70)])
def test_equals_the_token_loop_at_any_period(period: int, length: int) -> None:
    check_exact(layer(period=period), tokens(1, length))


def test_equals_the_token_loop_on_repeated_and_zero_tokens() -> None:
    x = tokens(2, 13)
    x[0] = x[0, :1]
    x[1, 3:11] = 0
    check_exact(layer(), x)


def test_writes_are_counted_and_frozen_tokens_do_not_count() -> None:
    m, x = layer(), tokens(2, 23)
    state, position = m.init_state(2), 0
    for length, write, writes in [(3, True, 0), (5, False, 0), (1, True, 1), (9, True, 3)]:
        before = state
        part = x[:, position : position + length]
        _, state = m(part, state, position=position, write=write)
        position += length
        assert state.bank.writes == writes
        if not write:
            assert state.bank is before.bank
    assert state.frozen == 5


def test_frozen_reading_is_the_initial_memory() -> None:
    m, x = layer(), tokens(2, 11)
    frozen, state = m(x, position=0, write=False)
    written, _ = m(x, position=0)
    assert torch.allclose(frozen[:, :4], written[:, :4])
    assert not torch.allclose(frozen[:, 4:], written[:, 4:])
    assert all(not t.any() for t in (*state.bank.added, *state.bank.surprise, state.bank.waiting))


def test_state_survives_flattening_and_rows() -> None:
    m, x = layer(), tokens(3, 10)
    _, state = m(x, position=0)
    named, skeleton = states.flatten(state)
    assert all(t.shape[0] == 3 for t in named.values())
    back = states.unflatten(named, skeleton)
    more = tokens(3, 5, seed=4)
    wanted, _ = m(more, state, position=10)
    row = states.select_rows(back, [2])
    assert torch.allclose(m(more[2:], row, position=10)[0], wanted[2:], atol=1e-12)


@pytest.mark.parametrize("how", ["autocast", "parameters"])
def test_memories_stay_single_precision_under_bf16(how: str) -> None:
    m, x = layer().float(), tokens(2, 9).float()
    wanted, _ = m(x, position=0)
    if how == "parameters":
        m, x = m.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        y, state = m(x, position=0)
    assert y.dtype == torch.bfloat16
    assert all(t.dtype == torch.float32 for t in states.tensors(state))
    assert (y - wanted).norm() < 0.1 * wanted.norm()


def held_for_backward(recompute: bool) -> int:
    """Bytes of all storages that a forward pass keeps."""
    m, x = layer(period=16, head_size=8, recompute=recompute), tokens(2, 64)
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y, _ = m(x, position=0)
    assert y.requires_grad
    return sum(kept.values())


def test_recomputed_writes_keep_less() -> None:
    with torch_only():
        kept, less = held_for_backward(False), held_for_backward(True)
    assert less < 0.7 * kept
    assert held_for_backward(True) <= held_for_backward(False) <= kept


@torch.no_grad()
def stream(fill: str, length: int = 2048, **kw: Any) -> tuple[float, float, float]:
    """Error of the memory on its newest keys, before and after; largest weight norm at the end."""
    torch.manual_seed(0)
    m = TitanMemory(TitanConfig(head_size=16, period=64, conv=0, **kw), 16)
    x = torch.randn(2, length, 16)
    x = x if fill == "random" else x[:, :1].expand_as(x)
    bank = m.bank.open(m.init_state(2).bank, 0)
    made, _ = m.bank.tokens(bank, x[:, -64:])
    keys, values = made[:, :16], made[:, 16:32]
    before = (m.bank.read(bank, keys) - values).square().sum(1).mean()
    _, state = m(x, position=0)
    bank = m.bank.open(state.bank, length)
    after = (m.bank.read(bank, keys) - values).square().sum(1).mean()
    return float(before), float(after), max(float(w.norm()) for w in bank.memory.weights)


@pytest.mark.parametrize("fill", ["random", "constant"])
@pytest.mark.parametrize("kw", [{}, {"inertia": 0.99}, {"depth": 4}, {"depth": 1, "rate": 0.99}])
def test_normalised_steps_memorise_and_stay_bounded(fill: str, kw: dict[str, Any]) -> None:
    before, after, size = stream(fill, **kw)
    assert after < (0.8 if fill == "random" else 0.1) * before
    assert size < 50


def test_plain_steps_diverge_on_constant_input() -> None:
    _, after, _ = stream("constant", step="plain")
    assert not after < 1e6


def test_forgetting_toward_zero_erases_the_initial_memory() -> None:
    for retention in ("anchor", "zero"):
        torch.manual_seed(0)
        m = TitanMemory(TitanConfig(head_size=16, period=16, retention=retention), 16)
        with torch.no_grad():
            _, state = m(torch.randn(1, 1024, 16), position=0)
        first = m.bank.open(state.bank, 0).memory.weights[0].norm() / m.bank.weights[0].norm()
        assert (first < 0.1) == (retention == "zero")


@pytest.mark.parametrize(
    ("kw", "word"),
    [
        ({"depth": 5}, "depth: 5"),
        ({"depth": 0}, "depth: 0"),
        ({"rate": 1.0}, "rate: 1.0"),
        ({"rate_hidden": 0.6}, "rate_hidden: 0.6"),
        ({"inertia": 0.0}, "inertia: 0.0"),
        ({"retain": 1.5}, "retain: 1.5"),
        ({"hidden": 0}, "hidden: 0"),
        ({"period": 0}, "period: 0"),
        ({"window": 0}, "window: 0"),
        ({"persistent": -1}, "persistent: -1"),
        ({"head_size": 1}, "head_size: 1"),
        ({"conv": -1}, "conv: -1"),
    ],
)
def test_bad_options_are_refused(kw: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        TitanConfig(**kw)


def test_a_head_size_that_does_not_divide_the_width_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"titan\.head_size: 5"):
        TitanMemory(TitanConfig(head_size=5), 8)


@pytest.mark.parametrize("period", [1, 4, 7])
@pytest.mark.parametrize("clock", [0, 3, 13])
def test_pieces_end_where_chunks_end(clock: int, period: int) -> None:
    for length in range(1, 20):
        sizes = pieces(clock, length, period)
        assert sum(sizes) == length
        ends = [clock + sum(sizes[: i + 1]) for i in range(len(sizes))]
        wanted = [t for t in range(clock + 1, clock + length) if t % period == 0]
        assert ends == [*wanted, clock + length]
