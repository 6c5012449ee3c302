"""Every method of continual learning, stopped in its second phase, goes on bit-equal."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import nl
from nl.config.hydra import compose, run_config
from nl.config.run import RunConfig
from tests.unit.data.conftest import build_tiny

STEPS, MIDDLE, END = 8, 6, 4
SMALL = (
    *("model.dim=16", "model.layers=1", "model.vocab_size=259", "model.attention.heads=2"),
    *("model.block=hope_attention", "model.cms.periods=[32,64]", "model.cms.hidden=16"),
    *("stream.seq_len=64", "stream.batch_size=4", "schedule.warmup=1", f"train.steps={STEPS}"),
    *(
        "logging.every=1",
        "train.validate_batches=1",
        "checkpoint.keep=0",
        "checkpoint.export=false",
    ),
)
PHASES = "stream.phases=[{domain: prose, steps: 4}, {domain: code, steps: 4}]"
MIXED = ("stream=shards", "stream.domains=[prose,code]", "stream.weights=[4,4]")
METHODS = {
    "naive": ("stream=phases", PHASES),
    "joint": MIXED,
    "reservoir": ("stream=replay", PHASES, "stream.memory=reservoir", "stream.capacity=5"),
    "balanced": ("stream=replay", PHASES, "stream.capacity=6", "stream.documents=reset"),
    "ewc": ("stream=phases", PHASES, "objective=ewc", "objective.strength=50", "objective.rows=6"),
    "losses": ("stream=replay", PHASES, "stream.memory=loss", "stream.capacity=6"),
    "distill": (
        "stream=replay",
        PHASES,
        "stream.capacity=6",
        "objective=distill",
        "objective.on=replayed",
    ),
    "der": ("stream=phases", PHASES, "objective=der", "objective.capacity=6", "objective.rows=2"),
    "frozen": ("stream=phases", PHASES, "optim=frozen_backbone", "optim.full_steps=4"),
}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


compare = load("compare")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("methods"))


def run(method: str, data: Path, home: Path, *more: str) -> RunConfig:
    told = [*METHODS[method], f"stream.path={data}", *SMALL, f"run.dir={home}", *more]
    return run_config(compose("pilot_smoke", told))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_stopped_in_the_second_phase(method: str, data: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    nl.launch(run(method, data, whole, f"checkpoint.at=[{END},{MIDDLE}]", "checkpoint.every=0"))
    for number, step in enumerate((END, MIDDLE)):
        home = tmp_path / f"stopped{number}"
        skipped = [f"step_{n:06d}*" for n in (END, MIDDLE, STEPS) if n > step]
        shutil.copytree(whole, home, ignore=shutil.ignore_patterns(*skipped, "summary.json"))
        nl.launch(run(method, data, home, "resume=auto", "checkpoint.every=0"))
        assert compare.fingerprint(home, STEPS) == compare.fingerprint(whole, STEPS)
    rows = [row for row in compare.rows(whole) if row["split"] == "train"]
    if method == "ewc":
        assert "ewc/penalty" not in rows[END - 1]
        assert rows[END + 1]["ewc/penalty"] > rows[END]["ewc/penalty"] == 0
        assert rows[-1]["loss"] > rows[-1]["ewc/nats"]


def test_methods_differ_from_the_second_phase_on(data: Path, tmp_path: Path) -> None:
    losses = {}
    for method in ("naive", "balanced", "ewc", "frozen"):
        told = ("checkpoint.every=0", "stream.documents=ignore")
        home = nl.launch(run(method, data, tmp_path / method, *told))
        rows = [row for row in compare.rows(home) if row["split"] == "train"]
        losses[method] = [row["ewc/nats" if "ewc/nats" in row else "loss"] for row in rows]
    for method in ("balanced", "ewc", "frozen"):
        assert losses[method][:END] == losses["naive"][:END]
        assert losses[method][-1] != losses["naive"][-1]


def test_accumulated_batches_are_consolidated_as_whole_ones(data: Path, tmp_path: Path) -> None:
    phases = PHASES.replace("4}", "8}")
    halves = ("train.grad_accum=2", "stream.batch_size=2", phases, "checkpoint.every=0")
    found = []
    for name, told in (("whole", ("checkpoint.every=0",)), ("halves", halves)):
        home = nl.launch(run("ewc", data, tmp_path / name, *told))
        rows = [row for row in compare.rows(home) if row["split"] == "train"]
        found.append([(row["loss"], row.get("ewc/penalty", 0.0)) for row in rows])
    for whole, half in zip(*found, strict=True):
        assert half == pytest.approx(whole, rel=2e-5, abs=1e-9)


def torchrun(launcher: str, ranks: int, told: list[str]) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[2]
    spread = ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--rdzv-backend=c10d"]
    spread += ["--rdzv-endpoint=localhost:0"]
    place = [str(root / launcher), "--config-name", "pilot_smoke", *told]
    command = [sys.executable, *(spread if ranks > 1 else []), *place]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["balanced", "ewc", "frozen"])
def test_two_ranks_have_the_numbers_of_one(method: str, data: Path, tmp_path: Path) -> None:
    told = [*METHODS[method], f"stream.path={data}", *SMALL, "checkpoint.every=0"]
    one, two = tmp_path / "one", tmp_path / "two"
    nl.launch(run(method, data, one, "checkpoint.every=0"))
    done = torchrun("train_dist.py", 2, [*told, f"run.dir={two}"])
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = compare.rows(one), compare.rows(two)
    assert len(ours) == len(theirs) > STEPS
    for mine, other in zip(ours, theirs, strict=True):
        keys = ("loss", "grad_norm") if mine["split"] == "train" else ("loss",)
        for key in (*keys, *(("ewc/penalty",) if "ewc/penalty" in mine else ())):
            assert other[key] == pytest.approx(mine[key], rel=2e-5, abs=1e-9), (key, mine["step"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "key"), [("ewc", "objective: ewc"), ("frozen", "optim: frozen")]
)
def test_cut_parameters_are_refused(method: str, key: str, data: Path, tmp_path: Path) -> None:
    told = [*METHODS[method], f"stream.path={data}", *SMALL, f"run.dir={tmp_path / 'run'}"]
    done = torchrun("train_fsdp.py", 1, told)
    assert done.returncode == 2
    assert key in done.stderr
    assert "late_changes, which fsdp2 cannot do; launch train.py or train_dist.py" in done.stderr
    assert not (tmp_path / "run").exists()
