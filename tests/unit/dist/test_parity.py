"""Two gloo ranks give the losses and gradient norms of one process, under every strategy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.dist.test_strategies import free_port

import nl.models.language  # noqa: F401 - registers the blocks
from nl.config import table

PARITY = Path(__file__).parents[2] / "resume" / "parity.py"
TOLERANCE = 1e-5


def parity(cases: list[dict[str, Any]], timeout: int = 300) -> list[Any]:
    """What ``parity.py`` measures."""
    command = [sys.executable, str(PARITY), json.dumps(cases), str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def check(cases: list[dict[str, Any]], found: list[Any], tolerance: float = TOLERANCE) -> None:
    """Every number of every case within the tolerance, relative."""
    assert len(found) == len(cases)
    for case, (losses, norms, losses_alone, norms_alone) in zip(cases, found, strict=True):
        assert len(losses) == 8
        assert losses_alone[0] > losses_alone[-1] > 0, case
        assert losses == pytest.approx(losses_alone, rel=tolerance), case
        assert norms == pytest.approx(norms_alone, rel=tolerance), case


def every_block(*strategies: str) -> list[dict[str, Any]]:
    """Cases of all block kinds, with and without gradient accumulation."""
    return [
        {"strategy": strategy, "kind": kind, "changes": {"train__grad_accum": accumulated}}
        for strategy in strategies
        for kind in sorted(table("block"))
        for accumulated in (1, 2)
    ]


def test_every_block_trains_on_two_ranks_as_on_one() -> None:
    cases = every_block("ddp", "fsdp2")
    check(cases, parity(cases))
