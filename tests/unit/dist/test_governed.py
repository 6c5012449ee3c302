"""Experts, replay by loss, a learning controller, signals: every strategy as one process.

Two gloo ranks see the same held-out rows, draw the same knobs, store and draw the same rows, and
balance the same experts; what is compared is every number that a run logs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nl.run import read_records
from tests.unit.data.conftest import build_tiny
from tests.unit.dist.test_deepspeed import case, runs, zero

STEPS, TOLERANCE = 18, 1e-6
SIZES = {"dim": 16, "layers": 2, "block": "transformer", "vocab_size": 259}
EXPERTS = {"form": "low_rank", "count": 8, "rank": 4, "k": 1, "k_max": 3, "balance": 0.03}
OWN = ("time", "perf/", "split", "experts/")
"""Clocks, and what is said of the batch of one rank at a time."""


def governed(data: Path) -> dict[str, Any]:
    """Everything of this page at once; tasks of six steps."""
    return {
        "model": {"kind": "language", "attention": {"heads": 2}, **SIZES}
        | {"experts": {**EXPERTS, "noise": 0.3, "switch_loss": 0.01}},
        "objective": {"kind": "next_token"},
        "stream": {"kind": "tasks", "path": str(data), "tasks": 3, "steps": 6, "seq_len": 16}
        | {"batch_size": 4, "capacity": 12, "memory": "loss", "vocabulary": "unique"},
        "signals": {"every": 2, "rows": 3},
        "controller": {"kind": "gru", "every": 2, "rollout": 3}
        | {"ranges": {"experts_k": [1, 3], "replay": [0.2, 0.8], "router_temperature": [0.7, 1.3]}},
        "optim": {"kind": "adamw", "lr": 3e-3, "eps": 1e-4},
        "train__steps": STEPS,
        "train__carry": False,
        "train__validate_every": 9,
        "train__validate_batches": 2,
    }


def same_numbers(ours: Path, theirs: Path) -> None:
    """Every row of both logs, within the tolerance, relative."""
    one, two = (read_records(place / "metrics.jsonl") for place in (ours, theirs))
    assert len(one) == len(two) > STEPS
    turned = {row["knob/experts_k"] for row in one if "knob/experts_k" in row}
    assert len(turned) > 1, "the controller turned nothing"
    assert any(row.get("stream/replayed") for row in one)
    for a, b in zip(one, two, strict=True):
        assert b.keys() == a.keys()
        for key in a:
            if not key.startswith(OWN):
                wide = 100 if key.startswith(("signal/", "control/", "grad_norm")) else 1
                near = pytest.approx(a[key], rel=TOLERANCE * wide, abs=1e-7 * wide)
                assert b[key] == near, (a["step"], key)


def test_two_ranks_are_governed_as_one(tmp_path: Path) -> None:
    told = governed(build_tiny(tmp_path / "data"))
    names = {"single": 1, "ddp": 2, "fsdp2": 2}
    cases = [case(tmp_path / name, name, world, **told) for name, world in names.items()]
    assert runs(cases) == [[0], [0, 0], [0, 0]]
    for name in ("ddp", "fsdp2"):
        same_numbers(tmp_path / "single", tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_is_governed_as_one_process(stage: int, tmp_path: Path) -> None:
    told = governed(build_tiny(tmp_path / "data"))
    own = {"deepspeed": zero(tmp_path, stage)}
    alone = case(tmp_path / "single", "single", 1, **told)
    assert runs([alone, case(tmp_path / "zero", "deepspeed", 2, **told, **own)]) == [[0], [0, 0]]
    same_numbers(tmp_path / "single", tmp_path / "zero")
