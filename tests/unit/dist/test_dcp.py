"""Sharded checkpoint files: nothing in them runs, damage is named, any process can read them."""

from __future__ import annotations

import copy
import functools
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata
from torch.distributed.checkpoint.state_dict_loader import load

import nl
from nl.config import ConfigError
from nl.dist.checkpoint import reading
from nl.dist.dcp import entries, read_all, read_index, read_sharded
from nl.dist.dcp_write import Piece, piece_of, write_index, write_part
from nl.dist.layout import INDEX
from nl.dist.saved import read_saved, write_dcp, write_plain
from nl.run.discover import newest_valid
from nl.run.manifest import MANIFEST, write_manifest


class Attack:
    """Unpickling it makes the canary."""

    def __init__(self, canary: Path, call: Any = os.mkdir) -> None:
        self.canary, self.call = canary, call

    def __reduce__(self) -> tuple[Any, ...]:
        if self.call is eval:
            return eval, (f"__import__('os').mkdir({str(self.canary)!r})",)
        if self.call is functools.partial:
            return functools.partial(os.mkdir, str(self.canary)), ()
        return self.call, (str(self.canary),)


@pytest.fixture(scope="module")
def trained(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the sharded checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("dcp") / "run"
    changes = {"run__dir": str(folder), "train__steps": 2, "checkpoint__every": 1}
    return nl.launch(tiny.tiny_run(**changes), strategy="fsdp2")


@pytest.fixture
def step(trained: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint of step 2, alone in its run."""
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_000001")
    return tmp_path / "run" / "checkpoints" / "step_000002"


def rewrite(step: Path, name: str, data: bytes) -> None:
    """As one who writes a file can: with digests that fit."""
    (step / name).write_bytes(data)
    (step / MANIFEST).unlink()
    write_manifest(step)


def hostile(index: Metadata, canary: Path) -> dict[str, bytes]:
    """Indexes that would make the canary."""
    planned, named, keyed = (copy.deepcopy(index) for _ in range(3))
    planned.planner_data = {"x": Attack(canary)}
    named.state_dict_metadata["model/embed.weight"] = Attack(canary)  # type: ignore[assignment]
    keyed.storage_data[Attack(canary, eval)] = 1
    return {
        "alone": pickle.dumps(Attack(canary)),
        "evaluated": pickle.dumps(Attack(canary, eval)),
        "wrapped": pickle.dumps(Attack(canary, functools.partial)),
        "old protocol": pickle.dumps(Attack(canary), protocol=0),
        "as plan": pickle.dumps(planned),
        "as tensor": pickle.dumps(named),
        "as key": pickle.dumps(keyed),
    }


@pytest.mark.parametrize(
    "name", ["alone", "evaluated", "wrapped", "old protocol", "as plan", "as tensor", "as key"]
)
def test_a_crafted_index_runs_nothing(step: Path, tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    payload = hostile(read_index(step), canary)[name]
    pickle.loads(payload)  # noqa: S301 - the attack works where nothing refuses it
    canary.rmdir()
    rewrite(step, INDEX, payload)
    for read in (nl.load_model, read_index, read_saved):
        with pytest.raises(ConfigError, match=r"\.metadata: refused: .* nothing in it was run"):
            read(step)
    assert not canary.exists()


def test_a_crafted_shard_runs_nothing(step: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    torch.save(Attack(canary), tmp_path / "bad")
    rewrite(step, "__0_0.distcp", (tmp_path / "bad").read_bytes())
    index = read_index(step)
    for info in index.storage_data.values():
        info.offset, info.length = 0, (step / "__0_0.distcp").stat().st_size
    rewrite(step, INDEX, pickle.dumps(index))
    with pytest.raises(ConfigError, match=r"step_000002: .*weights_only"):
        nl.load_model(step)
    assert not canary.exists()


def away(index: Metadata) -> None:
    next(iter(index.storage_data.values())).relative_path = "../../config.yaml"


def gone(index: Metadata) -> None:
    next(iter(index.storage_data.values())).relative_path = "__7_0.distcp"


def transformed(index: Metadata) -> None:
    next(iter(index.storage_data.values())).transform_descriptors = ["zstd"]


def opaque(index: Metadata) -> None:
    index.state_dict_metadata["model/x"] = BytesStorageMetadata()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (away, "names files that are not in"),
        (gone, "names files that are not in"),
        (transformed, "names files that are not in"),
        (opaque, "refused: .*BytesStorageMetadata has no place"),
    ],
)
def test_an_index_names_tensors_in_its_own_files_only(
    step: Path, change: Callable[[Metadata], None], complaint: str
) -> None:
    index = read_index(step)
    change(index)
    rewrite(step, INDEX, pickle.dumps(index))
    with pytest.raises(ConfigError, match=complaint):
        nl.load_model(step)


@pytest.mark.parametrize("data", [b"", b"\x80", b"{}", pickle.dumps({}), pickle.dumps([1] * 9)])
def test_a_broken_index_is_named(step: Path, data: bytes) -> None:
    rewrite(step, INDEX, data)
    with pytest.raises(ConfigError, match=r"\.metadata: "):
        nl.load_model(step)


def test_damage_is_found_and_the_older_checkpoint_taken(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in (INDEX, "__0_0.distcp", "optim.json"):
        shutil.copytree(trained, run)
        path = run / "checkpoints" / "step_000002" / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 64
        path.write_bytes(data)
        folder, complaints = newest_valid(run)
        assert folder == run / "checkpoints" / "step_000001"
        assert name in complaints[0]
        with pytest.raises(ConfigError, match=name), reading(path.parent):
            pass
        shutil.rmtree(run)


def test_both_formats_hold_the_same(step: Path, tmp_path: Path) -> None:
    saved = read_saved(step)
    assert saved.optimizer.names == [n for g in saved.optimizer.parameters for n in g]
    for write, name in ((write_plain, "model.safetensors"), (write_dcp, INDEX)):
        folder = tmp_path / name.strip(".")
        folder.mkdir()
        write(folder, saved)
        assert (folder / name).is_file()
        again = read_saved(folder)
        assert again.model.keys() == saved.model.keys()
        assert all(torch.equal(again.model[n], t) for n, t in saved.model.items())
        assert again.optimizer.parameters == saved.optimizer.parameters
        assert again.optimizer.groups == saved.optimizer.groups
        assert again.slots.keys() == saved.slots.keys()
        for parameter, slots in saved.slots.items():
            assert again.slots[parameter].keys() == slots.keys()
            assert all(torch.equal(again.slots[parameter][s], v) for s, v in slots.items())


def stored(folder: Path, tensors: dict[str, Tensor]) -> None:
    pieces = [piece_of(name, tensor, True) for name, tensor in tensors.items()]
    write_part(folder, 0, [piece for piece in pieces if piece is not None], {"x": 1})
    assert write_index(folder) == [{"x": 1}]


def test_what_is_asked_for_has_to_be_there(tmp_path: Path) -> None:
    stored(tmp_path, {"model/a": torch.arange(6.0).view(2, 3)})
    assert entries(tmp_path)["model/a"].shape == (2, 3)
    assert torch.equal(read_all(tmp_path, "model/")["a"], torch.arange(6.0).view(2, 3))
    for name, shape in (("model/b", (2, 3)), ("model/a", (3, 2))):
        with pytest.raises(ConfigError, match=f"{name} is .* made for another model"):
            read_sharded(tmp_path, {name: torch.zeros(shape)})


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_pytorch_reads_the_files_too(tmp_path: Path) -> None:
    whole = {
        "model/a": torch.arange(10.0).view(5, 2),
        "optim/a/step": torch.tensor(3.0),
        "model/b": torch.arange(4, dtype=torch.bfloat16),
    }
    for rank, rows in enumerate((slice(0, 3), slice(3, 5))):
        part = Piece("model/a", (5, 2), 3 * rank, whole["model/a"][rows].clone())
        more = [piece_of(n, t, rank == 0) for n, t in whole.items() if n != "model/a"]
        write_part(tmp_path, rank, [part, *(p for p in more if p is not None)], None)
    assert write_index(tmp_path) == [None, None]
    assert sorted(p.name for p in tmp_path.iterdir()) == [INDEX, "__0_0.distcp", "__1_0.distcp"]
    into = {name: torch.zeros_like(tensor) for name, tensor in whole.items()}
    load(into, storage_reader=FileSystemReader(tmp_path), no_dist=True)
    for name, tensor in whole.items():
        assert torch.equal(into[name], tensor)
        assert torch.equal(read_all(tmp_path, "")[name], tensor)


def test_a_full_disk_is_an_error_of_the_operating_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file: unexpected pos")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"__0_0\.distcp: cannot be written"):
        stored(tmp_path, {"model/a": torch.zeros(3)})
