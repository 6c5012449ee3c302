"""The portable export."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import safetensors.torch
import torch

from nl.config import ConfigError, unstructure
from nl.dist.export import export, load_export


def test_weights_and_configuration_come_back(tiny: ModuleType, tmp_path: Path) -> None:
    run = tiny.tiny_run()
    model = run.model.build()
    path = tmp_path / "m.safetensors"
    export(model.state_dict(), run, path)
    config, named = load_export(path)
    assert config == unstructure(run)
    state = model.state_dict()
    assert set(named) == set(state)
    assert all(torch.equal(named[name], state[name]) for name in state)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_every_flipped_byte_of_the_weights_is_caught(tiny: ModuleType, tmp_path: Path) -> None:
    run = tiny.tiny_run()
    path = tmp_path / "m.safetensors"
    export(run.model.build().state_dict(), run, path)
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    for position in range(start, len(data), 97):
        damaged = bytearray(data)
        damaged[position] ^= 16
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match="sha256 differs"):
            load_export(path)


def test_other_files_are_refused(tiny: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ConfigError, match="not an export of nl"):
        load_export(path)
    run = tiny.tiny_run()
    with pytest.raises(ConfigError, match=r"an export is a \.safetensors file"):
        export(run.model.build().state_dict(), run, tmp_path / "m.pt")
    assert not (tmp_path / "m.pt").exists()
