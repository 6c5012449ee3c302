"""Speed columns by their formulas, and steps that are profiled without changing them."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

import nl
from nl.assembly import build_model
from nl.config import ConfigError
from nl.run import read_records
from nl.train.throughput import Throughput, forward_flops, peak_tflops


def test_mfu_is_flops_over_the_peak_of_all_devices() -> None:
    here = torch.device("cpu")
    speed = Throughput.of(here, 4, forward=1e9, configured=2.0, precision="bf16")
    found = speed.read(1000.0)
    assert found["perf/tokens_per_s_device"] == 250.0
    assert found["perf/mfu"] == pytest.approx(1000 * 3e9 / (4 * 2e12))
    assert 0.05 < found["perf/memory_gib"] < 64
    unknown = Throughput.of(here, 1, forward=1e9, configured=0.0, precision="bf16")
    assert "perf/mfu" not in unknown.read(1000.0)


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H200", "bf16", 989.0),
        ("NVIDIA H100 80GB HBM3", "fp32", 67.0),
        ("NVIDIA H100 PCIe", "bf16", 756.0),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0),
        ("NVIDIA A10G", "bf16", 0.0),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.0),
    ],
)
def test_peaks_by_name(name: str, precision: str, peak: float) -> None:
    assert peak_tflops(name, precision) == peak


def test_a_transformer_counts_six_per_matrix_parameter() -> None:
    model = build_model("pilot_smoke", ["model.block=transformer"])
    matrices = sum(p.numel() for p in model.blocks.parameters() if p.dim() >= 2)
    matrices += model.head.weight.numel()
    layers, dim, seq_len = len(model.blocks), model.config.dim, 64
    # the head may share the embedding table, which is a product only at the end
    attended = (3 * forward_flops(model, seq_len) - 6 * matrices) / (12 * layers * dim)
    assert 0 < attended <= seq_len
    assert forward_flops(torch.nn.Linear(2, 2), 8) == 0.0


def test_rows_carry_speed_and_profiled_steps_stay_the_same(
    tiny: ModuleType, tmp_path: Path
) -> None:
    changes = {"train__steps": 5, "train__peak_tflops": 0.1, "train__validate_every": 0}
    profile = {"first": 2, "last": 3}
    for name, more in (("plain", {}), ("traced", {"train__profile": profile})):
        nl.launch(tiny.tiny_run(run__dir=str(tmp_path / name), **changes, **more))
    plain, traced = (
        [r for r in read_records(tmp_path / n / "metrics.jsonl") if r["split"] == "train"]
        for n in ("plain", "traced")
    )
    assert [r["loss"] for r in plain] == [r["loss"] for r in traced]
    for row in plain:
        flops = 3 * 2 * sum(p.numel() for p in tiny.Tiny(tiny.TinyConfig()).parameters())
        want = row["perf/tokens_per_s"] * flops / 1e11
        assert row["perf/mfu"] == pytest.approx(want)
        assert row["perf/tokens_per_s_device"] == row["perf/tokens_per_s"]
        assert row["perf/memory_gib"] > 0
    assert not list((tmp_path / "plain" / "artifacts").glob("profile*"))
    trace = json.loads((tmp_path / "traced" / "artifacts" / "profile_rank_00.json").read_text())
    steps = sum(e.get("name") == "Optimizer.step#AdamW.step" for e in trace["traceEvents"])
    assert steps == 2
    with pytest.raises(ConfigError, match=r"profile\.last: 1; must be >= first \(2\)"):
        tiny.tiny_run(train__profile={"first": 2, "last": 1})


def test_the_hash_ignores_what_only_watches(tiny: ModuleType) -> None:
    from nl.config.run import config_hash

    plain = config_hash(tiny.tiny_run())
    assert config_hash(tiny.tiny_run(train__watchdog={"data_seconds": 5.0})) == plain
    assert config_hash(tiny.tiny_run(train__profile={"first": 1, "last": 2})) == plain
    assert config_hash(tiny.tiny_run(train__spike={"policy": "skip"})) != plain
