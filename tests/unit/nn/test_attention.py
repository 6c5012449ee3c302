"""Heads of keys and values that queries share: kept once, used as if every query had its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nl.config import ConfigError
from nl.core.state import map_tensors, tensors
from nl.dist.state_file import load_state, save_state
from nl.nn.attention import AttentionState
from tests.laws.conftest import small, tokens

KINDS = ("transformer", "sliding_window", "titan_mac", "titan_mag", "hope_attention")
pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(name="float64")
def in_float64() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def grouped(kind: str, kv_heads: int | None) -> Any:
    sizes = {"heads": 4, "kv_heads": kv_heads}
    return small(kind, dim=16, attention=sizes, titan={"head_size": 8}).eval()


def widened(model: Any, source: Any) -> Any:
    """``model``, whose queries have keys of their own, with copies of those that ``source`` has."""
    weights = dict(source.state_dict())
    for name in [n for n in weights if n.endswith("qkv.weight")]:
        size = 16 // 4
        q, k, v = weights[name].split([16, 2 * size, 2 * size])
        k, v = (t.unflatten(0, (2, size)).repeat_interleave(2, 0).flatten(0, 1) for t in (k, v))
        weights[name] = torch.cat([q, k, v])
    model.load_state_dict(weights)
    return model


def as_before(state: Any) -> Any:
    """The State as it was when keys and values were repeated before they were kept."""
    if isinstance(state, AttentionState):
        keys, values = (t.repeat_interleave(2, 1) for t in (state.keys, state.values))
        return state._replace(keys=keys, values=values)
    if isinstance(state, tuple):
        parts = [as_before(part) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state


def read(model: Any, cuts: tuple[int, ...], state: Any = None) -> tuple[Tensor, Any]:
    found = []
    for part in tokens(2, 23).split(cuts, dim=1):
        out = model(part, state)
        state = out.state
        found.append(out.pred)
    return torch.cat(found, 1), state


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_equals_keys_of_its_own_for_every_query(kind: str) -> None:
    model = grouped(kind, 2)
    wide = widened(grouped(kind, None), model)
    wanted, _ = read(wide, (23,))
    for cuts in ((23,), (10, 13), (9, 1, 1, 12)):
        pred, state = read(model, cuts)
        assert (pred - wanted).abs().max() < 1e-9
    kept = [part for part in parts_of(state) if isinstance(part, AttentionState)]
    assert kept
    assert all(part.keys.shape[1] == part.values.shape[1] == 2 for part in kept)


def parts_of(state: Any) -> list[Any]:
    if not isinstance(state, tuple) or isinstance(state, AttentionState):
        return [state]
    return [found for part in state for found in parts_of(part)]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_state_from_before_goes_on(kind: str, tmp_path: Any) -> None:
    """Its keys and values were kept once per query: equal copies."""
    model = grouped(kind, 2)
    first, second = tokens(2, 23).split((10, 13), dim=1)
    state = model(first).state
    new, old = (
        load_state(save_state(tmp_path / f"{name}.safetensors", one))
        for name, one in (("new", state), ("old", as_before(state)))
    )
    assert sum(map(Tensor.numel, tensors(old))) > sum(map(Tensor.numel, tensors(new)))
    now, then = model(second, new), model(second, old)
    assert torch.equal(now.pred, then.pred)
    for mine, theirs in zip(tensors(now.state), tensors(then.state), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_other_heads_is_refused(kind: str) -> None:
    state = grouped(kind, 1)(tokens(2, 10)).state
    state = map_tensors(torch.Tensor.detach, state)
    with pytest.raises(ConfigError, match="state: keys and values of 1 heads, not 2"):
        grouped(kind, 2)(tokens(2, 3), state)
