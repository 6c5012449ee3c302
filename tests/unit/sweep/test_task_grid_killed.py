"""A grid that is killed, with everything it started, ends as one that is left alone."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest

from nl.cli import main
from tests.unit.data.conftest import build_tiny
from tests.unit.sweep.killing import kill_all, start
from tests.unit.sweep.task_grid import STEPS, outcome, steps_done, write_grid

JOBS, KILLS = 6, 5


def files_of(root: Path) -> dict[str, Any]:
    """What the views of a sweep say, without clocks."""
    legacy = root / "legacy"
    return {
        str(path.relative_to(legacy)): path.read_text()
        for path in sorted(legacy.rglob("*"))
        if path.is_file() and path.name not in ("config.json", "grid_progress.json")
        if path.suffix != ".safetensors"
    }


@pytest.mark.slow
def test_a_grid_killed_at_five_moments_ends_as_the_undisturbed_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = build_tiny(tmp_path / "data")
    file = write_grid(tmp_path / "grid.yaml", data)
    told = ["sweep", str(file), "--backend", "warm", "--output"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main([*told, str(whole)]) == 0

    draw = random.Random(5)
    moments = sorted(draw.sample(range(1, JOBS * STEPS), KILLS))
    seen = []
    for moment in moments:
        process = start([*told, str(cut)], tmp_path / "cut.log")
        until = time.monotonic() + 300
        while steps_done(cut) < moment and process.poll() is None:
            assert time.monotonic() < until, (tmp_path / "cut.log").read_text()
            time.sleep(0.002)
        time.sleep(draw.random() / 50)
        assert process.poll() is None, "the sweep ended before it was killed"
        kill_all(process)
        seen.append(steps_done(cut))
    assert len(set(seen)) == KILLS, seen
    assert seen[-1] < JOBS * STEPS, seen
    assert main([*told, str(cut)]) == 0
    wanted = outcome(whole)
    assert len(wanted) == JOBS
    assert outcome(cut) == wanted
    for root in (whole, cut):
        assert main(["report", str(root), "--legacy-csv"]) == 0
    assert files_of(cut) == files_of(whole)

    # Another learning rate is no skip: every run again, the old ones moved aside.
    write_grid(file, data, lr=1e-2, environments=1)
    assert main([*told, str(cut)]) == 0
    assert "3 of 3 runs done" in capsys.readouterr().out
    assert len(list(cut.glob("perm_*/seed_0.was-*"))) == 3
    after = outcome(cut)
    for name in after:
        assert (after[name]["rows"] == wanted[name]["rows"]) == name.startswith("turns"), name
