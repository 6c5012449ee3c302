"""stream=noisy_recall: what a row holds and scores, exact depths, chance and oracle, resume."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from nl.config import ConfigError, structure
from nl.config.groups import StreamConfig
from nl.core.batch import IGNORE, Batch
from nl.data.noisy_recall import NoisyRecallConfig, look_up

CONFIG = NoisyRecallConfig(seq_len=40, pairs=5, keys=9, noise=7, batch_size=8, val_size=20)


def take(split: str, count: int, seed: int = 0, rank: int = 0, world: int = 1) -> list[Batch]:
    stream = CONFIG.build(split, seed=seed, rank=rank, world=world)
    return list(itertools.islice(stream, count))


def test_every_fact_is_told_and_later_asked_for_once() -> None:
    for batch in take("train", 30):
        assert batch.inputs.shape == batch.targets.shape == (8, 40)
        assert batch.weight == int((batch.targets != IGNORE).sum()) == 8 * 5
        for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
            asked = [i for i, target in enumerate(targets) if target != IGNORE]
            told = [i for i, token in enumerate(inputs) if token < 9 and i not in asked]
            assert len(told) == 5
            bound = {inputs[i]: (i, inputs[i + 1]) for i in told}
            assert len(bound) == 5
            assert sorted(inputs[i] for i in asked) == sorted(bound)
            for i in asked:
                place, value = bound[inputs[i]]
                assert place + 1 < i
                assert 9 <= value < 18
                assert targets[i] == value
                assert i == 39 or inputs[i + 1] == value
            used = {*asked, *told, *(i + 1 for i in asked), *(i + 1 for i in told)}
            assert all(inputs[i] >= 18 for i in set(range(40)) - used)


def test_questions_come_at_every_distance() -> None:
    config = NoisyRecallConfig(seq_len=256, pairs=8)
    distances = []
    for index in range(200):
        tokens, asked = config.row(3, index)
        for place in asked:
            told = np.flatnonzero(tokens[:place] == tokens[place])[0]
            distances.append(int(place - told))
    assert min(distances) == 2
    assert max(distances) > 230
    near = sum(distance < 16 for distance in distances) / len(distances)
    assert 0.2 < near < 0.5


@pytest.mark.parametrize("depth", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_depth_and_length_of_a_question_are_exact(depth: float) -> None:
    for number in range(100):
        tokens, value = CONFIG.question(1, number, 30, depth)
        assert len(tokens) == 30
        place = int(np.flatnonzero(tokens == tokens[-1])[0])
        assert place <= 27
        assert tokens[place + 1] == value == look_up(tokens, 9)
        assert abs(place - depth * 27) <= 1.5
        assert sum(token < 9 for token in tokens.tolist()) == 6


def test_samples_have_streams_of_their_own_and_guessing_is_chance() -> None:
    first = [CONFIG.question(1, n, 30, 0.5) for n in range(50)]
    again = [CONFIG.question(1, n, 30, 0.5) for n in reversed(range(50))][::-1]
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert len({tuple(row.tolist()) for row, _ in first}) == 50
    other = [CONFIG.question(2, n, 30, 0.5) for n in range(50)]
    assert all(not np.array_equal(a[0], b[0]) for a, b in zip(first, other, strict=True))
    answers = [CONFIG.question(1, n, 30, 0.5)[1] for n in range(1800)]
    counts = np.bincount(answers, minlength=18)[9:]
    assert counts.sum() == 1800
    assert float(((counts - 200) ** 2 / 200).sum()) < 26  # 8 degrees of freedom, 0.1 %


def test_looking_up_needs_a_key_that_was_told() -> None:
    with pytest.raises(ValueError, match="no key that stands before it"):
        look_up(np.asarray([3, 12, 4]), 9)
    with pytest.raises(ValueError, match="no key"):
        look_up(np.asarray([12, 12]), 9)


def test_ranks_partition_every_global_batch() -> None:
    whole = take("train", 6)
    parts = [take("train", 6, rank=rank, world=4) for rank in range(4)]
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
    wanted, found = next(known), next(iter(again))
    assert torch.equal(found.inputs, wanted.inputs)
    assert torch.equal(found.targets, wanted.targets)
    with pytest.raises(ConfigError, match="identity"):
        CONFIG.build(split, seed=4, rank=0, world=1).load_state_dict(stream.state_dict())


def test_val_ends_and_shares_no_row_with_train() -> None:
    val = take("val", 9)
    assert [batch.weight for batch in val] == [40, 40, 20]
    rows = [{tuple(r) for b in take(s, 2) for r in b.inputs.tolist()} for s in ("train", "val")]
    assert [len(found) for found in rows] == [16, 16]
    assert not rows[0] & rows[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pairs": 0}, "pairs: 0; must be >= 1"),
        ({"pairs": 6, "keys": 5}, "keys: 5; 6 facts need"),
        ({"seq_len": 14}, "seq_len: 14; 4 facts and their questions take 15"),
        ({"near": 1.5}, "near: 1.5; must be from 0 to 1"),
        ({"noise": 0}, "noise: 0"),
    ],
)
def test_bad_settings(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        structure(StreamConfig, {"kind": "noisy_recall", **fields}, "stream")


def test_bad_calls() -> None:
    with pytest.raises(ConfigError, match="use train or val"):
        CONFIG.build("test", seed=0, rank=0, world=1)
    with pytest.raises(ConfigError, match="lengths: 10; 5 facts and a question take 11"):
        CONFIG.question(0, 0, 10, 0.5)
    with pytest.raises(ConfigError, match="depths: 1\\.5"):
        CONFIG.question(0, 0, 30, 1.5)


def test_the_shortest_rows_hold_everything() -> None:
    config = NoisyRecallConfig(seq_len=19, pairs=5, keys=9, noise=2)
    for index in range(50):
        tokens, asked = config.row(0, index)
        assert len(tokens) == 20
        assert len(set(asked.tolist())) == 5
    assert math.isclose(sum(tokens < 9), 10)
