"""Devices: the numbers are those of the CPU, nothing meets a tensor there, no step waits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nl.config import table
from tests.laws.conftest import block_kinds
from tests.unit import test_cli_model

data = test_cli_model.data

ROOT = Path(__file__).resolve().parents[2]
CHANGED: list[tuple[str, dict[str, Any]]] = [
    ("hope_attention", {"cms": {"arrangement": "nested", "inner": {"kind": "momentum"}}}),
    ("hope_attention", {"cms": {"arrangement": "independent", "inner": {"kind": "delta"}}}),
    ("hope_attention", {"cms": {"signal": "self", "write_gradient": "through"}}),
    ("hope_attention", {"cms": {"scope": "batch", "signal": "block", "inner": {"kind": "adam"}}}),
    ("hope_attention", {"cms": {"inner": {"kind": "muon"}, "activation": "swiglu"}}),
    ("hope_attention", {"cms": {"inner": {"kind": "deep"}}}),
    ("hope_attention", {"cms": {"surprise": {"gate": "soft", "quantile": 0.6}}}),
    ("hope_attention", {"dim": 48, "cms": {"hidden": 48}}),
    ("hope_selfmod", {"selfmod": {"adaptive_q": True, "period_other": 8, "activation": "gelu"}}),
    ("hope_selfmod", {"selfmod": {"compat": "literal"}}),
    ("titan_lmm", {"titan": {"depth": 4, "momentum": False, "step": "plain"}}),
    ("titan_mag", {"titan": {"recompute": False, "retention": "zero"}}),
    ("transformer", {"head_memory": {"period": 8}}),
    ("hope_attention", {"head_memory": {"period": 8}}),
    ("transformer", {"experts": {"form": "swiglu", "count": 4, "width": 6}}),
]
NOT_HERE = {"gru", "lstm"}
"""Off the CPU their cells are kernels that only GPUs have."""
BLOCKS = [
    f"{kind} {{}} {done}"
    for kind in block_kinds()
    if kind not in NOT_HERE
    for done in ("train", "stream")
]
OPTIONS = [
    f"{kind} {json.dumps(more, separators=(',', ':'))} {done}"
    for kind, more in CHANGED
    for done in ("train", "stream")
]


TINY = (
    "model.dim=32 model.layers=2 model.attention.heads=2 model.vocab_size=259 model.mlp_hidden=32 "
    "model.cms.hidden=16 model.cms.periods=[16,32] model.selfmod.head_size=16 "
    "model.selfmod.hidden=16 model.selfmod.period=16 model.titan.head_size=16 "
    "model.titan.period=16 stream.seq_len=64 stream.batch_size=2 train.steps=3 "
    "train.validate_every=2 train.validate_batches=2 logging.every=1"
)
RUNS = [
    f"run stream.path=DATA {TINY} model.block=hope_selfmod",
    f"run stream.path=DATA {TINY} model.block=titan_mac evals={{}} optim=muon train.grad_accum=2",
    "run experiment=probes/smoke/mqar_update train.steps=3 train.validate_batches=2",
    "run experiment=groups/c10 train.steps=3",
    "run experiment=probes/smoke/cl_remap train.steps=2 stream.phase_steps=1 checkpoint.every=1 "
    "checkpoint.keep=0",
    "run experiment=probes/smoke/cl_remap objective=ewc train.steps=4 stream.phase_steps=2 "
    "evals={}",
    "run experiment=probes/smoke/cl_remap objective=distill train.steps=4 stream.phase_steps=2 "
    "evals={}",
]


def complaints(cases: list[str], folder: Path) -> dict[str, str | None]:
    """What a process that pretends to have a device says of each case."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.laws.pretended", str(folder), *cases],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(cases, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("cases", [BLOCKS, OPTIONS], ids=["blocks", "options"])
def test_a_device_finds_what_the_cpu_finds(cases: list[str], tmp_path: Path) -> None:
    assert {case: said for case, said in complaints(cases, tmp_path).items() if said} == {}


def test_every_optimizer_on_a_device(tmp_path: Path) -> None:
    kinds = sorted(table("optim").keys() - {"scaled_sgd"})  # that one is for other models
    cases = [f"hope_selfmod {{}} {kind}" for kind in kinds]
    assert {case: said for case, said in complaints(cases, tmp_path).items() if said} == {}


def test_whole_runs_on_a_device(data: Path, tmp_path: Path) -> None:
    cases = [case.replace("DATA", str(data)) for case in RUNS]
    assert {case: said for case, said in complaints(cases, tmp_path).items() if said} == {}


def test_what_is_planted_is_found(tmp_path: Path) -> None:
    cases = [f"transformer {{}} {done}" for done in ("copy", "wait")]
    copied, waited = complaints(cases, tmp_path).values()
    assert copied is not None
    assert "two devices" in copied
    assert waited is not None
    assert "waits for the device" in waited
