"""``nl checkpoint``: damage is found, formats are turned into one another, training goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch

import nl
from nl.cli import main
from nl.dist.saved import read_saved
from nl.run import read_records


@pytest.fixture(scope="module")
def runs(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of 4 steps per format, saved every 2: ``single`` and ``dcp``."""
    root = tmp_path_factory.mktemp("formats")
    for name, strategy in (("single", "single"), ("dcp", "fsdp2")):
        changes = {"run__dir": str(root / name), "train__steps": 4, "checkpoint__every": 2}
        nl.launch(tiny.tiny_run(model__dropout=0.0, **changes), strategy=strategy)
    return root


def test_list_and_verify(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("single", "dcp"):
        assert main(["checkpoint", "ls", str(runs / name), "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert [row["step"] for row in rows] == [2, 4]
        assert {row["format"] for row in rows} == {name}
        assert {row["world"] for row in rows} == {1}
        assert rows[1]["marks"][0] == "latest"
        assert main(["checkpoint", "verify", str(runs / name)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 2
        assert all(line.endswith("ok") for line in lines)
    shutil.copytree(runs / "dcp", tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "step_000002" / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:-1])
    assert main(["checkpoint", "verify", str(tmp_path / "run")]) == 2
    first, why, second = capsys.readouterr().out.splitlines()
    assert first.startswith("step_000002  dcp")
    assert "damaged: " in why
    assert "__0_0.distcp" in why
    assert second.endswith("ok")
    assert main(["checkpoint", "verify", str(file.parent)]) == 2


@pytest.mark.parametrize(
    ("source", "other", "strategy"),
    [
        ("single", "dcp", "fsdp2"),
        ("dcp", "single", "single"),
    ],
)
def test_a_converted_checkpoint_holds_the_same_and_goes_on(
    runs: Path, tiny: ModuleType, tmp_path: Path, source: str, other: str, strategy: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / source, run)
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints")
    old, new = runs / source / "checkpoints/step_000002", run / "checkpoints/step_000002"
    assert main(["checkpoint", "convert", str(old), str(new), "--to", other]) == 0
    ours, theirs = read_saved(old), read_saved(new)
    assert ours.model.keys() == theirs.model.keys()
    assert all(torch.equal(t, theirs.model[n]) for n, t in ours.model.items())
    changes = {"run__dir": str(run), "train__steps": 4, "checkpoint__every": 2, "resume": "auto"}
    nl.launch(tiny.tiny_run(model__dropout=0.0, **changes), strategy=strategy)
    straight, again = (
        [r["loss"] for r in read_records(path / "metrics.jsonl")] for path in (runs / source, run)
    )
    assert again == pytest.approx(straight, rel=1e-6)
    assert sorted(p.name for p in new.parent.glob(".tmp-*")) == []


def test_what_cannot_be_converted_is_said(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = str(runs / "dcp" / "checkpoints" / "step_000002")
    for arguments, complaint in (
        (["convert", str(runs), str(tmp_path / "step_000002"), "--to", "single"], "not a check"),
        (["convert", step, str(tmp_path), "--to", "single"], "exists already"),
        (["convert", step, str(tmp_path / "x"), "--to", "single"], "has to be called step_000002"),
        (["verify", str(tmp_path / "none")], "no such directory"),
        (["ls", str(tmp_path)], "neither a run nor a checkpoint"),
    ):
        assert main(["checkpoint", *arguments]) == 2
        assert complaint in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_sharded_run_is_exported_whole(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    assert main(["export", str(runs / "dcp"), str(file)]) == 0
    own = nl.load_model(runs / "dcp").state_dict()
    assert all(torch.equal(t, own[n]) for n, t in nl.load_model(file).state_dict().items())
    written = nl.load_model(runs / "dcp" / "checkpoints" / "step_000004.safetensors")
    assert all(torch.equal(t, own[n]) for n, t in written.state_dict().items())
