"""The Gated DeltaNet layer against a token loop that follows the published equations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from nl.config import ConfigError, structure
from nl.models.language import LanguageConfig
from nl.nn.gated_delta import GatedDelta, GatedDeltaConfig
from nl.ops.norm_linear import RMS_EPS

EXACT = 1e-10
DIM = 6
VARIANTS: list[dict[str, Any]] = [{}, {"conv": 0}, {"gate": False}, {"heads": 1, "chunk": 3}]


def layer(seed: int = 0, **changes: Any) -> GatedDelta:
    """A float64 layer of width 6."""
    torch.manual_seed(seed)
    config = GatedDeltaConfig(**{"heads": 2, "chunk": 4, **changes})
    module = GatedDelta(config, DIM, 1.0).double()
    with torch.no_grad():
        module.gain.normal_(1.0, 0.1)
        module.rate_bias.normal_()
    return module


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def convolved(m: GatedDelta, inputs: list[Tensor], t: int) -> Tensor:
    """The convolution's output at token t: tap i weighs the token W - 1 - i before."""
    if m.conv is None:
        return inputs[t]
    width = m.conv.width
    taps = [(i, t - width + 1 + i) for i in range(width)]
    return sum(
        (m.conv.weight[i] * inputs[s] for i, s in taps if s >= 0), torch.zeros(3 * DIM).double()
    )


def loop(m: GatedDelta, x: Tensor) -> tuple[Tensor, Tensor]:
    """One row (T, D), one token and one head at a time."""
    heads, size = m.config.heads, m.head_size
    memory = [torch.zeros(size, size, dtype=torch.float64) for _ in range(heads)]
    inputs = [m.qkv.weight @ token for token in x]
    outputs = []
    for t, token in enumerate(x):
        streams = silu(convolved(m, inputs, t)).view(3, heads, size)
        logits = (m.rates.weight @ token).view(2, heads)
        read = []
        for h in range(heads):
            q, k, v = streams[:, h]
            q, k = (z / (z.square().sum() + 1e-6).sqrt() for z in (q, k))
            rate = 1 / (1 + torch.exp(-logits[0, h] - m.rate_bias[h]))
            drop = m.decay_scale[h].exp() * softplus(logits[1, h] + m.decay_bias[h])
            erase = torch.eye(size, dtype=torch.float64) - rate * torch.outer(k, k)
            memory[h] = torch.exp(-drop) * erase @ memory[h] + rate * torch.outer(k, v)
            o = memory[h].T @ q
            read.append(o / (o.square().mean() + RMS_EPS).sqrt() * m.gain)
        y = torch.cat(read)
        if m.gate is not None:
            y = y * silu(m.gate.weight @ token)
        outputs.append(m.out.weight @ y)
    return torch.stack(outputs), torch.stack(memory)


@pytest.mark.parametrize("changes", VARIANTS)
def test_equals_the_token_loop(changes: dict[str, Any]) -> None:
    module = layer(**changes)
    x = torch.randn(2, 11, DIM, dtype=torch.float64)
    results = []
    for naive in (False, True):
        leaf = x.clone().requires_grad_()
        module.zero_grad()
        if naive:
            rows = [loop(module, row) for row in leaf]
            out, memory = (torch.stack(part) for part in zip(*rows, strict=True))
        else:
            out, state = module(leaf, position=0)
            memory = state.memory
        loss: Tensor = (out * torch.linspace(-1, 1, DIM)).sum() + memory.square().sum()
        torch.autograd.backward(loss)
        parameters = [p.grad for p in module.parameters() if p.grad is not None]
        results.append([out, memory, leaf.grad, *parameters])
    assert len(results[0]) == len(results[1]) == 3 + len(list(module.parameters()))
    for fast, slow in zip(*results, strict=True):
        assert torch.allclose(fast, slow, atol=EXACT, rtol=EXACT)


def test_frozen_tokens_leave_the_memory_alone() -> None:
    module, x = layer(), torch.randn(2, 9, DIM, dtype=torch.float64)
    _, state = module(x, position=0)
    x = torch.randn(2, 9, DIM, dtype=torch.float64)
    out, after = module(x, state, position=9, write=False)
    assert torch.equal(after.memory, state.memory)
    assert after.frozen == 9
    assert not torch.equal(after.tail, state.tail)
    written, _ = module(x, state, position=9)
    assert (out - written).abs().max() > 1e-3
    pieces, middle = [], state
    for t in range(9):
        piece, middle = module(x[:, t : t + 1], middle, position=9 + t, write=False)
        pieces.append(piece)
    assert torch.allclose(torch.cat(pieces, 1), out, atol=EXACT)


def test_initial_decays_are_those_of_the_source() -> None:
    torch.manual_seed(0)
    module = GatedDelta(GatedDeltaConfig(heads=512), 512, 1.0)
    steps, scales = softplus(module.decay_bias).detach(), module.decay_scale.exp().detach()
    assert 1e-3 <= float(steps.min()) < 1.5e-3
    assert 0.07 < float(steps.max()) <= 0.1 + 1e-6
    assert math.isclose(float(steps.log().mean()), math.log(0.01), abs_tol=0.25)
    assert 1 <= float(scales.min()) < 2
    assert 15 < float(scales.max()) <= 16


def test_half_precision_keeps_the_memory_in_single() -> None:
    module = layer().float()
    x = torch.randn(2, 9, DIM)
    exact, _ = module(x, position=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, state = module(x, position=0)
    assert out.dtype == torch.bfloat16
    assert state.memory.dtype == torch.float32
    assert (out.float() - exact).abs().max() < 0.1 * exact.abs().max()


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="heads: 0; must be >= 1"):
        structure(GatedDeltaConfig, {"heads": 0}, "model.gated_delta")
    with pytest.raises(ConfigError, match="heads: 4; must divide the width 6"):
        GatedDelta(GatedDeltaConfig(), DIM, 1.0)
    with pytest.raises(ConfigError, match=r"gated_delta.heads: 3; must divide model.dim = 8"):
        LanguageConfig(
            vocab_size=5,
            dim=8,
            layers=1,
            block="gated_delta",
            gated_delta=GatedDeltaConfig(heads=3),
        )
