"""What the benchmark counts: kept bytes, FLOPs, ratios; a run of it at toy size."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from nl.bench import BenchConfig, as_table, bench, figure
from nl.bench.clock import check_peak, ratio
from nl.bench.flops import algorithmic_flops, layer_flops, model_flops, selfmod_flops
from nl.bench.kept import kept_bytes
from nl.bench.machine import cpu_flags
from nl.bench.steps import BASELINE, kept_per_layer, language, matched
from nl.config import ConfigError
from nl.models.presets import count_parameters
from nl.nn.head_memory import HeadMemoryConfig
from nl.nn.selfmod import SelfMod, SelfModConfig

SMALL = BenchConfig(dim=128, heads=2, seq_len=(32,), batch_size=2, vocab_size=64, rounds=1)


def test_kept_bytes_counts_storages_once_and_no_parameters() -> None:
    x = torch.randn(8, 16, requires_grad=True)
    layer = nn.Linear(16, 4, bias=False)

    def forward() -> object:
        y = layer(x)
        return y.sigmoid(), y[:2].exp(), layer(x)

    sigmoid, exp = 8 * 4 * 4, 2 * 4 * 4
    assert kept_bytes(forward, layer.parameters()) == x.nbytes + sigmoid + exp
    assert kept_bytes(lambda: layer(x.detach()).sum(), [x, *layer.parameters()]) == 0


def test_kept_bytes_lets_go_of_what_it_counted() -> None:
    x = torch.randn(8, 16, requires_grad=True)
    made: list[weakref.ref[torch.Tensor]] = []

    def forward() -> object:
        y = x.sigmoid()  # its result is what it keeps
        made.append(weakref.ref(y))
        return y.sum()

    assert kept_bytes(forward, [x]) == 8 * 16 * 4
    gc.collect()
    assert made[0]() is None


def test_peak_that_moves_is_refused_unless_noisy() -> None:
    check_peak(100.0, 91.0, noisy=False)
    check_peak(100.0, 50.0, noisy=True)
    with pytest.raises(ConfigError, match=r"moved from 100\.0 to 50\.0"):
        check_peak(100.0, 50.0, noisy=False)


def test_ratio_is_taken_within_rounds() -> None:
    assert ratio([2.0, 9.0, 40.0], [1.0, 3.0, 10.0]) == (3.0, 2.0, 4.0)


def test_transformer_flops_by_hand() -> None:
    model = language(SMALL, BASELINE).build()
    hidden, d, T = language(SMALL, BASELINE).mlp_hidden_size, 128, 32
    weights = 2 * (4 * d * d + 3 * d * hidden) + 64 * d
    assert model_flops(model, T) == 6 * weights + 12 * 2 * d * T
    assert algorithmic_flops(model, T) == model_flops(model, T)
    block = 2 * (4 * d * d + 3 * d * hidden) + 4 * d * T
    assert layer_flops(model.blocks[0], T) == block


def test_a_head_that_learns_is_counted() -> None:
    plain = language(SMALL, BASELINE)
    learning = replace(plain, head_memory=HeadMemoryConfig(period=8)).build()
    extra = algorithmic_flops(learning, 32) - algorithmic_flops(plain.build(), 32)
    assert extra == 4 * 2 * 64 * 128


def test_memory_flops_by_hand() -> None:
    d, head, C = 128, 64, 16
    layer = SelfMod(SelfModConfig(period=C, direct_gates=False), d)
    static = sum(m.weight.numel() for m in layer.modules() if isinstance(m, nn.Linear))
    assert selfmod_flops(layer) == (54 * head + 16 * 16) * d + 7 * C * d + 2 * static
    model = language(SMALL, "titan_lmm").build()
    extra = algorithmic_flops(model, 32) - model_flops(model, 32)
    keys, deltas, updates = 2 * 2, 2 * 1, 2 * 2 * 2
    assert extra == 2 * 3 * (keys + deltas + updates) * d * 64


def test_windows_cap_what_attention_costs() -> None:
    short = language(SMALL, "titan_mal")
    model = replace(short, titan=replace(short.titan, window=16)).build()
    assert model_flops(model, 64) == model_flops(model, 16)


def test_chunk_sets_every_period() -> None:
    model = language(SMALL, "hope_hybrid", 8)
    assert model.cms.periods == (8, 32, 128, 512)
    assert model.titan.period == model.selfmod.period == model.gated_delta.chunk == 8


def test_models_of_a_run_have_equal_parameters() -> None:
    counts = [count_parameters(matched(SMALL, b)) for b in (BASELINE, "hope_attention")]
    assert counts[1] == pytest.approx(counts[0], rel=0.02)


def test_kept_per_layer_leaves_head_and_loss_out() -> None:
    model = matched(SMALL, BASELINE)
    kept = kept_per_layer(model, SMALL, 32)
    assert kept == kept_per_layer(replace(model, vocab_size=512), SMALL, 32)
    assert kept > 10 * 2 * 32 * 128 * 4


def test_a_small_run(tmp_path: Path) -> None:
    config = replace(
        SMALL, blocks=("hope_attention",), parts=("step", "layer"), chunk=(16,), noisy=True
    )
    result = bench(config)
    rows = {(r["part"], r["name"]): r for r in result["rows"]}
    assert set(rows) == {
        (part, name)
        for part in ("step", "layer forward", "layer both")
        for name in (BASELINE, "hope_attention")
    }
    for (part, name), row in rows.items():
        assert row["tokens_per_s"] > 0
        assert (row["ratio_to_transformer"] == 1) == (name == BASELINE)
        assert ("kept_bytes_per_layer" in row) == (part == "step")
        assert row["chunk"] == 16
    assert json.loads(json.dumps(result)) == result
    assert "hope_attention" in as_table(result)
    assert [line.x for line in figure(result).lines] == [[32]] * 6


def test_bad_sizes_are_refused() -> None:
    for bad, word in (
        ({"seq_len": ()}, "seq_len"),
        ({"seq_len": (0,)}, "seq_len"),
        ({"chunk": (0,)}, "chunk"),
        ({"parts": ()}, "parts"),
        ({"parts": ("loss",)}, "parts"),
    ):
        with pytest.raises(ConfigError, match=word):
            BenchConfig(**bad)


def test_a_width_that_a_block_cannot_have_is_refused_with_the_flag() -> None:
    narrow = BenchConfig(dim=32, blocks=("hope_attention", "hope_selfmod"))
    with pytest.raises(ConfigError, match=r"hope_selfmod at --dim 32.* divide .*another --dim"):
        language(narrow, "hope_selfmod")
    assert language(narrow, "hope_attention").dim == 32


def test_cpu_flags_are_read(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor: 0\nflags\t: fpu avx2 fma sse\n")
    assert cpu_flags(file) == ["avx2", "fma"]
    assert cpu_flags(tmp_path / "none") == []
