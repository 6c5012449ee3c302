"""A sweep over components, its scheduler and a job killed: in the end every job is done once."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.numpy import load_file

from nl.cli import main
from nl.run.records import read_records
from tests.unit.sweep.killing import born, family, send, start
from tests.unit.sweep.task_grid import steps_done

ROOT = Path(__file__).parents[3]
STEPS, KILLS = 24, 6
EXPERIMENTS = ("k1_transformer", "k1_gated_delta", "k2_transformer", "k2_gated_delta")
NAMES = [f"{experiment}/seed_{seed}" for experiment in EXPERIMENTS for seed in (0, 1)]
SMALL: dict[str, Any] = {
    "model": {"dim": 16, "layers": 1, "mlp_hidden": 16},
    "model.attention.heads": 2,
    "stream": {"window": 8, "batch_size": 8, "val_size": 4, "test_size": 8},
    "train.steps": STEPS,
    "schedule.warmup": 0,
    "logging.every": 1,
    "checkpoint": {"every": 4, "keep": 2},
}


def write_sweep(path: Path) -> Path:
    """Two values of K, two blocks and two seeds of configs/sweep/ergodic_synthetic.yaml."""
    spec = yaml.safe_load((ROOT / "configs/sweep/ergodic_synthetic.yaml").read_text())
    for axis in spec["axes"]:
        del spec["axes"][axis][2:]
    spec["n_seeds"] = 2
    spec["global_overrides"] |= SMALL
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return path


def run_of(home: Path) -> dict[str, Any]:
    """What a run ended with, without clocks: rows, weights, losses per token."""
    rows = [
        {k: v for k, v in row.items() if not k.startswith(("time", "perf/"))}
        for row in read_records(home / "metrics.jsonl")
    ]
    assert [row["step"] for row in rows if row["split"] == "train"] == [*range(1, STEPS + 1)]
    [weights] = home.glob(f"checkpoints/step_{STEPS:06d}/model.safetensors")
    losses = load_file(home / "artifacts/evals/floor/nll.safetensors")
    evals = [
        {k: v for k, v in row.items() if k != "seconds"}
        for row in read_records(home / "evals.jsonl")
    ]
    return {
        "rows": rows,
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "losses": {key: value.tobytes() for key, value in losses.items()},
        "evals": evals,
    }


def outcome(root: Path) -> dict[str, dict[str, Any]]:
    """Every run of a finished sweep; each job is one row and none was moved aside."""
    lines = [json.loads(line) for line in (root / "results.jsonl").read_text().splitlines()]
    assert sorted(row["run_dir"] for row in lines) == sorted(NAMES)
    assert {row["status"] for row in lines} == {"done"}
    assert sorted(str(p.parent.relative_to(root)) for p in root.rglob("meta.json")) == sorted(NAMES)
    return {name: run_of(root / name) for name in NAMES}


def done(root: Path) -> dict[str, tuple[int, int]]:
    """Of every finished job its attempts and when its summary was written."""
    found = {}
    for name in NAMES:
        summary = root / name / "summary.json"
        record = (root / name).with_name(f"{(root / name).name}.job.json")
        if summary.is_file():
            found[name] = json.loads(record.read_text())["started"], summary.stat().st_mtime_ns
    return found


def running(root: Path) -> list[int]:
    """Processes that write in run directories of the sweep, by the locks of their runs."""
    found = []
    for lock in root.glob("*/seed_*/lock"):
        text = lock.read_text()
        if text and not (lock.parent / "summary.json").is_file():
            found.append(int(json.loads(text)["pid"]))
    return sorted(found)


class Sweep:
    """Calls of one sweep; all that they started ends with the test."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.command, self.log, self.seen = command, log, dict[int, str | None]()

    def call(self) -> subprocess.Popen[bytes]:
        return start(self.command, self.log)

    def kill(self, process: subprocess.Popen[bytes], child: int | None) -> None:
        """SIGKILL for the scheduler and one of its jobs; the others go on without it."""
        mine = family(process.pid)
        self.seen |= {pid: born(pid) for pid in mine}
        process.kill()
        if child is not None and child in mine:
            send(signal.SIGKILL, [child])
        process.wait()

    def end(self) -> None:
        left = [pid for pid, when in self.seen.items() if when and born(pid) == when]
        send(signal.SIGKILL, left)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the sweep that is left alone ends with."""
    root = tmp_path_factory.mktemp("whole")
    file = write_sweep(root / "ergodic.yaml")
    assert main(["sweep", str(file), "--backend", "warm", "--output", str(root / "s")]) == 0
    return outcome(root / "s")


@pytest.fixture
def sweep(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Sweep]:
    file, backend = write_sweep(tmp_path / "ergodic.yaml"), request.param
    told = ["sweep", str(file), "--backend", backend, "--slots", "2", "--output"]
    made = Sweep([*told, str(tmp_path / "cut")], tmp_path / "cut.log")
    yield made
    made.end()


@pytest.mark.slow
@pytest.mark.parametrize("sweep", ["warm", "local"], indirect=True)
def test_killed_scheduler_and_job_every_job_is_done_once(
    whole: dict[str, dict[str, Any]], sweep: Sweep, tmp_path: Path
) -> None:
    """At moments of all runs together; the first before any run has begun to write."""
    cut, draw = tmp_path / "cut", random.Random(7)
    moments = [0, *sorted(draw.sample(range(1, len(NAMES) * STEPS * 3 // 4), KILLS - 1))]
    children, finished = 0, {}
    for moment in moments:
        process = sweep.call()
        until = time.monotonic() + 300
        while process.poll() is None:
            begun = [*cut.glob("*/seed_*.job.json")]
            if (begun and not moment) or (moment and steps_done(cut) >= moment and running(cut)):
                break
            assert time.monotonic() < until, sweep.log.read_text()
            time.sleep(0.002)
        assert process.poll() is None, "the sweep ended before it was killed"
        alive = [pid for pid in running(cut) if pid in family(process.pid)]
        victim = draw.choice(alive) if alive else None
        children += victim is not None
        sweep.kill(process, victim)
        finished |= {k: v for k, v in done(cut).items() if k not in finished}
    assert children >= KILLS // 2
    last = sweep.call()
    assert last.wait(timeout=300) == 0, sweep.log.read_text()
    assert {name: done(cut)[name] for name in finished} == finished, "a job that was done ran again"
    assert outcome(cut) == whole
