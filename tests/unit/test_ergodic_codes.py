"""What the user can mend, as processes of the commands: one line that says what, exit code 2.

A component smaller than its share is in tests/unit/eval/test_windows.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nl.data.documents import Document
from nl.data.manifest import read_manifest
from nl.data.prep.corpus import Work, write_corpus
from nl.data.prep.shard import shard_corpus

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("email", "xml")
SMALL = [
    *("experiment=ergodic/standin", "model.vocab_size=259", "model.dim=16", "model.layers=1"),
    *("model.attention.heads=2", "model.mlp_hidden=16", "stream.window=12", "stream.budget=60"),
    *("stream.batch_size=4", "train.steps=3", "schedule.warmup=0", "evals.windows.windows=4"),
    *("stream.components=[email,xml]", "stream.path=data"),
]
TASKS = [
    *("stream=tasks", "stream.path=data", "stream.tasks=2", "stream.steps=2", "~evals.windows"),
    *(
        "~stream.components",
        "~stream.window",
        "~stream.budget",
        "stream.seq_len=1500",
        "stream.passes=3",
    ),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``data`` of two components."""
    root = tmp_path_factory.mktemp("codes")
    works = {
        name: [
            Work((Document(f"{name} {n} " + f"{name[n % 3]}{n} " * 60, str(n)),)) for n in range(40)
        ]
        for name in NAMES
    }
    write_corpus(root / "data/corpus", "two", works, limit_bytes=10**9, recipe={})
    shard_corpus(root / "data/corpus", "bytes", root / "data")
    return root


def command(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A script of this checkout, offline, without W&B and secrets."""
    env = os.environ | {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
    told = [sys.executable, str(ROOT / words[0]), *words[1:]]
    return subprocess.run(told, capture_output=True, text=True, check=False, cwd=home, env=env)


def train(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return command(home, "train.py", "--config-name", "pilot_smoke", *SMALL, *words)


def refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Exit code 2 and lines with these parts, without a traceback."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr, done.stderr


def test_an_unknown_component(home: Path) -> None:
    done = train(home, "stream.components=[cs.DS,xml]", "run.dir=none")
    known = read_manifest(home / "data").splits["train"]["email"]
    held = f"email ({known.documents:,} documents, {known.tokens:,} tokens)"
    refused(done, "components: 'cs.DS'; split 'train' of data has", held)
    assert not (home / "none").exists()


def test_shards_of_another_tokenizer(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "data", tmp_path / "data")
    file = tmp_path / "data/manifest.json"
    text = file.read_text()
    own = json.loads(text)["tokenizer"]["sha256"]
    file.write_text(text.replace(f'"sha256": "{own}"', f'"sha256": "{"0" * 64}"'))
    done = train(tmp_path, "run.dir=none")
    file_is = "evals.windows: data/val/email/shard_00000.bin: made with tokenizer"
    refused(done, f"{file_is} {own[:12]}, the manifest names {'0' * 12}", "shard_corpus.py")
    assert not (tmp_path / "none").exists()


def test_a_checkpoint_that_is_not_there(home: Path, tmp_path: Path) -> None:
    """One that was never written, and the one that the run says it saved last."""
    place = f"run.dir={tmp_path / 'run'}"
    assert train(home, place, "checkpoint.every=1").returncode == 0
    saved, rows = tmp_path / "run/checkpoints", (tmp_path / "run/metrics.jsonl").read_text()
    allowed = "does not exist; give a run or checkpoint directory, auto or none."
    step = saved / "step_000009"
    refused(train(home, f"resume={step}"), f"resume: {step} {allowed}")
    for folder in saved.glob("step_*"):
        if folder.is_dir():
            shutil.rmtree(folder)
    done = train(home, place, "resume=auto", "train.steps=4")
    what = f"resume: {saved} names step_000003 as its latest, which is not there"
    refused(done, what, "put it back, or remove checkpoints/ to start again from step 0.")
    assert (tmp_path / "run/metrics.jsonl").read_text() == rows, "nothing was cut"


def test_ids_that_two_bytes_cannot_hold(tmp_path: Path) -> None:
    """Imported as uint16 a vocabulary of 65,537 would have wrapped around."""
    (tmp_path / "old").mkdir()
    np.arange(40, dtype="<u2").tofile(tmp_path / "old/tokens.bin")
    row = {"paper_id": "a", "cat": "cs.DS", "offset": 0, "length": 40}
    (tmp_path / "old/index.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "old/splits.json").write_text('{"train": ["a"]}')
    (tmp_path / "t.model").write_bytes(b"x")
    told = ["scripts/data/import_shards.py", "--format", "bin", "--output-dir", "out", "old"]
    told += ["--tokenizer-path", "t.model", "--eos-id", "0", "--vocab-size"]
    refused(
        command(tmp_path, *told, "65537"), "2 bytes per id cannot hold", "65537", "wrapped around"
    )
    assert not (tmp_path / "out/manifest.json").exists()
    assert command(tmp_path, *told, "65536").returncode == 0


def test_a_task_without_a_held_out_window(home: Path) -> None:
    """Long enough in train, too long for the held-out text."""
    done = train(home, *TASKS, "run.dir=none")
    refused(
        done, "stream.seq_len: 1500; validation scores task_00 on split 'val' of domain 'email'"
    )
    assert not (home / "none").exists()
