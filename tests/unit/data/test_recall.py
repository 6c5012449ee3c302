"""stream=recall: what a row holds, what is scored, splits, ranks, resume."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from nl.config import ConfigError, structure
from nl.config.groups import StreamConfig
from nl.core.batch import IGNORE, Batch
from nl.data.recall import RecallConfig

CONFIG = RecallConfig(pairs=5, keys=9, batch_size=8, val_size=20)


def take(split: str, count: int, seed: int = 0, rank: int = 0, world: int = 1) -> list[Batch]:
    stream = CONFIG.build(split, seed=seed, rank=rank, world=world)
    return list(itertools.islice(stream, count))


def test_rows_bind_keys_to_values_and_ask_for_all() -> None:
    orders = set()
    for batch in take("train", 20):
        for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
            assert len(inputs) == len(targets) == 19
            keys, values, asked = inputs[:10:2], inputs[1:10:2], inputs[10::2]
            assert all(0 <= k < 9 for k in keys)
            assert all(9 <= v < 18 for v in values)
            assert len(set(keys)) == 5
            assert sorted(asked) == sorted(keys)
            bound = dict(zip(keys, values, strict=True))
            assert targets[10::2] == [bound[k] for k in asked]
            assert inputs[11::2] == targets[10:-1:2]
            assert set(targets[:10] + targets[11::2]) == {IGNORE}
            orders.add(tuple(keys.index(k) for k in asked))
    assert len(orders) > 50


def test_keys_and_values_are_uniform() -> None:
    tokens = torch.cat([b.inputs[:, :10] for b in take("train", 400)]).flatten()
    counts = torch.bincount(tokens, minlength=18).double()
    expected = tokens.numel() / 18
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 50


def test_weight_counts_scored_targets() -> None:
    for batch in [*take("train", 3), *take("val", 3)]:
        assert batch.weight == int((batch.targets != IGNORE).sum())
    assert [b.weight for b in take("val", 9)] == [40, 40, 20]


def test_ranks_partition_every_global_batch() -> None:
    whole = take("train", 10)
    parts = [take("train", 10, rank=rank, world=4) for rank in range(4)]
    for number, batch in enumerate(whole):
        assert torch.equal(torch.cat([p[number].inputs for p in parts]), batch.inputs)
        assert sum(p[number].weight for p in parts) == batch.weight


@pytest.mark.parametrize("split", ["train", "val"])
def test_resume(split: str) -> None:
    stream = CONFIG.build(split, seed=3, rank=0, world=1)
    known = iter(stream)
    next(known)
    again = CONFIG.build(split, seed=3, rank=0, world=1)
    again.load_state_dict(stream.state_dict())
    wanted = next(known)
    found = next(iter(again))
    assert torch.equal(found.inputs, wanted.inputs)
    assert torch.equal(found.targets, wanted.targets)
    with pytest.raises(ConfigError, match="identity"):
        CONFIG.build(split, seed=4, rank=0, world=1).load_state_dict(stream.state_dict())


def test_no_row_is_shared() -> None:
    def rows(split: str, seed: int = 0, count: int = 2) -> set[tuple[int, ...]]:
        batches = take(split, count, seed)
        return {tuple(row) for b in batches for row in b.inputs.tolist()}

    found = [rows("train", count=40), rows("val"), rows("train", 1), rows("val", 1)]
    assert [len(rows) for rows in found] == [320, 16, 16, 16]
    assert len(set().union(*found)) == 320 + 3 * 16


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pairs": 0}, "pairs: 0; must be >= 1"),
        ({"pairs": 6, "keys": 5}, "keys: 5; 6 pairs need"),
        ({"batch_size": 0}, "batch_size: 0"),
        ({"val_size": 0}, "val_size: 0"),
    ],
)
def test_bad_settings(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        structure(StreamConfig, {"kind": "recall", **fields}, "stream")
    with pytest.raises(ConfigError, match="use train or val"):
        CONFIG.build("test", seed=0, rank=0, world=1)
