"""Values through tensors and JSON and back; generators; tied tensors; hostile files."""

from __future__ import annotations

import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nl.config import ConfigError
from nl.dist.serial import (
    load_tensors,
    model_tensors,
    objective_name,
    pack,
    plain_name,
    restore_rng,
    rng_tensors,
    save_tensors,
    unpack,
)


def test_optimizer_state_survives_json_bit_by_bit() -> None:
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1 / 3, betas=(0.9, 0.95))
    layer(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    named: dict[str, torch.Tensor] = {}
    state = optimizer.state_dict()
    skeleton = json.loads(json.dumps(pack(state, named, "optim")))
    back = unpack(skeleton, named)
    assert back["param_groups"] == state["param_groups"]
    assert back["param_groups"][0]["betas"] == (0.9, 0.95)
    for index, values in state["state"].items():
        for name, value in values.items():
            assert torch.equal(back["state"][index][name], value)


def test_what_needs_pickle_is_refused() -> None:
    with pytest.raises(TypeError, match=r"optim\.a\.0: cannot store object without pickle"):
        pack({"a": [object()]}, {}, "optim")
    with pytest.raises(TypeError, match="keys must be str or int"):
        pack({(1, 2): 3}, {}, "optim")


def test_generators_continue_where_they_were() -> None:
    random.gauss(0, 1)
    np.random.standard_normal()

    def draws() -> list[float]:
        own = [random.random(), random.gauss(0, 1), random.gauss(0, 1)]
        legacy = [float(x) for x in np.random.standard_normal(3)]
        return [*own, *legacy, *torch.randn(3).tolist()]

    saved = {k: v.clone() for k, v in rng_tensors().items()}
    want = draws()
    assert draws() != want
    restore_rng(saved)
    assert draws() == want


def test_tied_tensors_are_stored_once_and_come_back_tied(tmp_path: Path) -> None:
    shared = torch.randn(4, 4)
    named = {"a": shared, "b": shared, "view": shared[:2], "c": torch.zeros(0)}
    save_tensors(tmp_path / "x.safetensors", named, {"k": "v"})
    back, metadata = load_tensors(tmp_path / "x.safetensors")
    assert back["a"] is back["b"]
    assert set(back) == set(named)
    assert all(torch.equal(back[name], named[name]) for name in named)
    assert metadata == {"k": "v"}
    assert (tmp_path / "x.safetensors").stat().st_size < 600


def test_loaded_tensors_are_aligned_as_new_ones_are(tmp_path: Path) -> None:
    """Sums over memory that begins elsewhere round otherwise: resuming would not be bitwise."""
    named = {f"t{i}": torch.randn(1 + i % 5) for i in range(40)}
    save_tensors(tmp_path / "x.safetensors", named)
    loaded, _ = load_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in named.items())
    assert all(tensor.data_ptr() % 64 == 0 for tensor in loaded.values())


def test_names_lose_wrappers_and_nothing_else() -> None:
    assert plain_name("_orig_mod.model.module.head.weight") == "model.head.weight"
    named = {"model.head.weight": torch.zeros(1), "scale": torch.ones(1)}
    plain = model_tensors(named)
    assert list(plain) == ["head.weight", "objective.scale"]
    assert [objective_name(name) for name in plain] == list(named)


def hostile(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        struct.pack("<Q", 2**63) + b"{}",
        hostile(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
        hostile(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}',
            b"\x00" * 6,
        ),
        hostile(b'{"__metadata__":{"nl_tied":"{"}}'),
        hostile(b'{"__metadata__":{"nl_tied":"{\\"a\\": \\"none\\"}"}}'),
        b"\x80\x04\x95cposix\nsystem\n",
    ],
)
def test_hostile_files_are_refused_by_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"x\.safetensors"):
        load_tensors(path)


def test_a_full_disk_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        save_tensors(tmp_path / "none" / "x.safetensors", {"a": torch.zeros(2)})


def test_unpack_inverts_pack_for_nested_values() -> None:
    value: Any = {"a": [1, 2.5, None, "x", True], 3: (1, (torch.arange(2),)), "d": {}}
    named: dict[str, torch.Tensor] = {}
    back = unpack(json.loads(json.dumps(pack(value, named))), named)
    assert back["a"] == value["a"]
    assert back[3][0] == 1
    assert torch.equal(back[3][1][0], torch.arange(2))
    assert back["d"] == {}


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_file_may_be_read_by_whom_the_umask_says(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2)})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask
