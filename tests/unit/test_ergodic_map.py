"""The map of the earlier system's commands in docs/systems/ergodic.md, executed at tiny sizes."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nl.assembly import launch
from nl.cli import build_parser, main
from nl.config.hydra import compose, run_config
from nl.data.manifest import read_manifest
from nl.run import RunDir

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/systems/ergodic.md"
MANIFEST = "configs/data/stdlib_components.yaml"
KEPT = ("email", "multiprocessing", "xml")
TINY = (
    *("train.steps=2", "train.validate_every=0", "train.validate_batches=1", "train.grad_accum=1"),
    *("model.dim=16", "model.layers=1", "model.mlp_hidden=16", "model.attention.heads=2"),
    *("model.vocab_size=512", "stream.path=data/stdlib_components", "stream.batch_size=2"),
    *("stream.budget=12", "schedule.warmup=0", "evals.windows.windows=2", "train.threads=1"),
)


def commands() -> list[list[str]]:
    """Every command of the section's bash block as words, ``uv run`` left out."""
    section = PAGE.read_text().split("## Command map")[1].split("\n## ")[0]
    text = "".join(re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL))
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [words[2:] for words in lines if words]


def of(*head: str) -> list[list[str]]:
    """What follows a head in the commands that have it, in their order."""
    found = [words[len(head) :] for words in commands() if tuple(words[: len(head)]) == head]
    assert found, head
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the commands about data were run, in the order of the page."""
    root = tmp_path_factory.mktemp("map")
    (root / "scripts").symlink_to(ROOT / "scripts")
    small = yaml.safe_load((ROOT / MANIFEST).read_text())
    small["datasets"] = [d | {"max_mb": 0.2} for d in small["datasets"] if d["name"] in KEPT]
    small["tokenizer"]["vocab_size"] = 512
    (root / MANIFEST).parent.mkdir(parents=True)
    (root / MANIFEST).write_text(yaml.safe_dump(small))
    told = [words[1:] for words in commands() if words[1].startswith("scripts/data/")]
    assert len(told) == 9
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("HF_HUB_OFFLINE", "1")
        for words in told:
            patch.setattr(sys, "argv", ["512" if word == "2048" else word for word in words])
            with pytest.raises(SystemExit) as end:
                runpy.run_path(words[0], run_name="__main__")
            assert end.value.code in (0, None), words
    return root


def test_commands_about_data(home: Path) -> None:
    data = home / "data"
    assert (data / "stdlib_components/tokenizer.json").is_file()
    assert (data / "analysis.json").is_file()
    made, back = read_manifest(data / "stdlib_components"), read_manifest(data / "imported")
    assert made.tokenizer.sha256 == back.tokenizer.sha256
    assert set(back.splits) == {"train", "val"}
    for split, domains in back.splits.items():
        for name, info in domains.items():
            assert 0 < info.tokens < made.splits[split][name].tokens


SLOW = ("schedule.warmup=100", "checkpoint.every=1000", "train.precision=bf16")
"""Commands that differ from others in one key."""


def training() -> list[Any]:
    """Commands that train; those that tell little are left to the slow tests."""
    found = of("python", "train.py")
    marks = [[pytest.mark.slow] if set(SLOW) & set(words) else [] for words in found]
    pairs = zip(found, marks, strict=True)
    return [pytest.param(words, marks=mark, id=" ".join(words)) for words, mark in pairs]


@pytest.mark.parametrize("words", training())
def test_training_commands_run(
    words: list[str], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    assert not (home / ".env").exists()
    assert words[:2] == ["--config-name", "pilot_smoke"]
    tiny = [*TINY, f"run.dir={tmp_path / 'run'}"]
    if "stream.top=3" not in words:
        tiny.append("stream.components=[email,xml]")
    if "experiment=ergodic/real" in words:
        tiny.append("evals.windows_test.windows=2")
    run = RunDir.open(launch(run_config(compose(words[1], [*words[2:], *tiny]))))
    assert run.finished()
    assert (run.artifacts / "evals/windows/nll.safetensors").is_file()


def test_sweeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their flags are the parser's; the file composes, here with two components."""
    files = {build_parser().parse_args(["sweep", *words]).file for words in of("nl", "sweep")}
    assert files == {"configs/sweep/ergodic_k.yaml"}
    data = yaml.safe_load((ROOT / files.pop()).read_text())
    del data["axes"]["components"]["subsets_of"][2:]
    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump(data))
    assert main(["sweep", str(small), "--dry-run"]) == 0
    assert "3 jobs; nothing was run" in "".join(capsys.readouterr())


def test_the_plan_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    [words] = of("nl", "plan")
    assert main(["plan", *words]) == 0
    assert "12,956,672 parameters" in capsys.readouterr().out


def test_everything_else_in_the_section_is_known() -> None:
    heads = {tuple(words[:2]) for words in commands()}
    data = {head for head in heads if head[1].startswith("scripts/data/")}
    assert heads - data == {("python", "train.py"), ("nl", "sweep"), ("nl", "plan")}


def test_every_key_of_the_earlier_system_has_a_row() -> None:
    section = PAGE.read_text().split("## Command map")[1]
    names = set(re.findall(r"[a-z_0-9]+", section.split("key of the earlier system")[1]))
    old = (
        *("name", "subset", "cache_dir", "path", "target_split", "token_chunk_size"),
        *("d_model", "n_layers", "n_heads", "d_ff", "hidden_act", "layer_norm_eps"),
        *("epochs", "max_global_steps", "batch_size", "effective_batch_size", "max_grad_norm"),
        *("mixed_precision_dtype", "log_interval", "save_best_model_metric", "lr", "betas"),
        *("num_warmup_steps", "min_lr_ratio", "k_value", "active_categories", "experiment_id"),
        *("tokens_per_category", "project", "entity", "mode", "log_code", "log_file", "tags"),
    )
    assert set(old) <= names
