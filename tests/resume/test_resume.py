"""Continuation equals the uninterrupted run; what does not fit is refused and left as it was."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import nl
from nl.config import ConfigError
from nl.run import RunDir, read_records

STEPS = 20


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


compare = load("compare")


@pytest.fixture(scope="module")
def whole(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a checkpoint at every step."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run = tiny.tiny_run(run__dir=str(folder), checkpoint__every=1, checkpoint__keep=0)
    return nl.launch(run)


def copy_until(source: Path, target: Path, step: int) -> None:
    """The run as a crash after ``step`` leaves it: later rows without their checkpoints."""

    def later(folder: str, names: list[str]) -> list[str]:
        return [n for n in names if n.startswith("step_") and int(n[5:11]) > step]

    shutil.copytree(source, target, ignore=later)
    (target / "summary.json").unlink()


@pytest.mark.parametrize("step", range(1, STEPS))
def test_resume_at_every_step(tiny: ModuleType, whole: Path, tmp_path: Path, step: int) -> None:
    copy_until(whole, tmp_path / "run", step)
    run = tiny.tiny_run(
        run__dir=str(tmp_path / "run"), resume="auto", checkpoint__every=0, checkpoint__keep=0
    )
    nl.launch(run)
    assert compare.fingerprint(tmp_path / "run", STEPS) == compare.fingerprint(whole, STEPS)


def test_resume_twice_and_from_an_older_checkpoint(
    tiny: ModuleType, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    run = tiny.tiny_run(
        resume=str(folder / "checkpoints" / "step_000007"),
        checkpoint__every=1,
        checkpoint__keep=0,
    )
    assert nl.launch(run) == folder
    want = compare.fingerprint(whole, STEPS)
    assert compare.fingerprint(folder, STEPS) == want
    assert (folder / "checkpoints" / "abandoned-step_000008").is_dir()
    nl.launch(tiny.tiny_run(resume=str(folder / "checkpoints" / "step_000011")))
    assert compare.fingerprint(folder, STEPS) == want
    resumes = RunDir(folder).meta.read_text()
    assert resumes.count('"step": ') == 2


def test_best_is_not_taken_from_a_future_that_was_set_aside(
    tiny: ModuleType, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    kept = folder / "checkpoints"
    assert (kept / "best").read_text() == "step_000020\n"
    monkeypatch.setenv("TINY_CRASH_AT", "8")
    monkeypatch.setenv("TINY_CRASH_SIGNAL", "SIGTERM")
    with pytest.raises(SystemExit):
        nl.launch(tiny.tiny_run(resume=str(kept / "step_000007"), checkpoint__keep=0))
    assert (kept / "best").read_text() == "step_000005\n"
    assert (kept / "latest").read_text() == "step_000009\n"


def test_a_finished_run_goes_on_with_more_steps(tiny: ModuleType, tmp_path: Path) -> None:
    short, long = tmp_path / "short", tmp_path / "long"
    changes: dict[str, Any] = {"schedule": {"kind": "constant"}, "train__validate_every": 2}
    nl.launch(tiny.tiny_run(run__dir=str(short), train__steps=6, **changes))
    nl.launch(tiny.tiny_run(resume=str(short), train__steps=10, **changes))
    nl.launch(tiny.tiny_run(run__dir=str(long), train__steps=10, **changes))
    assert compare.rows(short) == compare.rows(long)
    ours, theirs = (compare.fingerprint(p, 10) for p in (short, long))
    assert ours["optim.safetensors"] == theirs["optim.safetensors"]
    assert ours["state.safetensors"] == theirs["state.safetensors"]


def test_a_finished_run_is_left_alone(tiny: ModuleType, whole: Path) -> None:
    before = whole.joinpath("meta.json").read_bytes(), len(read_records(whole / "metrics.jsonl"))
    run = tiny.tiny_run(run__dir=str(whole), resume="auto", checkpoint__every=1)
    assert nl.launch(run) == whole
    assert before == (whole.joinpath("meta.json").read_bytes(), before[1])


def test_auto_finds_the_run_of_this_configuration(
    tiny: ModuleType, run_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(**changes: Any) -> Path:
        base = {"run__root": str(run_root), "train__steps": 2, "resume": "auto"}
        return nl.launch(tiny.tiny_run(**(base | changes)))

    first, other = run(), run(optim={"kind": "adamw", "lr": 0.02})
    assert first != other
    assert capsys.readouterr().err.count("no run of this configuration") == 2
    assert run() == first
    assert f"resume=auto: continuing {first}" in capsys.readouterr().err
    # As if the run were of before a key existed, and its hash another.
    data, meta = (first / "config.yaml", first / "meta.json")
    older = yaml.safe_load(data.read_text())
    del older["train"]["watchdog"]
    data.write_text(yaml.safe_dump(older))
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"config_hash": "0" * 12}))
    assert run() == first
    assert run(resume="none") not in (first, other)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 0)])
def test_a_signal_saves_and_the_rest_is_equal(
    tiny: ModuleType,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    code: int,
) -> None:
    folder = tmp_path / "run"
    changes = {"run__dir": str(folder), "checkpoint__every": 0}
    monkeypatch.setenv("TINY_CRASH_AT", "8")
    monkeypatch.setenv("TINY_CRASH_SIGNAL", name)
    with pytest.raises(SystemExit) as stopped:
        nl.launch(tiny.tiny_run(**changes))
    assert stopped.value.code == code
    run = RunDir(folder)
    assert run.read_status()["state"] == "stopped"
    assert run.read_status()["step"] == 9
    assert (run.checkpoints / "step_000009" / "manifest.json").is_file()
    assert f"resume={folder}" in (run.logs / "rank_00.log").read_text()
    monkeypatch.delenv("TINY_CRASH_AT")
    nl.launch(tiny.tiny_run(resume="auto", **changes))
    assert compare.rows(folder) == compare.rows(whole)
    ours, theirs = (compare.fingerprint(p, STEPS) for p in (folder, whole))
    assert ours["state.safetensors"] == theirs["state.safetensors"]
    assert ours["optim.safetensors"] == theirs["optim.safetensors"]


def test_signal_handlers_are_given_back(tiny: ModuleType, whole: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    nl.launch(tiny.tiny_run(run__dir=str(whole), resume="auto", checkpoint__every=1))
    assert signal.getsignal(signal.SIGTERM) is before


def test_damaged_checkpoints_fall_back_loudly(
    tiny: ModuleType, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    copy_until(whole, folder, 12)
    damaged = folder / "checkpoints" / "step_000012" / "optim.safetensors"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 4
    damaged.write_bytes(data)
    os.truncate(folder / "checkpoints" / "step_000011" / "model.safetensors", 40)
    run = tiny.tiny_run(
        run__dir=str(folder), resume="auto", checkpoint__every=0, checkpoint__keep=0
    )
    nl.launch(run)
    text = (folder / "meta.json").read_text()
    assert '"step": 10' in text
    assert compare.fingerprint(folder, STEPS) == compare.fingerprint(whole, STEPS)


def test_no_valid_checkpoint_is_refused(tiny: ModuleType, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    copy_until(whole, folder, 1)
    (folder / "checkpoints" / "step_000001" / "trainer.json").unlink()
    rows = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=r"step_000001/trainer\.json: missing"):
        nl.launch(tiny.tiny_run(run__dir=str(folder), resume="auto"))
    assert (folder / "metrics.jsonl").read_bytes() == rows


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model__dim": 16}, "model.dim: 8 saved, 16 now"),
        ({"optim__lr": 0.5, "seed": 3}, r"optim.lr: 0.01 saved, 0.5 now\n  seed: 0 saved, 3 now"),
        ({"objective": {"kind": "next_token"}}, "objective.kind: 'tiny' saved, 'next_token' now"),
    ],
)
def test_another_configuration_is_refused(
    tiny: ModuleType, whole: Path, changes: dict[str, Any], complaint: str
) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match=complaint):
        nl.launch(tiny.tiny_run(resume=str(whole), **changes))
    assert before == {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}


def test_what_resume_cannot_mean_is_refused(tiny: ModuleType, whole: Path, tmp_path: Path) -> None:
    loose = tmp_path / "step_000003"
    shutil.copytree(whole / "checkpoints" / "step_000003", loose)
    cases = {
        str(tmp_path / "nowhere"): "does not exist",
        str(tmp_path): "neither a run nor a checkpoint",
        str(loose): "not inside a run directory",
    }
    for path, complaint in cases.items():
        with pytest.raises(ConfigError, match=complaint):
            nl.launch(tiny.tiny_run(resume=path))
    with pytest.raises(ConfigError, match=r"run\.dir: .* drop run\.dir"):
        nl.launch(tiny.tiny_run(resume=str(whole), run__dir=str(tmp_path / "else")))
    with pytest.raises(ConfigError, match="already holds a run; add resume="):
        nl.launch(tiny.tiny_run(run__dir=str(whole)))


def test_load_model_reads_run_checkpoint_pointer_and_export(
    tiny: ModuleType, whole: Path, tmp_path: Path
) -> None:
    import torch

    checkpoints = whole / "checkpoints"
    places = [
        whole,
        checkpoints / "latest",
        checkpoints / "step_000020",
        checkpoints / "step_000020.safetensors",
    ]
    models = [nl.load_model(place) for place in places]
    tokens = torch.arange(6).view(2, 3)
    want = models[0](tokens).pred
    assert all(torch.equal(model(tokens).pred, want) for model in models)
    assert all(model.head.weight is model.embed.weight for model in models)
    assert not models[0].training
    flipped = tmp_path / "flipped.safetensors"
    data = bytearray(places[-1].read_bytes())
    data[-5] ^= 1
    flipped.write_bytes(data)
    with pytest.raises(ConfigError, match=r"flipped\.safetensors: sha256 differs"):
        nl.load_model(flipped)
    with pytest.raises(ConfigError, match="does not exist"):
        nl.load_model(tmp_path / "none")
