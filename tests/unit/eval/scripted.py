"""A tiny run of three phases on a byte-level data directory, and how scripts are called."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from nl.assembly import launch
from nl.config.hydra import compose
from nl.data.documents import Document, encode_jsonl
from nl.data.files import write_json
from nl.data.prep.shard import shard_corpus

ROOT = Path(__file__).resolve().parents[3]
NAMES = ("lantern", "garden", "kettle", "violin", "anchor", "window")


def text(domain: str, number: int) -> str:
    """A few hundred words in which names come back."""
    verb = {"prose": "saw the", "code": "= new"}[domain]
    words = [f"{NAMES[(number + i * i) % 6]} {verb} {NAMES[(number * i) % 6]}" for i in range(60)]
    return " ".join(words)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level data directory with two domains."""
    root = tmp_path_factory.mktemp("data")
    splits: dict[str, dict[str, object]] = {}
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        for domain in ("prose", "code"):
            documents = [
                Document(text(domain, len(split) * 10 + i), f"{split}{i}") for i in range(count)
            ]
            raw = encode_jsonl(documents)
            file = root / "corpus" / split / f"{domain}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(raw)
            splits.setdefault(split, {})[domain] = [text_file(root, file, documents, raw)]
    write_json(root / "corpus" / "manifest.json", {"schema": 2, "name": "t", "splits": splits})
    shard_corpus(root / "corpus", "bytes", root / "data")
    return root / "data"


def text_file(root: Path, file: Path, documents: list[Document], raw: bytes) -> dict[str, object]:
    import hashlib

    return {
        "file": str(file.relative_to(root / "corpus")),
        "documents": len(documents),
        "bytes": sum(len(d.text.encode()) for d in documents),
        "sha256": hashlib.sha256(raw).hexdigest(),
    }


@pytest.fixture(scope="session")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three phases of two steps, a checkpoint at the end of each."""
    phases = "[{domain: prose, steps: 2}, {domain: code, steps: 2}, {domain: prose, steps: 2}]"
    place = tmp_path_factory.mktemp("runs") / "run"
    overrides = [
        "stream=phases",
        f"stream.path={data}",
        f"stream.phases={phases}",
        "stream.seq_len=32",
        "stream.batch_size=2",
        "train.steps=6",
        "train.validate_every=0",
        "checkpoint.every=2",
        "checkpoint.keep=0",
        "schedule.warmup=1",
        "model.vocab_size=259",
        "model.dim=16",
        "model.layers=1",
        "model.attention.heads=2",
        f"run.dir={place}",
    ]
    return launch(compose("pilot_smoke", overrides))


def call(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: object) -> int:
    """Run a script in this process; its exit code."""
    path = str(ROOT / "scripts" / "eval" / f"{script}.py")
    monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(path, run_name="__main__")
    return int(stop.value.code or 0)
