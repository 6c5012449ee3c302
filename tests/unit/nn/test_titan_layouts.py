"""Memory as gate and memory as context against one token at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import rms_norm, silu

from nl.core import state as states
from nl.nn.attention import AttentionConfig
from nl.nn.context import ReadContext
from nl.nn.titan_config import TitanConfig
from nl.nn.titan_layouts import MemoryAsContext, MemoryAsGate
from nl.ops.norm_linear import RMS_EPS
from nl.ops.rotary import apply_rotary, rotary_table
from nl.optim.roles import parameter_roles

DIM, HEADS, PERIOD = 8, 2, 4
SMALL: dict[str, Any] = {"head_size": 4, "period": PERIOD, "window": 5, "persistent": 2}


def layer(kind: type[Any], seed: int = 0, qk_norm: bool = True, **kw: Any) -> Any:
    torch.manual_seed(seed)
    attention = AttentionConfig(heads=HEADS, qk_norm=qk_norm)
    module = kind(TitanConfig(**{**SMALL, **kw}), attention, DIM, 1.0).double()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.abs().max() == 0:
                parameter.normal_()
        gates = module.bank if kind is MemoryAsContext else module.memory.bank
        gates.share.add_(3)
    return module


def context(position: int, length: int, write: bool = True, rope: bool = True) -> ReadContext:
    table: Any = (None, None)
    if rope:
        cpu = torch.device("cpu")
        table = rotary_table(position, length, DIM // HEADS, 10000.0, cpu, torch.float64)
    return ReadContext(position, write, True, *table)


def tokens(rows: int, length: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, length, DIM, generator=generator, dtype=torch.float64)


def heads_of(m: MemoryAsContext, x: Tensor, at: int) -> list[Tensor]:
    """Queries, keys, values (B, H, K) of one token at position ``at``."""
    q, k, v = m.attention.qkv(x).view(len(x), 3, HEADS, -1).unbind(1)
    here = context(at, 1)
    cos, sin = here.cos, here.sin
    if m.attention.config.qk_norm:
        q, k = (rms_norm(t, t.shape[-1:], eps=RMS_EPS) for t in (q, k))
    return [apply_rotary(t[:, None], cos, sin)[:, 0] for t in (q, k)] + [v]


def convolved(conv: Any, seen: list[Tensor]) -> Tensor:
    """SiLU of the convolution at the newest of the inputs (B, D), or that input."""
    if conv is None:
        return seen[-1]
    zeros = torch.zeros_like(seen[0])
    padded = [zeros] * (conv.width - 1) + seen
    return silu(sum(w * x for w, x in zip(conv.weight, padded[-conv.width :], strict=True)))


def context_reference(m: MemoryAsContext, x: Tensor) -> tuple[Tensor, ...]:
    """Outputs and final additions to the memory, one token at a time."""
    held = m.bank.init_state(len(x))
    inputs: list[Tensor] = []
    found: list[Tensor] = []
    out, keys, values = [], [], []
    for t in range(x.shape[1]):
        if t % PERIOD == 0:
            keys, values = [], []
        bank = m.bank.open(held, t)

        def answer(asked: Tensor, gain: Tensor, bank: Any = bank) -> Tensor:
            per_head = asked.view(len(x) * HEADS, -1, 1)
            said = m.bank.read(bank, per_head).view(len(x), DIM)
            return rms_norm(said, (DIM,), eps=RMS_EPS) * gain

        inputs.append(m.ask(x[:, t]))
        recalled = answer(convolved(m.conv_asked, inputs), m.gain[0])
        query, *own = heads_of(m, x[:, t], t)
        _, *told = heads_of(m, recalled, t)
        keys += [told[0], own[0]]
        values += [told[1], own[1]]
        k, v = torch.stack(keys, 2), torch.stack(values, 2)
        if m.attention.persistent is not None:
            front = [p.expand(len(x), -1, -1, -1) for p in m.attention.persistent()]
            k, v = torch.cat([front[0], k], 2), torch.cat([front[1], v], 2)
        score = (k @ query.unsqueeze(-1)).squeeze(-1) / query.shape[-1] ** 0.5
        seen = (score.softmax(-1).unsqueeze(-2) @ v).flatten(1)
        content = rms_norm(seen + x[:, t], (DIM,), eps=RMS_EPS) * m.gain[1]
        found.append(m.ask_again(content))
        gate = m.gate(answer(convolved(m.conv_found, found), m.gain[2]))
        out.append(m.attention.out(seen) * 2 * torch.sigmoid(gate))
        new, bank = m.bank.tokens(bank, content[:, None])
        held = m.bank.close(m.bank.absorb(bank, new))
    return (torch.stack(out, 1), *held.added)


def graded(m: Any, x: Tensor, run: Any) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    values = run(leaf)
    generator = torch.Generator().manual_seed(7)
    loss = sum((v * torch.randn(v.shape, generator=generator, dtype=v.dtype)).sum() for v in values)
    return [*values, *torch.autograd.grad(loss, [leaf, *m.parameters()])]


@pytest.mark.parametrize(
    "kw",
    [{}, {"conv": 0, "persistent": 0}, {"depth": 3, "momentum": False}, {"qk_norm": False}],
    ids=["default", "bare", "deep", "raw"],
)
def test_context_equals_one_token_at_a_time(kw: dict[str, Any]) -> None:
    m, x = layer(MemoryAsContext, **kw), tokens(2, 11)

    def whole(leaf: Tensor) -> tuple[Tensor, ...]:
        y, state = m(leaf, m.init_state(2), context(0, 11))
        return (y, *state.bank.added)

    fast = graded(m, x, whole)
    slow = graded(m, x, lambda leaf: context_reference(m, leaf))
    for value, wanted in zip(fast, slow, strict=True):
        assert (value - wanted).norm() <= 1e-9 * wanted.norm().clamp(min=1)


def test_only_the_memory_joins_segments() -> None:
    m, x = layer(MemoryAsContext, conv=0), tokens(1, 3 * PERIOD)
    other = x.clone()
    other[:, 1] += 1
    reached = []
    for write in (False, True):
        ctx = context(0, 3 * PERIOD, write)
        a, b = (m(part, m.init_state(1), ctx)[0] for part in (x, other))
        reached.append(((a - b).abs().amax(-1)[0] > 1e-12).tolist())
    inside = [False, True, True, True]
    assert reached[0] == inside + [False] * (2 * PERIOD)
    assert reached[1] == inside + [True] * (2 * PERIOD)


def test_context_writes_once_per_segment_and_freezes() -> None:
    m, x = layer(MemoryAsContext), tokens(2, 30)
    state, at = m.init_state(2), 0
    for length, write, writes in [(3, True, 0), (6, False, 0), (1, True, 1), (9, True, 3)]:
        before = state
        _, state = m(x[:, at : at + length], state, context(at, length, write))
        at += length
        assert state.bank.writes == writes
        assert write or state.bank is before.bank
    assert state.frozen == 6
    assert state.segment.keys.shape[2] == 2 * (1 + (at - 1) % PERIOD)


def test_gate_is_attention_times_twice_the_sigmoid() -> None:
    m, x = layer(MemoryAsGate), tokens(2, 13)
    y, state = m(x, m.init_state(2), context(0, 13))
    seen, attention = m.attention(x, None, context(0, 13))
    told, memory = m.memory(x, position=0)
    assert torch.allclose(y, seen * 2 / (1 + torch.exp(-told)))
    for value, wanted in zip(
        states.tensors(state), states.tensors((attention, memory)), strict=True
    ):
        assert torch.equal(value, wanted)


@pytest.mark.parametrize("kind", [MemoryAsGate, MemoryAsContext])
def test_a_fresh_gate_is_open(kind: type[Any]) -> None:
    torch.manual_seed(0)
    m = kind(TitanConfig(**SMALL), AttentionConfig(heads=HEADS), DIM, 1.0).double()
    x, ctx = tokens(2, PERIOD), context(0, PERIOD)
    found: list[Tensor] = []
    m.attention.out.register_forward_hook(lambda _m, _a, out: found.append(out))
    y, _ = m(x, m.init_state(2), ctx)
    assert torch.equal(y, torch.cat(found, 1))
    with torch.no_grad():
        (m.memory.out if kind is MemoryAsGate else m.gate).weight.fill_(1.0)
    z, _ = m(x, m.init_state(2), ctx)
    assert not torch.allclose(y, z)


@pytest.mark.parametrize("kind", [MemoryAsGate, MemoryAsContext])
def test_the_state_does_not_grow_and_memories_stay_single_precision(kind: type[Any]) -> None:
    m, x = layer(kind).float(), tokens(2, 64).float()
    state, sizes = m.init_state(2), []
    for at in range(0, 64, 8):
        ctx = context(at, 8, rope=False)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            y, state = m(x[:, at : at + 8], state, ctx)
        assert y.dtype == torch.bfloat16
        sizes.append(states.num_bytes(state))
    assert len(set(sizes)) == 1
    bank = state.bank if kind is MemoryAsContext else state.memory.bank
    assert all(t.dtype == torch.float32 for t in states.tensors(bank))


@pytest.mark.parametrize("kind", [MemoryAsGate, MemoryAsContext])
def test_attention_is_no_part_of_the_memory(kind: type[Any]) -> None:
    roles = parameter_roles(layer(kind))
    inside = {name for name, role in roles.items() if name.startswith("attention.")}
    assert "attention.qkv.weight" in inside
    assert "attention.persistent.keys" in inside
    assert {name for name, role in roles.items() if not role.memory} == inside


def test_work_is_counted_for_what_attention_looks_at() -> None:
    context, gate = layer(MemoryAsContext).attention, layer(MemoryAsGate).attention
    assert [context.attended(n) for n in (2, PERIOD, 100)] == [2, PERIOD, PERIOD]
    assert [gate.attended(n) for n in (4, 5)] == [2, 2.5]
    assert 4 < gate.attended(100) < 5
