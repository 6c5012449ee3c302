"""A Llama checkpoint of others, imported with levels, is where a training run begins."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import nl
from nl.cli import main
from nl.config import ConfigError
from nl.config.hydra import compose, run_config
from nl.dist.origin import read_description, tokenizers_of
from nl.run.records import read_records
from tests.unit.data.conftest import build_tiny
from tests.unit.dist.test_parity import check, parity
from tests.unit.hf.test_foreign import LLAMA, made

ROOT = Path(__file__).parents[3]
SHORT = ("--set", "model.cms.allow_short_periods=true")
STREAM = ["stream=recall", "stream.keys=35", "stream.pairs=6", "stream.batch_size=16"]
STREAM += ["stream.val_size=16", "optim.lr=3e-3", "schedule=constant", "train.validate_batches=1"]


def imported(folder: Path, *more: str, **changes: Any) -> tuple[Any, Path]:
    """A random Llama of transformers, and the file that ``nl import`` made of it."""
    theirs = made("Llama", LLAMA | changes, folder / "theirs")
    target = folder / "ours.safetensors"
    words = ["import", str(target), "--from", f"hf:{folder / 'theirs'}", *more]
    assert main(words) == 0
    return theirs, target


def alone(*words: str) -> None:
    """A command in a process of its own, which has imported nothing yet."""
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def first_batch(run: Any) -> Any:
    """What the run's first step reads."""
    from nl.core.seeds import SeedBook

    seed = SeedBook(run.seed).seed("data")
    return next(iter(run.stream.build("train", seed=seed, rank=0, world=1))).to("cpu")


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_records(run / "metrics.jsonl") if row["split"] == "train"]


def test_through_the_launcher_it_starts_at_the_same_loss_and_learns(tmp_path: Path) -> None:
    """The first period ends behind the row, so that nothing is written before it is scored."""
    theirs = made("Llama", LLAMA, tmp_path / "theirs")
    target, place = tmp_path / "ours.safetensors", tmp_path / "run"
    words = ["import", str(target), "--from", f"hf:{tmp_path / 'theirs'}"]
    alone("-m", "nl", *words, "--as", "hope_attention", "--levels", "64", "256")
    words = ["--config-name", "pilot_smoke", "model=init_from", f"init_from={target}", *STREAM]
    words += ["train.steps=40", "logging.every=1", f"run.dir={place}", "train.device=cpu"]
    alone("train.py", *words)
    run = run_config(compose("pilot_smoke", STREAM))
    batch = first_batch(run)
    with torch.no_grad():
        logits = theirs(batch.inputs).logits
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
    found = losses(place)
    assert found[0] == pytest.approx(float(wanted), abs=1e-5)
    assert sum(found[-5:]) / 5 < found[0] - 0.3
    kept = nl.load_model(place)
    assert kept.config.kinds == ("hope_attention",)
    assert kept.config.cms.periods == (64, 256)
    meta = json.loads((place / "meta.json").read_text())
    assert meta["init_from"]["path"] == str(target)


def test_memories_that_write_inside_the_row_start_there_without_writes(tmp_path: Path) -> None:
    theirs, target = imported(tmp_path, "--as", "hope_attention", "--levels", "8", "16", *SHORT)
    chosen = ["model=init_from", f"init_from={target}", *STREAM, "train.steps=1", "logging.every=1"]
    chosen += ["objective.write=false", f"run.dir={tmp_path / 'run'}"]
    run = nl.launch(compose("pilot_smoke", chosen))
    batch = first_batch(run_config(compose("pilot_smoke", STREAM)))
    with torch.no_grad():
        logits = theirs(batch.inputs).logits
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
    assert losses(run)[0] == pytest.approx(float(wanted), abs=1e-5)


def small(folder: Path) -> list[dict[str, Any]]:
    """A case of parity.py for an imported file; the strategy is missing."""
    sizes = {"vocab_size": 11, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2}
    _, target = imported(folder, "--as", "hope_attention", "--levels", "8", "16", *SHORT, **sizes)
    changes = {"model": read_description(target)["model"], "init_from": str(target)}
    return [{"kind": "hope_attention", "changes": changes}]


def test_every_strategy_begins_and_trains_as_one_process(tmp_path: Path) -> None:
    zero = tmp_path / "zero3.json"
    zero.write_text(json.dumps({"zero_optimization": {"stage": 3, "reduce_bucket_size": 200}}))
    plain = small(tmp_path)
    beside = {"deepspeed": {"deepspeed": {"config": str(zero)}}}
    cases = [
        {**one, "strategy": strategy, "beside": beside.get(strategy, {})}
        for one, strategy in itertools.product(plain, ("ddp", "fsdp2", "deepspeed"))
    ]
    fresh = {**plain[0], "strategy": "ddp", "changes": {"model": plain[0]["changes"]["model"]}}
    found = parity([*cases, fresh])
    check([*cases, fresh], found)
    assert found[0][0][0] == pytest.approx(found[1][0][0], rel=1e-5)
    assert abs(found[0][0][0] - found[3][0][0]) > 1e-2  # it did begin with the file's weights


def test_the_tokenizer_is_carried_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nl.data.files import sha256_file

    _, bare = imported(tmp_path / "bare")
    assert tokenizers_of(bare) == ()
    assert "tokenizer: none in" in capsys.readouterr().out
    folder = tmp_path / "named"
    made("Llama", LLAMA, folder / "theirs")
    (folder / "theirs" / "tokenizer.json").write_text('{"model": {}}')
    target = folder / "ours.safetensors"
    assert main(["import", str(target), "--from", f"hf:{folder / 'theirs'}"]) == 0
    code = sha256_file(folder / "theirs" / "tokenizer.json")
    assert tokenizers_of(target) == (code,)
    assert f"tokenizer: {code[:12]}" in capsys.readouterr().out


def test_data_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    data = build_tiny(tmp_path / "data")
    made("Llama", LLAMA | {"vocab_size": 259}, tmp_path / "theirs")
    (tmp_path / "theirs" / "tokenizer.json").write_text('{"model": {}}')
    target, told = tmp_path / "ours.safetensors", f"hf:{tmp_path / 'theirs'}"
    assert main(["import", str(target), "--from", told]) == 0
    chosen = ["model=init_from", f"init_from={target}", "stream=shards", f"stream.path={data}"]
    chosen += ["stream.seq_len=16", "stream.batch_size=2", "train.steps=1"]
    with pytest.raises(
        ConfigError, match=r"stream\.path: the data has the tokenizer .* was trained"
    ):
        nl.launch(compose("pilot_smoke", [*chosen, f"run.dir={tmp_path / 'run'}"]))
    assert main(["generate", str(target), "--data", str(data), "--prompt", "a"]) == 2
    own = ["import", str(target), "--from", told, "--tokenizer", "bytes", "--force"]
    assert main(own) == 0
    run = nl.launch(compose("pilot_smoke", [*chosen, f"run.dir={tmp_path / 'run'}"]))
    assert len(losses(run)) == 1
    made_with = json.loads((run / "meta.json").read_text())["tokenizers"]
    assert tuple(made_with) == tokenizers_of(target) == tokenizers_of(run)
