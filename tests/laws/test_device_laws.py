"""Devices: nothing is made on another one or waits for a number, in both passes, in any block."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nl.config import table
from tests.laws.conftest import block_kinds

ROOT = Path(__file__).resolve().parents[2]
CHANGED: list[tuple[str, dict[str, Any]]] = [
    ("hope_attention", {"cms": {"arrangement": "nested", "inner": {"kind": "momentum"}}}),
    ("hope_attention", {"cms": {"arrangement": "independent", "inner": {"kind": "delta"}}}),
    ("hope_attention", {"cms": {"signal": "self", "write_gradient": "through"}}),
    ("hope_attention", {"cms": {"scope": "batch", "signal": "block", "inner": {"kind": "adam"}}}),
    ("hope_attention", {"cms": {"inner": {"kind": "muon"}, "activation": "swiglu"}}),
    ("hope_attention", {"cms": {"inner": {"kind": "deep"}}, "positions": "learned"}),
    ("hope_attention", {"cms": {"surprise": {"gate": "soft", "quantile": 0.6}}}),
    ("hope_selfmod", {"selfmod": {"adaptive_q": True, "period_other": 8, "activation": "gelu"}}),
    ("hope_selfmod", {"selfmod": {"compat": "literal"}}),
    ("titan_lmm", {"titan": {"depth": 4, "momentum": False, "step": "plain"}}),
    ("titan_mag", {"titan": {"recompute": False, "retention": "zero"}}),
    ("transformer", {"experts": {"form": "swiglu", "count": 4, "width": 6}}),
]
BLOCKS = [f"{kind} {{}} {done}" for kind in block_kinds() for done in ("train", "stream")]
OPTIONS = [f"{kind} {json.dumps(more, separators=(',', ':'))} train" for kind, more in CHANGED]


def complaints(cases: list[str]) -> dict[str, str | None]:
    """What a process that pretends to have a device says of each case."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.laws.pretended", *cases],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(cases, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("cases", [BLOCKS, OPTIONS], ids=["blocks", "options"])
def test_one_device_and_no_waiting(cases: list[str]) -> None:
    assert {case: said for case, said in complaints(cases).items() if said} == {}


def test_every_optimizer_on_one_device() -> None:
    found = complaints([f"hope_selfmod {{}} {kind}" for kind in sorted(table("optim"))])
    assert {case: said for case, said in found.items() if said} == {}


def test_what_is_planted_is_found() -> None:
    copied, waited = complaints([f"transformer {{}} {done}" for done in ("copy", "wait")]).values()
    assert copied is not None
    assert "same device" in copied
    assert waited is not None
    assert waited.startswith("DataDependent")
