"""Recall over lengths and depths: a model that looks up, one that guesses, intervals, modes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nl.config import ConfigError, structure
from nl.data.noisy_recall import NoisyRecallConfig, look_up
from nl.eval.recall_grid import RecallGrid, cells_of, measure_recall
from nl.eval.rows import wilson

TASK = NoisyRecallConfig(pairs=3, keys=8, noise=5)


class Reader(nn.Module):
    """Looks the key up among the last ``window`` tokens; with writes, among all it has read."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        self.calls: list[tuple[int, bool]] = []

    def forward(self, tokens: torch.Tensor, state: Any, *, write: bool) -> Any:
        self.calls.append((tokens.shape[1], write))
        seen = tokens if state is None else torch.cat([state, tokens], 1)
        logits = torch.zeros(*tokens.shape, 21)
        for row, read in enumerate(seen.numpy()):
            known = read if write else read[-self.window :]
            if read[-1] < 8 and read[-1] in known[:-1]:
                logits[row, -1, look_up(np.asarray(known), 8)] = 9.0
        return SimpleNamespace(pred=logits, state=seen)


def draw(number: int, length: int, depth: float) -> tuple[list[int], int]:
    tokens, value = TASK.question(5, number, length, depth)
    return tokens.tolist(), value


def test_a_window_fails_where_the_fact_is_outside_it() -> None:
    grid = RecallGrid(lengths=(20, 40), depths=(0.0, 1.0), samples=30)
    reader = Reader(window=6)
    samples = measure_recall(reader, draw, grid, batch_size=8, segment=16)
    cells = {(c["memorize"], c["length"], c["depth"]): c for c in cells_of(samples)}
    assert len(samples) == 2 * 2 * 2 * 30
    assert {cells["context", n, d]["accuracy"] for n in (20, 40) for d in (0.0, 1.0)} == {1.0}
    assert {cells["off", n, 1.0]["accuracy"] for n in (20, 40)} == {1.0}
    assert {cells["off", n, 0.0]["accuracy"] for n in (20, 40)} == {0.0}
    assert all(cell["n"] == 30 for cell in cells.values())
    assert {length for length, _ in reader.calls} == {16, 4, 8}  # 20 = 16 + 4, 40 = 2 x 16 + 8


def test_samples_do_not_depend_on_batches_or_other_cells() -> None:
    whole = measure_recall(Reader(6), draw, RecallGrid(lengths=(20, 30), samples=7), **sizes(3))
    part = measure_recall(Reader(6), draw, RecallGrid(lengths=(30,), samples=7), **sizes(7))
    assert [s for s in whole if s.length == 30] == part


def sizes(batch: int) -> dict[str, int]:
    return {"batch_size": batch, "segment": 64}


def test_wilson_equals_its_quadratic() -> None:
    for hits, count in ((0, 10), (3, 10), (10, 10), (250, 500)):
        for end in wilson(hits, count):
            if 0 < end < 1:  # |share - p| = z sqrt(p (1 - p) / n)
                share = hits / count
                assert abs((share - end) ** 2 - 1.959964**2 * end * (1 - end) / count) < 1e-12
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"memorize": ["oracle"]}, "memorize: oracle; a key has no meaning outside its row"),
        ({"depths": [2.0]}, "depths: 2.0"),
        ({"samples": 0}, "samples: 0"),
        ({"lengths": []}, "lengths: empty"),
    ],
)
def test_bad_settings(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        structure(RecallGrid, fields, "")


def test_the_command_writes_cells_and_samples(tmp_path: Path, capsys: Any) -> None:
    from argparse import Namespace

    from nl.assembly import launch
    from nl.cli_recall import recall
    from nl.config.hydra import compose

    overrides = ["experiment=long_context/recall", "train.steps=1", "model.dim=32"]
    overrides += [
        "stream.seq_len=48",
        "stream.pairs=3",
        "stream.val_size=16",
        "stream.batch_size=4",
    ]
    overrides += ["model.titan.head_size=16", f"run.dir={tmp_path / 'run'}"]
    launch(compose("pilot_smoke", overrides))
    options = Namespace(
        checkpoint=str(tmp_path / "run"),
        output=tmp_path / "out" / "recall.json",
        lengths=[24, 40],
        depths=[0.0, 1.0],
        samples=5,
        memorize=["off", "context"],
        pairs=None,
        seed=0,
        batch_size=4,
        segment=16,
        device="cpu",
    )
    recall(options)
    data = json.loads(options.output.read_text())
    assert len(data["cells"]) == 8
    assert data["oracle"]["accuracy"] == 1.0
    assert data["chance"] == 1 / 64
    told = data["writes"]
    wrote = {length: told[length]["memory/writes/titan/layer0"] for length in ("24", "40")}
    assert wrote == {"24": 24 // 8, "40": 40 // 8}  # one per period
    assert data["writes"]["40"]["memory/added/titan/layer1"] > 0
    assert data["state"].startswith("State fresh per sample")
    rows = [
        json.loads(row) for row in options.output.with_suffix(".jsonl").read_text().splitlines()
    ]
    assert len(rows) == 40
    assert sum(row["right"] for row in rows if row["memorize"] == "off") == sum(
        round(cell["accuracy"] * 5) for cell in data["cells"] if cell["memorize"] == "off"
    )
    assert "chance 0.0156; looking it up 1.000" in capsys.readouterr().out
