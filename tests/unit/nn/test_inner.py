"""Inner optimizers of memory levels against loops written from their formulas, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nl.config import ConfigError, structure, table
from nl.config.groups import InnerConfig
from nl.nn.cms import ContinuumMemory
from nl.nn.cms_config import CMSConfig
from nl.ops.orthogonal import orthogonalize_reference

DOUBLE = {"dtype": torch.float64}
EPS = 1e-6
PERIOD, WIDTH, HIDDEN = 3, 5, 4


def memory_with(kind: str, **changes: Any) -> ContinuumMemory:
    torch.manual_seed(0)
    data = {"periods": [PERIOD], "hidden": HIDDEN, "allow_short_periods": True, "clip": 0.0}
    config = structure(CMSConfig, {**data, "retention": 0.8, "inner": {"kind": kind}, **changes})
    memory = ContinuumMemory(config, WIDTH, 1.0).double()
    with torch.no_grad():
        memory.levels[0].log_rate.copy_(torch.tensor([0.4, 0.7], **DOUBLE).log())  # type: ignore[union-attr,operator]
    return memory


def run(memory: ContinuumMemory, x: torch.Tensor, signal: torch.Tensor) -> Any:
    state = memory.init_state()
    for start in range(0, x.shape[1], PERIOD):
        part = slice(start, start + PERIOD)
        _, trace, _ = memory(x[:, part], state)
        state = memory.absorb(state, trace, signal[:, part], start=start)
    return state[0]


def token_gradients(up: torch.Tensor, down: torch.Tensor, x: torch.Tensor, d: torch.Tensor) -> Any:
    """dU, dV and both layers' inputs for one token, by autograd."""
    up, down = up.detach().requires_grad_(), down.detach().requires_grad_()
    n = x / (x.square().mean() + EPS).sqrt()
    a = F.silu(up @ n)
    grads = torch.autograd.grad(((x + down @ a) * d).sum(), (up, down))
    return *grads, n, a.detach()


def naive_step(
    kind: str, g: torch.Tensor, memo: dict[str, Any], meta: torch.Tensor, scale: float
) -> torch.Tensor:
    if kind == "sgd":
        return g
    if kind == "momentum":
        memo["m"] = 0.9 * memo.get("m", 0.0) + g
        return memo["m"]
    if kind == "adam":
        t = memo["t"] = memo.get("t", 0) + 1
        memo["m"] = 0.9 * memo.get("m", 0.0) + 0.1 * g
        memo["v"] = 0.99 * memo.get("v", 0.0) + 0.01 * g * g
        unit = memo["m"] / (1 - 0.9**t) / ((memo["v"] / (1 - 0.99**t)).sqrt() + 1e-12)
        return unit * 0.02 * meta.square().mean().sqrt() / scale
    if kind == "deep":
        recalled = deep_momentum(g, memo)
        return (
            recalled / recalled.square().mean().sqrt() * 0.02 * meta.square().mean().sqrt() / scale
        )
    memo["m"] = 0.9 * memo.get("m", 0.0) + g
    unit = orthogonalize_reference(memo["m"])
    return unit * 0.02 * meta.norm() / min(meta.shape) ** 0.5 / scale


def deep_momentum(g: torch.Tensor, memo: dict[str, Any]) -> torch.Tensor:
    """One write of the MLP by autograd, one row of the gradient at a time, and its answer."""
    x = g / (g.square().mean() * g.shape[1]).sqrt()
    if not memo:
        draw = torch.randn(16, g.shape[1], generator=torch.Generator().manual_seed(16)).double()
        memo |= {"start": draw, "up": draw, "down": torch.zeros(g.shape[1], 16, **DOUBLE)}
    up, down = (memo[k].clone().requires_grad_() for k in ("up", "down"))
    loss = sum(0.5 * ((down @ F.silu(up @ row)) / 4 - row).square().sum() for row in x) / len(x)
    grads = torch.autograd.grad(loss, (up, down))
    memo["up"] = memo["start"] + 0.9 * (memo["up"] - memo["start"]) - 0.5 * grads[0]
    memo["down"] = 0.9 * memo["down"] - 0.5 * grads[1]
    return torch.stack([memo["down"] @ F.silu(memo["up"] @ row) / 4 for row in x])


def test_deep_momentum_recalls_the_direction_it_has_seen() -> None:
    memory = memory_with("deep", retention=1.0)
    rule: Any = memory.config.inner
    grad, slots = torch.randn(2, 6, WIDTH, **DOUBLE), None
    likeness = []
    for _ in range(60):
        step, slots = rule.step(grad, slots, torch.ones(6, WIDTH, **DOUBLE), 1.0)
        likeness.append(F.cosine_similarity(step.flatten(1), grad.flatten(1)).min())
    assert likeness[-1] > 0.8
    assert likeness[-1] > likeness[0]
    silent = rule.step(torch.zeros_like(grad), slots, torch.ones(6, WIDTH, **DOUBLE), 1.0)[0]
    assert not silent.any()


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam", "muon", "deep"])
def test_level_equals_a_loop_over_tokens(kind: str) -> None:
    memory = memory_with(kind)
    level: Any = memory.levels[0]
    x, d = torch.randn(2, 11, WIDTH, **DOUBLE), torch.randn(2, 11, WIDTH, **DOUBLE) * 0.1
    d[0, 3:6] = 0  # a whole period without signal: nothing of that row may move
    state = run(memory, x, d)
    scales, rates = (1 / WIDTH, 1 / HIDDEN), (0.4 / WIDTH, 0.7 / HIDDEN)
    meta = (level.up.weight.detach(), level.down.weight.detach())
    for row in range(2):
        fast: list[Any] = [None, None]
        memos: list[dict[str, Any]] = [{}, {}]
        for start in range(0, 9, PERIOD):
            now = [m if f is None else m - r * f for m, f, r in zip(meta, fast, rates, strict=True)]
            sums = [torch.zeros_like(m) for m in meta]
            for t in range(start, start + PERIOD):
                for total, g in zip(
                    sums, token_gradients(*now, x[row, t], d[row, t])[:2], strict=True
                ):
                    total += g
            if not any(s.any() for s in sums):
                continue
            for i in range(2):
                step = naive_step(kind, sums[i], memos[i], meta[i], scales[i])
                fast[i] = step if fast[i] is None else 0.8 * fast[i] + step
        assert (state.fast_up[row] - fast[0]).abs().max() < 1e-10 * fast[0].abs().max()
        assert (state.fast_down[row] - fast[1]).abs().max() < 1e-10 * fast[1].abs().max()


def test_delta_equals_a_loop_over_tokens() -> None:
    memory = memory_with("delta", retention=1.0)
    level: Any = memory.levels[0]
    x, d = torch.randn(1, 9, WIDTH, **DOUBLE), torch.randn(1, 9, WIDTH, **DOUBLE)
    d[0, 4] = 0
    state = run(memory, x, d)
    meta = (level.up.weight.detach(), level.down.weight.detach())
    added = [torch.zeros_like(m) for m in meta]
    for start in range(0, 9, PERIOD):
        now = [m + a for m, a in zip(meta, added, strict=True)]
        for t in range(start, start + PERIOD):
            if not d[0, t].any():
                continue
            grad_up, grad_down, n, a = token_gradients(*now, x[0, t], d[0, t])
            for i, (g, inp, rate) in enumerate(((grad_up, n, 0.4), (grad_down, a, 0.7))):
                r, size = rate / (1 + rate), inp.norm()
                unit = inp / size
                rank_one = g @ unit / size  # g = e inp^T, so g @ unit = e |inp|
                push = torch.outer(rank_one / size, unit)
                added[i] = added[i] - r * torch.outer(added[i] @ unit, unit) - r * push
    for fast, rate, expected in (
        (state.fast_up, 0.4 / WIDTH, added[0]),
        (state.fast_down, 0.7 / HIDDEN, added[1]),
    ):
        assert (-rate * fast[0] - expected).abs().max() < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_delta_skips_tokens_whose_input_is_zero(dtype: torch.dtype) -> None:
    memory = memory_with("delta").to(dtype)
    x, d = torch.randn(2, 4, PERIOD, WIDTH, dtype=dtype).unbind(1)[:2]
    x[0, 1] = x[1] = 0
    state, heard = run(memory, x, d), d.clone()
    heard[0, 1] = heard[1] = 0
    assert torch.equal(state.fast_up, run(memory, x, heard).fast_up)
    assert torch.equal(state.fast_down, run(memory, x, heard).fast_down)
    assert state.fast_down[0].any()
    assert not state.fast_down[1].any()


def test_delta_is_contractive_where_sgd_is_not() -> None:
    x = torch.randn(1, 1, WIDTH, **DOUBLE).expand(1, 300, WIDTH)
    sizes = {}
    for kind in ("sgd", "delta"):
        memory = memory_with(kind, retention=1.0)
        state = run(memory, x, torch.ones(1, 300, WIDTH, **DOUBLE))
        sizes[kind] = float(state.fast_down.norm())
    assert sizes["delta"] < 0.05 * sizes["sgd"]


@pytest.mark.parametrize("kind", ["sgd", "momentum", "delta"])
def test_proportional_kinds_scale_with_a_small_signal(kind: str) -> None:
    memory = memory_with(kind)
    x, d = torch.randn(1, 6, WIDTH, **DOUBLE), 1e-6 * torch.randn(1, 6, WIDTH, **DOUBLE)
    one, two = run(memory, x, d).fast_down, run(memory, x, 2 * d).fast_down
    assert torch.allclose(two, 2 * one, rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["muon", "deep"])
def test_steps_of_one_size_are_so_for_tiny_signals_in_single_precision(kind: str) -> None:
    rule: Any = memory_with(kind).config.inner
    grad, meta = torch.randn(2, 6, WIDTH), torch.ones(6, WIDTH)
    whole, _ = rule.step(grad, None, meta, 1.0)
    tiny, _ = rule.step(grad * 1e-27, None, meta, 1.0)
    torch.testing.assert_close(tiny, whole, rtol=1e-4, atol=1e-6)


def test_every_kind_is_under_test() -> None:
    assert set(table("inner")) == {"sgd", "momentum", "delta", "adam", "muon", "deep"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"kind": "adm"}, "Did you mean 'adam'?"),
        ({"kind": "momentum", "beta": 1.0}, "inner.beta: 1.0; must be in [0, 1)"),
        ({"kind": "adam", "size": 0.0}, "inner.size: 0.0; must be > 0"),
        ({"kind": "adam", "beta2": -1.0}, "inner.beta2"),
        ({"kind": "deep", "hidden": 0}, "inner.hidden: 0; must be >= 1"),
        ({"kind": "deep", "retention": 1.0}, "inner.retention: 1.0; must be in [0, 1)"),
        ({"kind": "deep", "rate": 1.5}, "inner.rate: 1.5; must be in (0, 1]"),
        ({"kind": "deep", "size": 0.0}, "inner.size: 0.0; must be > 0"),
        ({"kind": "muon", "iterations": 0}, "inner.iterations: 0; must be >= 1"),
    ],
)
def test_bad_values_are_refused(data: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        structure(InnerConfig, data, "inner")
    assert words in str(error.value)


@pytest.mark.parametrize("before", ["inference", "pretended"])
def test_deep_momentum_trains_after_any_other_use(before: str) -> None:
    """What it draws once is neither of inference mode nor of a mode that only counts memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    config: Any = structure(InnerConfig, {"kind": "deep", "hidden": 5})
    meta = torch.ones(3, 7)
    modes = {"inference": torch.inference_mode, "pretended": FakeTensorMode}
    with modes[before]():
        config.step(torch.ones(2, 3, 7), None, torch.ones(3, 7), 1.0)
    grad = torch.ones(2, 3, 7, requires_grad=True)
    step, _ = config.step(grad, None, meta, 1.0)
    (found,) = torch.autograd.grad(step.square().sum(), grad)
    assert torch.isfinite(found).all()
    with FakeTensorMode():
        assert config.step(torch.ones(2, 3, 7), None, torch.ones(3, 7), 1.0)[0].shape == (2, 3, 7)
