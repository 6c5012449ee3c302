"""The core suite compares equals: widths solved again, every memory written within a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import nl.assembly  # noqa: F401 - registers every part
from nl.config import lookup, structure
from nl.config.groups import ModelConfig, StreamConfig
from nl.config.hydra import compose

ROOT = Path(__file__).resolve().parents[3] / "configs"
FILES = ("nl_core", "nl_core_continual")
SWEEPS = {name: yaml.safe_load((ROOT / f"sweep/{name}.yaml").read_text()) for name in FILES}
TASKS = [one["name"] for name in FILES for one in SWEEPS[name]["axes"]["task"]]
FILE = {
    one["name"]: one["overrides"]["experiment"]
    for name in FILES
    for one in SWEEPS[name]["axes"]["task"]
}
MIXERS = {one["name"]: one["overrides"] for one in SWEEPS["nl_core"]["axes"]["model"]}


@pytest.fixture(scope="module")
def shared() -> dict[str, Any]:
    model: dict[str, Any] = compose("pilot_smoke", ["experiment=probes/small"])["model"]
    return model


def parameters(shared: dict[str, Any], block: str, width: int) -> int:
    levels = lookup("block", block, "block")().levels
    change: dict[str, Any] = {"cms": shared["cms"] | {"hidden": width}}
    change = change if levels else {"mlp_hidden": width}
    with torch.device("meta"):
        config: Any = structure(ModelConfig, shared | {"block": block} | change)
        return sum(p.numel() for p in config.build().parameters())


@pytest.mark.parametrize("block", MIXERS)
def test_inner_widths_are_the_closest_to_equal_parameters(
    block: str, shared: dict[str, Any]
) -> None:
    goal = parameters(shared, "transformer", 256)
    told = MIXERS[block]
    assert told["model.block"] == block
    (width,) = (value for key, value in told.items() if key != "model.block")
    key = "model.cms.hidden" if block.startswith("hope") else "model.mlp_hidden"
    assert told[key] == width
    miss = {n: abs(parameters(shared, block, n) - goal) for n in (width - 1, width, width + 1)}
    assert min(miss, key=lambda n: miss[n]) == width
    assert miss[width] / goal < 0.03
    text = (ROOT / "sweep/nl_core.yaml").read_text()
    assert f"{parameters(shared, block, width):,}" in text, "the number beside it"


def test_both_files_run_the_same_mixers() -> None:
    assert len(MIXERS) == 10
    assert SWEEPS["nl_core"]["axes"]["model"] == SWEEPS["nl_core_continual"]["axes"]["model"]
    assert all(sweep["n_seeds"] == 3 for sweep in SWEEPS.values())


@pytest.mark.parametrize("task", TASKS)
def test_rows_are_long_enough_for_every_memory(task: str, shared: dict[str, Any]) -> None:
    lines = yaml.safe_load((ROOT / f"experiment/{FILE[task]}.yaml").read_text())
    kind = next(
        line["override /stream"] for line in lines["defaults"] if "override /stream" in line
    )
    sizes = {"val_size": 32, "test_size": 32}
    stream: Any = structure(StreamConfig, {"kind": kind, **lines["stream"], **sizes})
    length = stream.examples("train", 0).inputs.shape[1]
    assert max(shared["cms"]["periods"]) < length
    assert max(shared["titan"]["period"], shared["selfmod"]["period_other"]) < length
    assert stream.vocab_size() <= shared["vocab_size"]
