"""Runs that are killed with SIGKILL continue bit by bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CAMPAIGN = Path(__file__).with_name("campaign.py")


def campaign(folder: Path, *numbers: int) -> dict[str, Any]:
    command = [sys.executable, str(CAMPAIGN), str(folder), *map(str, numbers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_killed_runs_resume_bit_by_bit(tmp_path: Path) -> None:
    found = campaign(tmp_path, 7, 3, 2)
    assert len(found["outcomes"]) == 5
    assert all(text.endswith(": same") for text in found["outcomes"]), found
    assert found["kills"] >= 3


@pytest.mark.slow
def test_twenty_kills_at_random_steps_and_times(tmp_path: Path) -> None:
    found = campaign(tmp_path, 11, 20, 20)
    assert len(found["outcomes"]) == 40
    assert all(text.endswith(": same") for text in found["outcomes"]), found
    assert found["kills"] >= 40
