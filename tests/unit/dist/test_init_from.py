"""init_from: a run begins with the weights of a file; what does not fit is refused by its key."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from nl.assembly import launch, load_model, load_run
from nl.cli import main
from nl.config import ConfigError, unstructure
from nl.config.hydra import compose, run_config
from nl.config.run import BEGINNING, NOT_HASHED, WATCHING, config_hash
from nl.dist.export import export
from nl.dist.hf_folder import write_hf_folder
from nl.dist.origin import check_tokenizer, read_description, tokenizers_of
from nl.run.records import read_records
from nl.train.resume import differences

SMALL = [
    "model=language",
    "model.vocab_size=24",
    "model.dim=16",
    "model.layers=2",
    "model.attention.heads=2",
    "model.cms.periods=[8,16]",
    "model.cms.allow_short_periods=true",
    "stream=recall",
    "stream.keys=12",
    "stream.pairs=3",
    "stream.val_size=8",
    "stream.batch_size=4",
    "train.steps=3",
    "logging.every=1",
]


def trained(folder: Path, *more: str) -> Path:
    return launch(compose("pilot_smoke", [*SMALL, f"run.dir={folder}", *more]))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps."""
    return trained(tmp_path_factory.mktemp("first") / "run")


def forms(first: Path, folder: Path) -> dict[str, Path]:
    """The same weights as run, checkpoint, file and Hugging Face directory."""
    run, model = load_run(first)
    write_hf_folder(model.state_dict(), run, folder / "hf")
    step = first / "checkpoints" / "step_000003"
    return {
        "run": first,
        "checkpoint": step,
        "file": Path(f"{step}.safetensors"),
        "hf": folder / "hf",
    }


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_records(run / "metrics.jsonl") if row["split"] == "train"]


def test_every_form_begins_with_the_same_weights(first: Path, tmp_path: Path) -> None:
    found = {}
    for name, path in forms(first, tmp_path).items():
        run = trained(tmp_path / f"from_{name}", f"init_from={path}", "seed=7")
        found[name] = losses(run)
        meta = json.loads((run / "meta.json").read_text())
        assert meta["init_from"]["path"].startswith(str(path))
        assert len(meta["init_from"]["sha256"]) == 64
    assert len({tuple(one) for one in found.values()}) == 1
    fresh = losses(trained(tmp_path / "fresh", "seed=7"))
    assert found["file"][0] != fresh[0]


def test_it_begins_with_exactly_these_weights(first: Path, tmp_path: Path) -> None:
    frozen = trained(tmp_path / "run", f"init_from={first}", "optim.lr=1e-30", "train.steps=1")
    before, after = load_model(first).state_dict(), load_model(frozen).state_dict()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-12, rtol=0)


def test_the_model_of_the_file_with_a_change(first: Path, tmp_path: Path) -> None:
    chosen = [o for o in SMALL if not o.startswith("model")]
    told = [*chosen, "model=init_from", f"init_from={first}", "+model.changes.cms.rate=0.25"]
    run = launch(compose("pilot_smoke", [*told, f"run.dir={tmp_path / 'run'}"]))
    kept, model = load_run(run)
    assert kept.model.kind == "language"
    assert model.config.cms.rate == 0.25
    assert model.config.dim == 16
    assert kept.init_changes == ("cms.rate",)
    with pytest.raises(
        ConfigError, match=r"model\.changes\.cms\.speed: the model of .* has no cms"
    ):
        launch(compose("pilot_smoke", [*told[:-1], "+model.changes.cms.speed=1"]))
    with pytest.raises(ConfigError, match="name one with init_from=<file>"):
        launch(compose("pilot_smoke", [*chosen, "model=init_from"]))


@pytest.mark.parametrize("block", ["transformer", "hope_attention"])
def test_a_trained_model_gets_a_head_that_learns(block: str, tmp_path: Path) -> None:
    """Written by a version without the option, too: its parameters alone are trained then."""
    plain = trained(tmp_path / "plain", f"model.block={block}")
    config, old = load_run(plain)
    file = tmp_path / "plain.safetensors"
    export(old.state_dict(), config, file)
    with safetensors.safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    data = json.loads(metadata["nl_config"])
    del data["model"]["head_memory"]
    metadata["nl_config"] = json.dumps(data)
    safetensors.torch.save_file(safetensors.torch.load_file(file), file, metadata)
    asked = ["+model.changes.head_memory.period=4", "optim.policy=memory_only"]
    chosen = [o for o in SMALL if not o.startswith("model")]
    told = [*chosen, "model=init_from", f"init_from={file}", *asked]
    run = launch(compose("pilot_smoke", [*told, f"run.dir={tmp_path / 'learns'}"]))
    _, new = load_run(run)
    named, before = dict(new.named_parameters()), dict(old.named_parameters())
    assert named.keys() - before.keys() == {"head_memory.log_rate", "head_memory.toward"}
    assert named["head_memory.toward"].abs().max() > 0
    if block == "transformer":
        assert all(torch.equal(named[name], parameter) for name, parameter in before.items())
    with pytest.raises(ConfigError, match=r"model\.head_memory\.period: 4 there, 0 here"):
        trained(tmp_path / "back", f"model.block={block}", f"init_from={run}")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["model.dim=32"], r"model\.dim: 16 there, 32 here"),
        (["model.cms.rate=0.5"], r"model\.cms\.rate: 1\.0 there, 0\.5 here"),
        (["model.block=transformer"], r"model\.block: 'hope_attention' there, 'transformer' here"),
        (["init_changes=[cms.speed]"], r"init_changes: model\.cms\.speed; the model has no such"),
        (["init_changes=[dim]", "model.dim=32"], "size mismatch|shape"),
    ],
)
def test_another_model_is_refused_by_its_keys(
    more: list[str], message: str, first: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        trained(tmp_path / "run", f"init_from={first}", *more)
    assert not (tmp_path / "run").exists()


def test_what_is_not_there_or_damaged_is_refused(first: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist; give a run, a checkpoint or an export"):
        trained(tmp_path / "run", f"init_from={tmp_path / 'nowhere'}")
    with pytest.raises(ConfigError, match="neither a run, a checkpoint nor an export"):
        trained(tmp_path / "run", f"init_from={tmp_path}")
    damaged = tmp_path / "damaged.safetensors"
    data = bytearray(forms(first, tmp_path)["file"].read_bytes())
    data[-3] ^= 1
    damaged.write_bytes(bytes(data))
    with pytest.raises(ConfigError, match="sha256 differs"):
        trained(tmp_path / "run", f"init_from={damaged}")
    with pytest.raises(ConfigError, match=r"init_changes: .* they are about init_from"):
        trained(tmp_path / "run", "init_changes=[dim]")


def test_a_damaged_checkpoint_is_not_passed_over_in_silence(
    first: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("nl"), "propagate", True)
    run = shutil.copytree(first, tmp_path / "run")
    older = run / "checkpoints" / "step_000003"
    load_run(run)
    assert "damaged" not in caplog.text
    newer = shutil.copytree(older, run / "checkpoints" / "step_000004")
    data = bytearray((newer / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (newer / "model.safetensors").write_bytes(bytes(data))
    load_run(run)
    assert f"{newer} is damaged (nl checkpoint verify {run} says where)" in caplog.text
    assert f"reading the older checkpoint {older}" in caplog.text


def test_a_resumed_run_goes_on_from_its_own_checkpoint(first: Path, tmp_path: Path) -> None:
    source = forms(first, tmp_path)["file"]
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(source.read_bytes())
    place = tmp_path / "run"
    trained(place, f"init_from={copy}")
    more = ["train.steps=5", f"init_from={copy}"]
    copy.unlink()  # not needed any more
    longer = [*SMALL, *more, f"resume={place}"]
    launch(compose("pilot_smoke", longer))
    assert len(losses(place)) == 5
    whole = trained(tmp_path / "whole", "train.steps=5", f"init_from={source}")
    assert losses(whole)[:1] == losses(place)[:1]
    other = [*SMALL, "train.steps=6", f"init_from={source}", f"resume={place}"]
    with pytest.raises(ConfigError, match=r"init_from: '.*copy\.safetensors' saved"):
        launch(compose("pilot_smoke", other))
    with pytest.raises(ConfigError, match=r"init_from: None saved|init_from: 'absent' saved"):
        launch(compose("pilot_smoke", [*SMALL, f"init_from={source}", f"resume={first}"]))


def test_runs_from_before_the_key_are_found_and_go_on(first: Path, tmp_path: Path) -> None:
    """A configuration without the keys has the hash it had, and differs in nothing."""
    run = run_config(compose("pilot_smoke", SMALL))
    begun = run_config(compose("pilot_smoke", [*SMALL, f"init_from={first}"]))
    assert config_hash(begun) != config_hash(run)
    saved = {k: v for k, v in unstructure(run).items() if k not in BEGINNING}
    assert differences(saved, run) == []
    assert differences(saved, begun) == [f"init_from: 'absent' saved, {str(first)!r} now"]
    data = {k: v for k, v in saved.items() if k not in NOT_HASHED} | {"deepspeed": None}
    data["train"] = {k: v for k, v in data["train"].items() if k not in WATCHING}
    del data["signals"]
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    assert config_hash(run) == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_another_tokenizer_is_refused_by_its_digest(first: Path, tmp_path: Path) -> None:
    run, model = load_run(first)
    target = tmp_path / "known.safetensors"
    export(model.state_dict(), run, target, ["a" * 64, "b" * 64])
    assert tokenizers_of(target) == ("a" * 64, "b" * 64)
    check_tokenizer(target, "b" * 64, "--data")
    check_tokenizer(target, None, "--data")
    with pytest.raises(
        ConfigError, match=r"--data has the tokenizer cccccccccccc .* aaaaaaaaaaaa or"
    ):
        check_tokenizer(target, "c" * 64, "--data")
    write_hf_folder(model.state_dict(), run, tmp_path / "hf", None, ["d" * 64])
    assert tokenizers_of(tmp_path / "hf") == ("d" * 64,)
    assert tokenizers_of(first) == ()
    assert read_description(target)["model"]["dim"] == 16


def test_init_from_is_no_model_by_itself() -> None:
    with pytest.raises(ConfigError, match="name one with init_from=<file>"):
        run_config(compose("pilot_smoke", ["model=init_from"])).model.build()


def test_the_command_line_refuses_with_code_2(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_to: Any = tmp_path / "out.safetensors"
    assert main(["export", str(first), str(export_to)]) == 0
    assert main(["generate", str(export_to), "--prompt", "a"]) == 2
    assert "stream=recall has no text" in capsys.readouterr().err
