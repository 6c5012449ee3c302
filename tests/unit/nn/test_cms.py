"""The continuum memory against a token loop that knows nothing but autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nl.config import ConfigError, structure
from nl.nn.cms import ContinuumMemory
from nl.nn.cms_config import CMSConfig
from nl.nn.level import LevelState

EPS = 1e-6


def chain(periods: tuple[int, ...], seed: int, **changes: float) -> ContinuumMemory:
    torch.manual_seed(seed)
    config = CMSConfig(periods=periods, hidden=7, allow_short_periods=True, **changes)  # type: ignore[arg-type]
    memory = ContinuumMemory(config, 5, 1.0).double()
    with torch.no_grad():
        for level in memory.levels:
            level.log_rate.copy_(torch.tensor([0.4, 0.7]).log())  # type: ignore[union-attr,operator]
    return memory


def reference(
    memory: ContinuumMemory, x: torch.Tensor, signal: torch.Tensor
) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
    """One row, one token at a time, full weight matrices, gradients by autograd."""
    config, T = memory.config, len(x)
    meta = [(level.up.weight.detach(), level.down.weight.detach()) for level in memory.levels]  # type: ignore[union-attr]
    rates = [
        (level.log_rate[0].exp().detach() / 5, level.log_rate[1].exp().detach() / 7)  # type: ignore[index,operator]
        for level in memory.levels
    ]
    fast = [(torch.zeros_like(u), torch.zeros_like(v)) for u, v in meta]
    sums = [(torch.zeros_like(u), torch.zeros_like(v)) for u, v in meta]
    wrote = [False] * len(meta)
    out = []
    for t in range(T):
        weights = [
            [(w - r * f).detach().requires_grad_() for w, r, f in zip(m, rate, fa, strict=True)]
            for m, rate, fa in zip(meta, rates, fast, strict=True)
        ]
        y = x[t]
        for up, down in weights:
            n = y / (y.square().mean() + EPS).sqrt()
            y = y + down @ F.silu(up @ n)
        out.append(y.detach())
        flat = [w for pair in weights for w in pair]
        grads = torch.autograd.grad((y * signal[t]).sum(), flat)
        for i, period in enumerate(config.periods):
            sums[i] = tuple(s + g for s, g in zip(sums[i], grads[2 * i : 2 * i + 2], strict=True))  # type: ignore[assignment]
            if (t + 1) % period:
                continue
            if not any(g.any() for g in sums[i]):
                continue
            new = []
            for w, r, f, g in zip(meta[i], rates[i], fast[i], sums[i], strict=True):
                size = float((r * g).norm())
                limit = config.clip * float(w.norm())
                g = g * (limit / size) if config.clip and size > limit else g
                new.append(config.retention * f + g if wrote[i] else g)
            fast[i], wrote[i] = (new[0].detach(), new[1].detach()), True
            sums[i] = tuple(torch.zeros_like(s) for s in sums[i])  # type: ignore[assignment]
    return torch.stack(out), fast


def run(
    memory: ContinuumMemory, x: torch.Tensor, signal: torch.Tensor
) -> tuple[torch.Tensor, tuple[LevelState, ...]]:
    state, out, tile = memory.init_state(), [], min(memory.config.periods)
    for start in range(0, x.shape[1], tile):
        part = slice(start, start + tile)
        y, trace, _ = memory(x[:, part], state)
        state = memory.absorb(state, trace, signal[:, part], start=start)
        out.append(y.detach())
    return torch.cat(out, 1), state


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("periods", [(1,), (3,), (16,), (2, 4, 8), (4, 12)])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_equals_the_token_loop(periods: tuple[int, ...], seed: int, clip: float) -> None:
    memory = chain(periods, seed, clip=clip, retention=0.8)
    x, signal = (torch.randn(2, 26, 5, dtype=torch.float64) for _ in range(2))
    signal[:, 7] = 0
    out, state = run(memory, x, signal * 0.3)
    for row in range(2):
        expected, fast = reference(memory, x[row], signal[row] * 0.3)
        assert (out[row] - expected).abs().max() < 1e-10
        for level, period, (up, down) in zip(state, periods, fast, strict=True):
            if 26 // period:
                assert level.fast_up is not None
                assert level.fast_down is not None
                assert (level.fast_up[row] - up).abs().max() < 1e-10
                assert (level.fast_down[row] - down).abs().max() < 1e-10
            else:
                assert level.fast_up is None


def test_a_write_reduces_the_loss_it_was_taught() -> None:
    memory = chain((4,), 0)
    x, goal = torch.randn(1, 4, 5, dtype=torch.float64), torch.randn(1, 4, 5, dtype=torch.float64)
    state = memory.init_state()
    errors = []
    for start in range(0, 200, 4):
        y, trace, _ = memory(x, state)
        y = y.detach()
        errors.append(float((y - goal).square().sum()))
        state = memory.absorb(state, trace, y - goal, start=start)
    assert errors[-1] < 0.5 * errors[0]


def test_fast_weights_are_bounded_by_clip_and_retention() -> None:
    memory = chain((2,), 1, clip=0.1, retention=0.9)
    x = torch.randn(1, 1, 5, dtype=torch.float64).expand(1, 2, 5)
    signal = torch.full((1, 2, 5), 1e6, dtype=torch.float64)
    state = memory.init_state()
    for start in range(0, 400, 2):
        _, trace, _ = memory(x, state)
        state = memory.absorb(state, trace, signal, start=start)
    w = memory.levels[0].weights(state[0])  # type: ignore[operator]
    assert (w.rate_down * w.fast_down).norm() <= 1.001 * 0.1 / (1 - 0.9) * w.down.norm()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"periods": [64, 100]}, "multiple of the smallest, 64"),
        ({"periods": [8, 64]}, "allow_short_periods"),
        ({"periods": []}, "at least one"),
        ({"periods": [0], "allow_short_periods": True}, ">= 1"),
        ({"retention": 0.0}, "(0, 1]"),
        ({"rate": -1.0}, "> 0"),
        ({"clip": -0.1}, ">= 0"),
        ({"hidden": 0}, ">= 1"),
    ],
)
def test_bad_values_are_refused(data: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        structure(CMSConfig, data, "model.cms")
    assert words in str(error.value)
    assert str(error.value).startswith("model.cms.")


@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_a_chain_in_one_piece_equals_its_levels_one_by_one(clip: float) -> None:
    x, signal = torch.randn(2, 3, 52, 5, dtype=torch.float64).unbind(0)
    signal[1] = 0
    found = []
    for linked in (True, False):
        memory = chain((8, 16, 48), seed=4, clip=clip)
        assert memory.linked
        memory.linked = linked
        state, out, at = memory.init_state(), [], 0
        for size in (8, 8, 16, 4, 4, 8, 4):  # ragged, and across the writes of every level
            for start in range(at, at + size, 8):
                piece = slice(start, min(start + 8 - start % 8, at + size))
                y, trace, _ = memory(x[:, piece], state)
                state = memory.absorb(state, trace, signal[:, piece], start=piece.start)
                out.append(y)
            at += size
        torch.cat(out, 1).sin().sum().backward()
        grads = {name: p.grad for name, p in memory.named_parameters()}
        found.append((torch.cat(out, 1), state, grads))
    one, other = found
    assert torch.allclose(one[0], other[0], rtol=1e-12)
    for level, wanted in zip(one[1], other[1], strict=True):
        for name, value, exact in zip(level._fields, level, wanted, strict=True):
            assert (value is None) == (exact is None), name
            assert value is None or torch.allclose(value, exact, rtol=1e-9, atol=1e-14), name
    assert one[2].keys() == other[2].keys()
    for name, value in one[2].items():
        assert torch.allclose(value, other[2][name], rtol=1e-9, atol=1e-13), name
