"""A stopped run with noise, balance and a controller goes on as the undisturbed one, to the bit."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import nl
from nl.run import read_records

EXPERTS = {"form": "low_rank", "count": 6, "rank": 4, "k": 1, "k_max": 3}
EXPERTS |= {"noise": 0.5, "balance": 0.05, "switch_loss": 0.01}
RANGES = {"experts_k": [1, 3], "router_temperature": [1.0, 2.0], "router_noise": [0.1, 1.0]}
CONTROLLERS: dict[str, dict[str, Any]] = {
    "random": {"ranges": RANGES, "every": 2},
    "pi": {
        "ranges": {"router_temperature": [1.0, 4.0]},
        "signal": "experts/effective",
        "target": 4.0,
        "every": 1,
    },
}


@pytest.mark.parametrize("kind", CONTROLLERS)
def test_a_resumed_run_turns_and_draws_as_the_whole_one(
    kind: str, tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"kind": "language", "vocab_size": tiny.VOCAB, "dim": 8, "layers": 1}
    model |= {"block": "transformer", "attention": {"heads": 1}, "experts": EXPERTS}
    changes: dict[str, Any] = {
        "model": model,
        "objective": {"kind": "next_token"},
        "train__carry": False,
        "train__steps": 9,
        "controller": {"kind": kind, **CONTROLLERS[kind]},
    }
    nl.launch(tiny.tiny_run(run__dir=str(tmp_path / "whole"), **changes))
    monkeypatch.setenv("TINY_CRASH_AT", "4")
    monkeypatch.setenv("TINY_CRASH_SIGNAL", "SIGUSR1")
    with pytest.raises(SystemExit):
        nl.launch(tiny.tiny_run(run__dir=str(tmp_path / "cut"), **changes))
    monkeypatch.delenv("TINY_CRASH_AT")
    nl.launch(tiny.tiny_run(run__dir=str(tmp_path / "cut"), resume="auto", **changes))
    keys = ("loss", "nats", "experts/effective", *(f"knob/{name}" for name in RANGES))
    whole, cut = (
        [
            [row.get(key) for key in keys]
            for row in read_records(tmp_path / name / "metrics.jsonl")
            if row["split"] == "train"
        ]
        for name in ("whole", "cut")
    )
    assert whole == cut
    assert len({tuple(row[3:]) for row in whole}) > 2
    one, two = (nl.load_model(tmp_path / name).state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert one["blocks.0.mlp.router.bias"].any()
