"""Fault campaign, rows of files: damaged checkpoints, broken JSON, bad configurations, tests."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

from faults_ground import ROOT, Ground

from nl.assembly import check
from nl.config import ConfigError
from nl.config.hydra import compose, run_config
from nl.data.documents import Document
from nl.data.manifest import read_manifest
from nl.data.prep.corpus import Work, write_corpus
from nl.data.prep.shard import shard_corpus
from nl.dist.checkpoint import reading, trainer_facts
from nl.dist.single import Single
from nl.run import RunError
from nl.run.directory import RunDir
from nl.run.discover import newest_valid
from nl.run.manifest import MANIFEST, verify

Outcomes = list[str]


def saved(ground: Ground) -> Path:
    """A run with two checkpoints, to damage."""
    folder = ground.folder()
    changes = {"train__steps": 4, "checkpoint__every": 2, "train__validate_every": 0}
    assert ground.run(folder, changes) == [0]
    return folder


def falls_back(folder: Path, name: str = "") -> str:
    """'' if the damaged newest checkpoint is refused by name and the one before it is taken."""
    found, complaints = newest_valid(folder)
    if found is None or found.name != "step_000002":
        return f"{name}: not detected" if found else f"{name}: nothing valid"
    return "" if "step_000004" in complaints[0] else f"{name}: {complaints[0]}"


def cut_files(ground: Ground, count: int) -> Outcomes:
    """Row 5: every file of a checkpoint cut to 0, 1, half and all but one of its bytes."""
    folder, found = saved(ground), []
    files = sorted((folder / "checkpoints" / "step_000004").iterdir())
    cuts = [(f, n) for f in files for n in (0, 1, f.stat().st_size // 2, f.stat().st_size - 1)]
    for path, size in ground.draw.sample(cuts, min(count, len(cuts))):
        data = path.read_bytes()
        path.write_bytes(data[:size])
        found.append(falls_back(folder, f"{path.name} at {size}"))
        path.write_bytes(data)
    assert newest_valid(folder)[0] == files[0].parent
    ground.clear(folder)
    return found


def flip_bits(ground: Ground, count: int) -> Outcomes:
    """Row 6: one random bit of one random file."""
    folder, found = saved(ground), []
    files = sorted((folder / "checkpoints" / "step_000004").iterdir())
    for _ in range(count):
        path = ground.draw.choice(files)
        data = path.read_bytes()
        damaged = bytearray(data)
        bit = ground.draw.randrange(8 * len(data))
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        found.append(falls_back(folder, f"{path.name} bit {bit}"))
        path.write_bytes(data)
    assert newest_valid(folder)[0] == files[0].parent
    ground.clear(folder)
    return found


def move_files(ground: Ground, count: int) -> Outcomes:
    """Row 7: a file deleted, put in from the other step, two files swapped, a step renamed."""
    found = []
    source = saved(ground)
    for number in range(count):
        folder = ground.folder()
        shutil.copytree(source, folder)
        old, new = (folder / "checkpoints" / f"step_00000{n}" for n in (2, 4))
        names = ["model.safetensors", "optim.safetensors", "trainer.json", "state.safetensors"]
        first, second = ground.draw.sample(names, 2)
        if number % 4 == 0:
            (new / first).unlink()
        elif number % 4 == 1:
            shutil.copy(old / first, new / first)
        elif number % 4 == 2:
            data = (new / first).read_bytes()
            (new / second).replace(new / first)
            (new / second).write_bytes(data)
        else:
            shutil.rmtree(new)
            old.rename(new)
            try:
                with reading(new):
                    trainer_facts(new)
                found.append("a renamed step was read")
            except (RunError, ConfigError):
                found.append("")
            ground.clear(folder)
            continue
        found.append(falls_back(folder, f"{number % 4} {first} {second}"))
        ground.clear(folder)
    ground.clear(source)
    return found


BROKEN = {
    "bad UTF-8": b'{"schema": 1, "files": {"\xff": 1}}',
    "NaN": b'{"schema": NaN, "files": {"a": NaN}}',
    "huge integer": b'{"schema": 1' + b"0" * 5000 + b', "files": {"a": 1}}',
    "duplicate keys": b'{"schema": 1, "files": {}, "files": {"a": {"bytes": 1}}}',
    "10^6 deep": b"[" * 10**6,
}


def broken_json(ground: Ground, count: int) -> Outcomes:
    """Row 23: the manifest of a checkpoint and of a data directory, within 1 s and 100 MB."""
    folder, found = saved(ground), []
    checkpoint, data = folder / "checkpoints" / "step_000004", folder / "data"
    data.mkdir()
    readers = [(checkpoint / MANIFEST, verify), (data / "manifest.json", read_manifest)]
    cases = [(name, path, read) for name in BROKEN for path, read in readers]
    for name, path, read in cases[:count]:
        path.write_bytes(BROKEN[name])
        tracemalloc.start()
        begin = time.monotonic()
        try:
            read(path.parent)
            bad = "not refused"
        except (RunError, ConfigError) as error:
            bad = "" if str(path.parent) in str(error) else str(error)[:200]
        peak, seconds = tracemalloc.get_traced_memory()[1], time.monotonic() - begin
        tracemalloc.stop()
        bad = bad or (
            "" if peak < 100e6 and seconds < 1 else f"{peak / 1e6:.0f} MB {seconds:.1f} s"
        )
        found.append(f"{name} {path.name}: {bad}" if bad else "")
    ground.clear(folder)
    return found


BAD_KEYS = (
    "train.stps=3",
    "model.dimm=4",
    "optim.lrr=1",
    "stream.batch=4",
    "+bogus=1",
    "train.steps=many",
    "train.steps=1.5",
    "train.grad_accum=true",
    "optim.lr=fast",
    "seed=one",
    "train.steps=0",
    "train.steps=-5",
    "train.grad_accum=0",
    "optim.lr=-1",
    "optim.lr=0",
    "optim.lr=inf",
    "optim.lr=nan",
    "train.max_norm=-1",
    "train.precision=fp8",
    "train.device=tpu",
    "seed=-1",
    "name='../x'",
    "logging.every=0",
    "checkpoint.every=-1",
    "checkpoint.keep=-2",
    "checkpoint.best=val/los",
    "train.nonfinite.policy=ignore",
    "train.nonfinite.max_consecutive=0",
    "train.spike.policy=on",
    "train.spike.multiplier=0.5",
    "train.spike.window=1",
    "train.watchdog.data_seconds=-1",
    "train.watchdog.step_factor=0",
    "train.profile.first=-1",
    "model.dim=0",
    "model.layers=0",
    "model.attention.heads=3",
    "model.vocab_size=10",
    "model.cms.periods=[]",
    "model.cms.periods=[16,24]",
    "stream.batch_size=0",
    "stream.seq_len=0",
    "stream.path=/nowhere",
    "schedule.warmup=-1",
    "train.carry=true",
    "deepspeed.config=x.json",
)
"""Overrides of pilot_smoke, each wrong in one key."""


def small_data(root: Path) -> Path:
    """A data directory of a few documents, as bytes."""
    works = [Work((Document(f"number {n} " * 200, f"text:{n}"),)) for n in range(40)]
    write_corpus(root / "corpus", "small", {"text": works}, limit_bytes=10**9, recipe={})
    shard_corpus(root / "corpus", "bytes", root, shard_tokens=10**6)
    return root


def bad_configurations(ground: Ground, count: int) -> Outcomes:
    """Row 24: refused before a model is built, with the key in the message."""
    found, house, data = [], Single.start("cpu"), small_data(ground.folder())
    for override in ground.draw.sample(BAD_KEYS, min(count, len(BAD_KEYS))):
        key, _, value = override.lstrip("+").partition("=")
        changes = [f"stream.path={data}", override]
        if key.startswith("deepspeed"):
            changes = [changes[0], "deepspeed={config: x.json}"]
        try:
            check(run_config(compose("pilot_smoke", changes)), house)
            found.append(f"{override}: not refused")
        except ConfigError as error:
            told = key.rpartition(".")[2] in str(error) or value in str(error)
            found.append("" if told else f"{override}: {error}")
        except RunError as error:
            found.append(f"{override}: {error!r}")
    return found


def other_schema(ground: Ground, count: int) -> Outcomes:
    """Row 32: a checkpoint of another format says which one it is and which is read."""
    folder, found = saved(ground), []
    path = folder / "checkpoints" / "step_000004" / MANIFEST
    whole = json.loads(path.read_text())
    for schema in (0, 2, None)[:count]:
        path.write_text(json.dumps(whole | {"schema": schema}) + "\n")
        try:
            verify(path.parent)
            found.append(f"{schema}: not refused")
        except RunError as error:
            told = f"schema {schema!r}; this version reads 1"
            found.append("" if told in str(error) else str(error))
    assert RunDir(folder).finished()
    ground.clear(folder)
    return found


def suite(*nodes: str) -> Outcomes:
    """Rows that tests prove: their outcomes."""
    command = [sys.executable, "-m", "pytest", "-n0", "-q", "--tb=line", *nodes]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    passed = re.search(r"(\d+) passed", done.stdout)
    failed = re.findall(r"^(?:FAILED|ERROR) (.*)$", done.stdout, re.MULTILINE)
    if not passed and not failed:
        failed = [done.stdout[-300:] + done.stderr[-300:]]
    return [""] * int(passed[1] if passed else 0) + failed
