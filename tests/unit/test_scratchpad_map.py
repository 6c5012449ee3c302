"""Every command that the page of the ladder gives for an earlier one works, with few steps."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from nl.cli import main

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "systems" / "scratchpad.md"
LEAST = ["train.steps=3", "train.validate_every=3"]


def mapped() -> list[str]:
    """The second column of the table of commands, in its order."""
    text = PAGE.read_text()
    start = text.index("## From the earlier commands to these")
    table = text[start : text.index("| earlier key of W&B")]
    return re.findall(r"^\| .* \| `([^`]+)` \|$", table, flags=re.MULTILINE)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in, with a sweep of one task and one model where the page has 63 runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["nl"])
    spec = yaml.safe_load((ROOT / "configs/sweep/ladder.yaml").read_text())
    axes = spec["axes"]
    axes["task"] = [one for one in axes["task"] if one["name"] == "single_digit_sum"]
    axes["model"] = [one for one in axes["model"] if one["name"] == "mlp"]
    spec["global_overrides"] |= {"train.steps": 3, "train.validate_every": 3}
    (tmp_path / "ladder.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    return tmp_path


def call(command: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run one command of the page in this process."""
    words = shlex.split(command)
    while "=" in words[0]:
        monkeypatch.setenv(*words.pop(0).split("=", 1))
    assert words[:2] == ["uv", "run"]
    if words[2] == "nl":
        words = [w.replace("configs/sweep", str(place)) for w in words[3:]]
        return main(words)
    assert words[2:4] == ["python", "train.py"]
    return main(["train", *words[4:], *LEAST, f"run.root={place / 'runs'}"])


def test_the_page_says_what_replaces_every_command() -> None:
    commands = mapped()
    assert len(commands) == 10
    assert sum(" nl " in command for command in commands) == 5


def test_every_command_of_the_map_works(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for command in mapped():
        assert call(command, place, monkeypatch) == 0, f"{command}\n{capfd.readouterr().err}"
    sweep = place / "runs" / "ladder"
    pages = {str(p.relative_to(sweep)) for p in sweep.rglob("*.html")}
    assert pages == {"index.html", "single_digit_sum_mlp/seed_0/report.html"}
    assert (sweep / "benchmarking.csv").read_text().count("single_digit_sum (test)") == 1
    assert "single_digit_sum,799,1000,0.799000" in (sweep / "overlap.csv").read_text()
    index = (sweep / "index.html").read_text()
    assert "earlier seeds 0 and 1" in index
    assert "of these runs" in index
    assert list((place / "runs").rglob("offline-run-*")), "W&B was used without an account"
    assert os.environ["WANDB_MODE"] == "offline"
