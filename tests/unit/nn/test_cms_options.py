"""Every option of the continuum memory against one plain loop over tokens, gradients included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nl.config import ConfigError, structure
from nl.core.state import tensors
from nl.nn.cms import ContinuumMemory
from nl.nn.cms_config import CMSConfig

WIDTH, HIDDEN, EPS = 5, 4, 1e-6
Pair = list[torch.Tensor]


def memory_with(seed: int = 0, **changes: Any) -> ContinuumMemory:
    torch.manual_seed(seed)
    data = {"periods": [2, 4, 12], "hidden": HIDDEN, "allow_short_periods": True, "retention": 0.8}
    memory = ContinuumMemory(structure(CMSConfig, {**data, **changes}), WIDTH, 1.0).double()
    with torch.no_grad():
        for level in memory.levels:
            level.log_rate.copy_(torch.tensor([0.4, 0.7]).log())  # type: ignore[union-attr,operator]
        if memory.gains is not None:
            memory.gains.copy_(torch.tensor([0.5, 1.5, -0.8])[: len(memory.levels)])
    return memory


def run(memory: ContinuumMemory, x: torch.Tensor, signal: torch.Tensor) -> tuple[Any, Any]:
    """Outputs and final state, tile by tile."""
    state, out, tile = memory.init_state(), [], min(memory.config.periods)
    for start in range(0, x.shape[1], tile):
        part = slice(start, start + tile)
        y, trace, _ = memory(x[:, part], state)
        state = memory.absorb(state, trace, signal[:, part], start=start)
        out.append(y)
    return torch.cat(out, 1), state


def read(memory: ContinuumMemory, x: torch.Tensor, weights: list[Pair]) -> torch.Tensor:
    """One token of every row (B, D) with the weights in force (B, F, D) and (B, D, F)."""
    y = x
    for i, (up, down) in enumerate(weights):
        inp = y if memory.gains is None else x
        branch = torch.einsum("bdf,bf->bd", down, F.silu(torch.einsum("bfd,bd->bf", up, rms(inp))))
        y = y + (branch if memory.gains is None else memory.gains[i] * branch)
    return y


def own_gradients(
    memory: ContinuumMemory, x: torch.Tensor, weights: list[Pair], scale: torch.Tensor
) -> Pair:
    """Gradients of |f(k) - v|^2 / 2 of every level for one token, in its own weights."""
    grads: Pair = []
    through, levels = memory.config.write_gradient == "through", list(memory.levels)
    for i, (up, down) in enumerate(weights):
        level: Any = levels[i]
        seen = read(memory, x, weights[:i]) if memory.gains is None else x
        n = rms(seen)
        key = rms(n @ level.key.weight.T)
        answer = torch.einsum("bdf,bf->bd", down, F.silu(torch.einsum("bfd,bd->bf", up, key)))
        error = (answer - n @ level.value.weight.T).square().sum(-1) / 2
        loss = (error * scale[:, 0]).sum()
        grads += torch.autograd.grad(loss, (up, down), retain_graph=True, create_graph=through)
    return grads


def rms(x: torch.Tensor) -> torch.Tensor:
    """x / rms(x)."""
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()


def write(
    config: CMSConfig, sums: Pair, fast: Pair, base: Pair | None, meta: Pair, rates: Pair
) -> tuple[Pair, torch.Tensor]:
    """The fast weights after one write, and the rows that had a signal (B, 1, 1)."""
    active = sum(s.detach().abs().sum((1, 2), keepdim=True) for s in sums) > 0
    new = []
    for k, (step, old, w, rate) in enumerate(zip(sums, fast, meta, rates, strict=True)):
        if config.clip:
            size = (rate * step).flatten(1).norm(dim=1)[:, None, None]
            limit = config.clip * w.norm()
            step = torch.where(size > limit, step * limit / size.clamp(min=1e-300), step)
        rest = 0.0 if base is None else base[k]
        new.append(torch.where(active, rest + config.retention * (old - rest) + step, old))
    return new, active


def naive(memory: ContinuumMemory, x: torch.Tensor, signal: torch.Tensor) -> tuple[Any, Any]:
    """One token at a time, full weights per row, gradients by autograd."""
    config, rows = memory.config, len(x)
    through = config.write_gradient == "through"
    levels: list[Any] = list(memory.levels)
    meta = [[level.up.weight, level.down.weight] for level in levels]
    rates = [[v.log_rate[0].exp() / WIDTH, v.log_rate[1].exp() / HIDDEN] for v in levels]
    fast = [[m.new_zeros(rows, *m.shape) for m in pair] for pair in meta]
    sums = [[torch.zeros_like(f) for f in pair] for pair in fast]
    out = []
    for t in range(x.shape[1]):
        weights = [
            [m - r * f for m, r, f in zip(*part, strict=True)]
            for part in zip(meta, rates, fast, strict=True)
        ]
        y = read(memory, x[:, t], weights)
        out.append(y)
        flat = [w for pair in weights for w in pair]
        if config.signal == "self":
            grads: Any = own_gradients(memory, x[:, t], weights, signal[:, t])
        else:
            loss = (y * signal[:, t]).sum()
            grads = torch.autograd.grad(loss, flat, retain_graph=True, create_graph=through)
        wrote = None
        for i in reversed(range(len(levels))):
            new = zip(sums[i], grads[2 * i : 2 * i + 2], strict=True)
            sums[i] = [s + (g if through else g.detach()) for s, g in new]
            shared = config.scope == "batch" and (t + 1) % config.periods[i] == 0
            sums[i] = [s.sum(0, keepdim=True).expand_as(s) if shared else s for s in sums[i]]
            if (t + 1) % config.periods[i]:
                continue
            nested = config.arrangement == "nested" and i + 1 < len(levels)
            base = fast[i + 1] if nested else None
            fast[i], rows_i = write(config, sums[i], fast[i], base, meta[i], rates[i])
            if nested and wrote is not None:
                fast[i] = [
                    torch.where(wrote, s, f) for s, f in zip(fast[i + 1], fast[i], strict=True)
                ]
            chunks = config.bptt_chunks
            if not through or (chunks and (t + 1) // config.periods[i] % chunks == 0):
                fast[i] = [f.detach() for f in fast[i]]
            sums[i] = [torch.zeros_like(s) for s in sums[i]]
            wrote = rows_i
    return torch.stack(out, 1), fast


THROUGH = {"write_gradient": "through"}
CASES: dict[str, dict[str, Any]] = {
    "nested": {"arrangement": "nested"},
    "nested without clip": {"arrangement": "nested", "clip": 0.0},
    "nested, one level": {"arrangement": "nested", "periods": [3]},
    "independent": {"arrangement": "independent"},
    "independent, one level": {"arrangement": "independent", "periods": [3]},
    "sequential": {},
    "shared": {"scope": "batch"},
    "shared, nested": {"scope": "batch", "arrangement": "nested"},
    "shared, independent": {"scope": "batch", "arrangement": "independent"},
    "through": THROUGH,
    "through without clip": {**THROUGH, "clip": 0.0},
    "through, truncated": {**THROUGH, "bptt_chunks": 2},
    "through, nested": {**THROUGH, "arrangement": "nested"},
    "through, independent": {**THROUGH, "arrangement": "independent"},
    "self": {**THROUGH, "signal": "self"},
    "self, nested, truncated": {
        **THROUGH,
        "signal": "self",
        "arrangement": "nested",
        "bptt_chunks": 3,
    },
    "self, independent": {**THROUGH, "signal": "self", "arrangement": "independent"},
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_token_loop(case: str, seed: int) -> None:
    memory = memory_with(seed, **CASES[case])
    x, signal = (torch.randn(2, 27, WIDTH, dtype=torch.float64) for _ in range(2))
    signal[:, 7] = 0
    signal[0, 4:16] = 0  # a row that is silent while every level is written
    signal *= 0.3
    through = memory.config.write_gradient == "through"
    if memory.config.signal == "self":
        signal = signal[..., :1].abs()
    x.requires_grad_()
    signal.requires_grad_(through)
    out, state = run(memory, x, signal)
    expected, fast = naive(memory, x, signal)
    assert (out - expected).abs().max() < 1e-10
    for level, (up, down) in zip(state, fast, strict=True):
        assert (level.fast_up - up).abs().max() < 1e-10
        assert (level.fast_down - down).abs().max() < 1e-10
    inputs = [x, *memory.parameters(), *([signal] if through else [])]
    weight = torch.randn_like(out)
    found = torch.autograd.grad((out * weight).sum(), inputs)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs)
    for a, b in zip(found, wanted, strict=True):
        assert b.abs().max() > 0
        assert (a - b).abs().max() < 1e-10


@pytest.mark.parametrize(
    "changes",
    [{}, {"inner": {"kind": "momentum"}}, {"inner": {"kind": "delta"}}, {"signal": "self"}],
)
def test_finite_differences_agree_through_writes(changes: dict[str, Any]) -> None:
    memory = memory_with(periods=[2, 4], **THROUGH, **changes)
    x = torch.randn(1, 9, WIDTH, dtype=torch.float64)
    width = 1 if memory.own else WIDTH
    signal = 0.3 * torch.randn(1, 9, width, dtype=torch.float64).abs()
    inputs = (x.requires_grad_(), signal.requires_grad_())
    assert torch.autograd.gradcheck(lambda *args: run(memory, *args)[0], inputs)


def test_what_is_cut_off_gets_no_gradient() -> None:
    """The gradient of the last outputs in the signal of every earlier token, period 2."""
    seen = {}
    for chunks in (0, 2, 3):
        memory = memory_with(periods=[2], **THROUGH, bptt_chunks=chunks)
        x = torch.randn(1, 12, WIDTH, dtype=torch.float64)
        signal = torch.randn(1, 12, WIDTH, dtype=torch.float64, requires_grad=True)
        (grad,) = torch.autograd.grad(run(memory, x, signal)[0][:, 10:].sum(), signal)
        seen[chunks] = [bool(part.any()) for part in grad[0].split(2)]
    assert seen[0] == [True] * 5 + [False]
    assert seen[2] == [False] * 4 + [True, False]  # the fourth write is cut, the fifth is not
    assert seen[3] == [False] * 3 + [True, True, False]


def test_a_level_with_its_own_loss_learns_it() -> None:
    memory = memory_with(periods=[4], clip=0.0, retention=1.0, signal="self", **THROUGH)
    level: Any = memory.levels[0]
    x, state = torch.randn(1, 4, WIDTH, dtype=torch.float64), memory.init_state()
    errors = []
    with torch.no_grad():
        for start in range(0, 400, 4):
            _, trace, _ = memory(x, state)
            errors.append(float(level.recall(x, level.weights(state[0]))[1].square().sum()))
            state = memory.absorb(state, trace, torch.ones(1, 4, 1), start=start)
    assert errors[-1] < 0.1 * errors[0]


def test_a_shared_memory_is_held_once_and_reduced_when_written() -> None:
    memory = memory_with(scope="batch", periods=[2, 4])
    x, signal = (torch.randn(3, 6, WIDTH, dtype=torch.float64) for _ in range(2))
    _, state = run(memory, x, signal)
    assert all(t.stride(0) == 0 and len(t) == 3 for t in tensors(state))
    _, alone = run(memory_with(periods=[2, 4]), x[:1], signal[:1])
    for a, b in zip(tensors(run(memory, x[:1], signal[:1])[1]), tensors(alone), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)
    # Another rank with the same rows: as if every row came twice.
    _, twice = run(memory, x.repeat(2, 1, 1), signal.repeat(2, 1, 1))
    calls: list[torch.Size] = []

    def reduce(t: torch.Tensor) -> torch.Tensor:
        calls.append(t.shape)
        return t.mul_(2)

    memory.reduce = reduce
    _, both = run(memory, x, signal)
    assert len(calls) == 2 * (6 // 2 + 6 // 4)
    for a, b in zip(both, twice, strict=True):
        assert torch.allclose(a.fast_up, b.fast_up[:3], rtol=0, atol=1e-12)
        assert torch.allclose(a.fast_down, b.fast_down[:3], rtol=0, atol=1e-12)
    memory.eval()
    run(memory, x, signal)
    assert len(calls) == 8


def test_a_nested_level_starts_from_the_slower_one_again() -> None:
    memory = memory_with(arrangement="nested", periods=[2, 6], inner={"kind": "momentum"})
    x, signal = (torch.randn(1, 8, WIDTH, dtype=torch.float64) for _ in range(2))
    seen = []
    for end in (4, 6, 8):
        fast, slow = run(memory, x[:, :end], signal[:, :end])[1]
        seen.append((fast, slow))
    assert seen[0][1].fast_up is None
    assert torch.equal(seen[1][0].fast_up, seen[1][1].fast_up)
    assert not any(s.any() for s in tensors((seen[1][0].slots_up, seen[1][0].slots_down)))
    assert torch.equal(seen[2][1].fast_up, seen[1][1].fast_up)
    assert not torch.equal(seen[2][0].fast_up, seen[2][1].fast_up)


def test_nested_levels_start_with_equal_weights() -> None:
    first, *others = memory_with(arrangement="nested").levels
    for level in others:
        for a, b in zip(first.parameters(), level.parameters(), strict=True):
            assert torch.equal(a, b)
            assert a is not b


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"arrangement": "nested", "periods": [64, 256, 128]}, "larger multiple of the one before"),
        ({"arrangement": "nested", "periods": [64, 64]}, "larger multiple of the one before"),
        ({"arrangement": "parallel"}, "independent"),
        ({"signal": "self"}, "set model.cms.write_gradient=through"),
        (
            {"signal": "self", **THROUGH, "surprise": {"gate": "hard", "threshold": 1.0}},
            "set model.cms.surprise.gate=none",
        ),
        ({"scope": "batch", **THROUGH}, "set model.cms.write_gradient=stop"),
        ({"scope": "batch", "inner": {"kind": "delta"}}, "set model.cms.inner={kind:sgd}"),
        ({"bptt_chunks": 2}, "with model.cms.write_gradient=through"),
        ({"bptt_chunks": 1, **THROUGH}, "which is model.cms.write_gradient=stop"),
        ({"inner": {"kind": "adam"}, **THROUGH}, "inner.kind=adam"),
        ({"inner": {"kind": "muon"}, **THROUGH}, "set model.cms.inner={kind:sgd}"),
    ],
)
def test_bad_values_are_refused(data: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        structure(CMSConfig, data, "model.cms")
    assert words in str(error.value)
    assert str(error.value).startswith("model.cms.")
