"""Labelled rows to shards by the command: the same bytes with any workers and after kill -9."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nl.data.files import sha256_file

ROOT = Path(__file__).parents[4]
LABELS = ("cs.DS", "cs.IT", "math.GR")
WORDS = [f"word{n}" for n in range(300)]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three components, rows of all of them in each of six files, and a tokenizer to train."""
    root = tmp_path_factory.mktemp("labelled")
    draw = random.Random(0)
    (root / "raw").mkdir()
    for number in range(6):
        rows = [
            {"text": f"{number} {n} " + " ".join(draw.choices(WORDS, k=90)), "label": LABELS[n % 3]}
            for n in range(60)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (root / f"raw/train-{number:05d}.jsonl").write_text(text)
    told = [f"{{name: {name}, dataset: json, data_files: {root}/raw, label_column: label}}"
            for name in LABELS]  # fmt: skip
    head = ["name: labelled", f"output_dir: {root}/none", "held_out: {val: 0.2, test: 0.1}"]
    head += ["tokenizer: {model_type: byte_bpe, vocab_size: 400, sample_mb: 1.0}", "datasets:"]
    path = root / "labelled.yaml"
    path.write_text("\n".join([*head, *(f"  - {line}" for line in told)]))
    return path


def start(manifest: Path, output: Path, workers: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "scripts/data/process_mixture.py"), str(manifest)]
    command += ["--set", f"output_dir={output}", "--workers", str(workers), "--part-mb", "0.01"]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )


def working(output: Path, stage: str) -> bool:
    """Whether a directory of a stage's unfinished work is there, while others come and go."""
    return any(n.startswith(f".{stage}-") for _, names, _ in os.walk(output) for n in names)


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def digests(output: Path) -> dict[str, str]:
    """Of what a run reads: the manifest, the tokenizer, every shard."""
    files = [output / "manifest.json", output / "tokenizer.json"]
    for split in ("train", "val", "test"):
        files += sorted(path for path in (output / split).rglob("*") if path.is_file())
    return {path.relative_to(output).as_posix(): sha256_file(path) for path in files}


@pytest.fixture(scope="module")
def whole(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    """What one undisturbed worker writes, and the seconds that it takes."""
    output, begin = tmp_path_factory.mktemp("whole") / "out", time.monotonic()
    finish(start(manifest, output, 1))
    found = digests(output)
    assert {name.split("/")[1] for name in found if "/" in name} == set(LABELS)
    return found, time.monotonic() - begin


@pytest.mark.slow
def test_four_workers_write_what_one_writes(
    manifest: Path, whole: tuple[dict[str, str], float], tmp_path: Path
) -> None:
    finish(start(manifest, tmp_path / "out", 4))
    assert digests(tmp_path / "out") == whole[0]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4])
def test_kill_9_changes_no_byte(
    manifest: Path, whole: tuple[dict[str, str], float], tmp_path: Path, workers: int
) -> None:
    """Killed with all workers in three stages, each as soon as its work stands; then left alone."""
    output, killed = tmp_path / "out", 0
    for stage in ("ingest", "filter", "dedup"):
        process = start(manifest, output, workers)
        while process.poll() is None:
            if working(output, stage):
                os.killpg(process.pid, signal.SIGKILL)
                killed += 1
                break
            time.sleep(0.005)
        process.communicate(timeout=300)
        assert not (output / "manifest.json").exists(), "nothing half done looks done"
    assert killed == 3
    finish(start(manifest, output, workers))
    assert digests(output) == whole[0]
