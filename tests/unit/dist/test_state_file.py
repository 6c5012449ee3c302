"""A State survives its file bit for bit; anything else is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import nl
from nl.config import ConfigError
from nl.core import state as states
from nl.dist.serial import load_tensors
from nl.dist.state_file import read_state, save_state
from tests.laws.conftest import block_kinds, small, tokens


@pytest.mark.parametrize("kind", block_kinds())
def test_reading_goes_on_from_the_file_as_if_nothing_had_happened(
    kind: str, tmp_path: Path
) -> None:
    model, x = small(kind), tokens(2, 40)
    path = tmp_path / "half.safetensors"
    with torch.no_grad():
        half = model(x[:, :19], starts=[[7], []]).state
        nl.save_state(path, half)
        loaded = nl.load_state(path)
        held, skeleton = states.flatten(half)
        named, other = states.flatten(loaded)
        assert skeleton == other
        assert type(loaded) is type(half)
        assert all(torch.equal(named[key], held[key]) for key in held)
        assert all(named[key].dtype == held[key].dtype for key in held)
        first, second = (model(x[:, 19:], state).pred for state in (loaded, half))
        assert (first - second).abs().max() < 1e-5


def test_a_fork_is_advanced_on_its_own() -> None:
    model, x = small("hope_selfmod"), tokens(2, 40)
    with torch.no_grad():
        state = model(x[:, :19]).state
        kept = states.flatten(states.clone(state))[0]
        fork = states.clone(state)
        wanted = model(x[:, 19:], state).pred
        for tensor in states.tensors(fork):
            tensor.zero_() if tensor.is_floating_point() else None
        assert torch.equal(model(x[:, 19:], state).pred, wanted)
    now = states.flatten(state)[0]
    assert all(torch.equal(now[key], kept[key]) for key in kept)


def saved(tmp_path: Path) -> Path:
    model = small("titan_mag")
    with torch.no_grad():
        state = model(tokens(1, 9)).state
    return save_state(tmp_path / "s.safetensors", state, {"read": 9})


def rewrite(path: Path, change: Any) -> None:
    named, metadata = load_tensors(path)
    change(named, metadata)
    safetensors.torch.save_file({k: v.clone() for k, v in named.items()}, path, metadata=metadata)


def test_facts_come_back(tmp_path: Path) -> None:
    path = saved(tmp_path)
    assert read_state(path).facts == {"read": 9}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.safetensors"]


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)

    def one_bit(named: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        first = next(iter(named))
        named[first].view(-1)[0] += 1e-3

    rewrite(path, one_bit)
    with pytest.raises(ConfigError, match="digest"):
        read_state(path)

    def another_position(named: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        plain = json.loads(metadata["state"])
        plain["skeleton"]["items"][0]["value"] += 1
        metadata["state"] = json.dumps(plain, sort_keys=True)

    path = saved(tmp_path)
    rewrite(path, another_position)
    with pytest.raises(ConfigError, match="digest"):
        read_state(path)


def test_what_is_no_state_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_state(tmp_path / "none.safetensors")
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"x": torch.ones(2)}, other)
    with pytest.raises(ConfigError, match="not a state file"):
        read_state(other)
    other.write_bytes(b"junk")
    with pytest.raises(ConfigError, match="safetensors"):
        read_state(other)
    with pytest.raises(ConfigError, match=r"ends in \.safetensors"):
        save_state(tmp_path / "state.pt", (torch.ones(1),))
    with pytest.raises(ConfigError, match="cannot be written"):
        save_state(other / "s.safetensors", (torch.ones(1),))


def test_the_folder_of_a_state_file_is_made(tmp_path: Path) -> None:
    path = save_state(tmp_path / "notes" / "july" / "s.safetensors", (torch.ones(1),))
    assert read_state(path).state == (torch.ones(1),)
