"""Devices, precision, accumulation; two gloo ranks give the losses of one process."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import nl
from nl.assembly import build
from nl.config import ConfigError
from nl.dist.env import local_rank, select_device
from nl.dist.single import Single
from nl.run import read_records

RANKS = Path(__file__).parents[2] / "resume" / "ranks.py"


def test_cuda_is_never_replaced_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert select_device("auto").type == "cpu"
    with pytest.raises(ConfigError, match=r"train\.device: cuda, but torch sees no CUDA device"):
        select_device("cuda")


def test_more_ranks_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"local rank 2, but only 2 CUDA devices"):
        select_device("cuda", 2)


def test_a_broken_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "first")
    with pytest.raises(ConfigError, match="LOCAL_RANK='first'"):
        local_rank()


def test_bf16_computes_low_and_keeps_state_and_weights_high(tiny: ModuleType) -> None:
    strategy = Single.start("cpu")
    parts = build(tiny.tiny_run(train__precision="bf16"), strategy)
    out = strategy.forward(next(iter(parts.stream)), None, None)
    with strategy.autocast():
        assert strategy.objective.model.head(torch.ones(1, 8)).dtype == torch.bfloat16
    strategy.backward(out.loss)
    assert out.loss.dtype == torch.float32
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in strategy.objective.parameters())


def test_clipping_returns_the_norm_before_it(tiny: ModuleType) -> None:
    for limit, expect in ((0.0, 1.0), (1e-3, 1e-3)):
        strategy = Single.start("cpu")
        parts = build(tiny.tiny_run(train__max_norm=limit), strategy)
        strategy.backward(strategy.forward(next(iter(parts.stream)), None, None).loss)
        grads = [p.grad.clone() for p in strategy.objective.parameters()]
        want = torch.sqrt(sum((g**2).sum() for g in grads))
        norm = strategy.grad_norm()
        torch.testing.assert_close(norm, want)
        after = torch.sqrt(sum((p.grad**2).sum() for p in strategy.objective.parameters()))
        torch.testing.assert_close(after, want if expect == 1.0 else torch.tensor(expect))


def test_rank_zero_complains_on_every_rank() -> None:
    strategy = Single.start("cpu")
    assert strategy.first(lambda: 3) == 3

    def refuse() -> None:
        raise ConfigError("key: no")

    with pytest.raises(ConfigError, match="key: no"):
        strategy.first(refuse)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def one_and_two_ranks(tiny: ModuleType, folder: Path, changes: dict[str, Any]) -> tuple[Path, Path]:
    """The run directories of a run in one process, and on two ranks with a stop in between."""
    ours, theirs = folder / "one", folder / "two"
    nl.launch(tiny.tiny_run(run__dir=str(ours), **changes))
    spread = changes | {"run__dir": str(theirs)}
    command = [sys.executable, str(RANKS), json.dumps(spread), str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == [[143, 143], [0, 0]], done.stderr[-3000:]
    return ours, theirs


def test_two_ranks_give_the_losses_of_one(tiny: ModuleType, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "model__dropout": 0.0,
        "train__steps": 8,
        "train__grad_accum": 2,
        "checkpoint__every": 0,
    }
    ours, theirs = one_and_two_ranks(tiny, tmp_path, changes)
    assert (theirs / "checkpoints" / "step_000004" / "state_00001.safetensors").is_file()
    one, two = read_records(ours / "metrics.jsonl"), read_records(theirs / "metrics.jsonl")
    assert [(r["step"], r["split"], r["tokens"]) for r in one] == [
        (r["step"], r["split"], r["tokens"]) for r in two
    ]
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-6)
        assert b.get("accuracy") == pytest.approx(a.get("accuracy"))
        if a["split"] == "train":
            assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-5)
    text = (theirs / "meta.json").read_text()
    assert '"world_size": 2' in text
    assert '"strategy": "ddp"' in text


def test_two_ranks_train_the_memories_of_a_frozen_backbone(
    tiny: ModuleType, tmp_path: Path
) -> None:
    model = {"kind": "language", "vocab_size": tiny.VOCAB, "dim": 8, "layers": 1}
    model |= {"block": "hope_attention", "attention": {"heads": 1}, "cms": {"periods": [16, 32]}}
    changes = {
        "model": model,
        "objective": {"kind": "next_token"},
        "optim": {"kind": "muon", "policy": "memory_only"},
        "stream__seq_len": 40,
        "train__carry": False,
        "train__steps": 8,
        "checkpoint__every": 0,
    }
    ours, theirs = one_and_two_ranks(tiny, tmp_path, changes)
    fresh = build(tiny.tiny_run(**changes), Single.start("cpu")).strategy.objective.model
    one, two = (nl.load_model(path).state_dict() for path in (ours, theirs))
    for name, start in fresh.state_dict().items():
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-5)
        trained = ".levels." in name
        assert torch.equal(one[name], start) != trained, name
        assert torch.equal(two[name], start) != trained, name


def test_two_ranks_share_one_memory(tiny: ModuleType, tmp_path: Path) -> None:
    model = {"kind": "language", "vocab_size": tiny.VOCAB, "dim": 8, "layers": 1}
    model |= {"block": "hope_attention", "attention": {"heads": 1}}
    changes: dict[str, Any] = {
        "model": model | {"cms": {"periods": [16, 32], "scope": "batch"}},
        "objective": {"kind": "next_token"},
        "stream__seq_len": 40,
        "train__carry": False,
        "train__steps": 8,
        "checkpoint__every": 0,
    }
    ours, theirs = one_and_two_ranks(tiny, tmp_path, changes)
    rows = changes | {"model": model | {"cms": {"periods": [16, 32]}}}
    nl.launch(tiny.tiny_run(run__dir=str(tmp_path / "rows"), **rows))
    one, two, row = (
        [r for r in read_records(path / "metrics.jsonl") if r["split"] == "train"]
        for path in (ours, theirs, tmp_path / "rows")
    )
    assert len(one) == len(two) == 8
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["memory/level0"] == pytest.approx(a["memory/level0"], rel=1e-4)
    assert abs(row[0]["loss"] - one[0]["loss"]) > 1e-4 * one[0]["loss"]
