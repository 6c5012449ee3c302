"""No file that is read can run code: the canary stays away, whatever the file claims to be."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import nl
import nl.assembly
from nl.config import ConfigError
from nl.config.hydra import compose, load_config, run_config
from nl.data.manifest import read_manifest
from nl.data.tokenizer import load_tokenizer
from nl.dist.state_file import load_state
from nl.report import write_report
from nl.run import RunDir, RunError, read_records
from nl.run.discover import newest_valid
from nl.run.manifest import MANIFEST, write_manifest

PARTS = (
    "model.safetensors",
    "optim.safetensors",
    "optim.json",
    "state.safetensors",
    "trainer.json",
    "config.yaml",
)
Payloads = dict[str, bytes]


class Attack:
    """Unpickling it makes the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def payloads(canary: Path) -> Payloads:
    """What a hostile file may hold, by its kind."""
    stored = io.BytesIO()
    torch.save({"model": Attack(canary)}, stored)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(30_000_000))
    overlap = (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}'
    )
    return {
        "pickle": pickle.dumps(Attack(canary)),
        "torch.save": stored.getvalue(),
        "zip bomb": bomb.getvalue(),
        "header of 2^63": struct.pack("<Q", 2**63) + b"{}",
        "overlapping offsets": struct.pack("<Q", len(overlap)) + overlap + bytes(6),
        "yaml tag": f"!!python/object/apply:os.mkdir ['{canary}']\n".encode(),
        "yaml key tag": f"model: !!python/object/apply:os.mkdir ['{canary}']\n".encode(),
        "deep JSON": b"[" * 1_000_000,
        "huge integer": b'{"schema": 1' + b"0" * 5000 + b"}",
        "bad UTF-8": b'{"a": "\xff\xfe"}',
    }


def test_the_attacks_work_where_nothing_refuses_them(canary: Path, payloads: Payloads) -> None:
    import yaml

    for attack in (
        lambda: pickle.loads(payloads["pickle"]),  # noqa: S301 - the point
        lambda: torch.load(io.BytesIO(payloads["torch.save"]), weights_only=False),
        lambda: yaml.unsafe_load(payloads["yaml tag"]),
    ):
        attack()
        canary.rmdir()


@pytest.fixture(scope="module")
def run(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("canary") / "run"
    return nl.launch(tiny.tiny_run(run__dir=str(folder), train__steps=2, checkpoint__every=1))


@pytest.mark.parametrize("name", [*PARTS, MANIFEST])
def test_files_of_a_checkpoint(
    tiny: ModuleType, run: Path, tmp_path: Path, canary: Path, payloads: Payloads, name: str
) -> None:
    """Also with digests that fit, as one who writes the file can write them."""
    for payload in payloads.values():
        folder = tmp_path / "run"
        shutil.copytree(run, folder)
        for step in ("step_000001", "step_000002"):
            target = folder / "checkpoints" / step
            (target / name).write_bytes(payload)
            if name != MANIFEST:
                (target / MANIFEST).unlink()
                write_manifest(target)
        if name != "config.yaml":  # resuming reads the run's own
            with pytest.raises((ConfigError, RunError)):
                nl.launch(tiny.tiny_run(resume=str(folder), train__steps=4))
        if name in ("model.safetensors", "config.yaml", MANIFEST):
            with pytest.raises((ConfigError, RunError)):
                nl.load_model(folder)
        assert not canary.exists()
        shutil.rmtree(folder)


def _import(folder: Path, config: str | None = None) -> None:
    from nl.cli_import import read_foreign

    if config is not None:
        (folder / "config.json").write_text(config)
    read_foreign(folder)


Reader = Callable[[Path], object]
READERS: dict[str, tuple[str, Reader]] = {
    "export": ("x.safetensors", nl.load_model),
    "weights of torch": ("x.pt", nl.load_model),
    "state": ("x.safetensors", lambda p: load_state(p)),
    "tokenizer": ("tokenizer.model", load_tokenizer),
    "data manifest": ("manifest.json", lambda p: read_manifest(p.parent)),
    "hf config": ("config.json", lambda p: _import(p.parent)),
    "hf weights": ("model.safetensors", lambda p: _import(p.parent, '{"model_type": "gpt2"}')),
    "hf index": ("model.safetensors.index.json", lambda p: _import(p.parent, "{}")),
    "own hf config": ("config.json", lambda p: nl.load_model(p.parent)),
    "configuration": ("config.yaml", lambda p: run_config(load_config(p))),
}


@pytest.mark.parametrize("kind", READERS)
def test_other_files(tmp_path: Path, canary: Path, payloads: Payloads, kind: str) -> None:
    name, read = READERS[kind]
    for payload in payloads.values():
        path = tmp_path / name
        path.write_bytes(payload)
        with pytest.raises((ConfigError, RunError)):
            read(path)
        assert not canary.exists()


def test_files_of_a_run_directory(
    tmp_path: Path, run: Path, canary: Path, payloads: Payloads
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for payload in payloads.values():
        (folder / "metrics.jsonl").write_bytes(payload)
        assert read_records(folder / "metrics.jsonl") == []
        (folder / "status.json").write_bytes(payload)
        with pytest.raises(RunError):
            RunDir(folder).read_status()
        (folder / "checkpoints" / "latest").write_bytes(payload)
        assert newest_valid(folder)[0] is not None
        (folder / "config.yaml").write_bytes(payload)
        write_report(folder)
        assert not canary.exists()


def test_names_that_lead_elsewhere(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    target = folder / "checkpoints" / "step_000002"
    for name in ("../../../meta.json", "/etc/hostname", ".."):
        manifest = json.loads((run / "checkpoints/step_000002" / MANIFEST).read_text())
        manifest["files"][name] = {"bytes": 1, "sha256": "0"}
        (target / MANIFEST).write_text(json.dumps(manifest) + "\n")
        found, complaints = newest_valid(folder)
        assert found == folder / "checkpoints" / "step_000001"
        assert "is not a plain file name" in complaints[0]
    (target / MANIFEST).write_text((run / "checkpoints/step_000002" / MANIFEST).read_text())
    (target / "model.safetensors").unlink()
    (target / "model.safetensors").symlink_to("/etc/hostname")
    assert newest_valid(folder)[0] == folder / "checkpoints" / "step_000001"


def test_aliases_that_unfold_for_ever_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for i in range(1, 10):
        lines.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]")
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    tracemalloc.start()
    with pytest.raises(ConfigError, match="more than 100000 values; not a configuration"):
        load_config(tmp_path / "config.yaml")
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@pytest.mark.parametrize("key", ["model", "optim", "train", "hooks.x"])
def test_targets_of_hydra_are_unknown_keys(canary: Path, key: str) -> None:
    overrides = [f"+{key}._target_=os.mkdir", f"+{key}.path={canary}"]
    with pytest.raises(ConfigError):
        run_config(compose("pilot_smoke", overrides))
    assert not canary.exists()


def test_targets_in_hydras_own_node_are_refused(tmp_path: Path, canary: Path, repo: Path) -> None:
    callback = {"_target_": "subprocess.call", "args": ["touch", str(canary)]}
    (tmp_path / "evil.yaml").write_text(
        f"defaults: [pilot_smoke, _self_]\nhydra: {{callbacks: {{x: {json.dumps(callback)}}}}}\n"
    )
    command = [sys.executable, str(repo / "train.py"), "--config-dir", str(tmp_path)]
    command += ["--config-name", "evil", "stream.path=/nowhere", f"run.root={tmp_path / 'runs'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    assert not canary.exists()
    assert not (tmp_path / "runs").exists()
