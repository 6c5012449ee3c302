"""sign_of_winner: labels against the rule in words, balance, disjoint splits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from nl.config import ConfigError, structure
from nl.config.groups import StreamConfig
from nl.data.sign_of_winner import SignOfWinnerConfig, draw_balanced, sign_of_winner

SIZES = {"train": 600, "val": 200, "test": 200}
CONFIG = SignOfWinnerConfig(
    train_size=600, val_size=200, test_size=200, batch_size=50, steps=4, features=3
)


def rows(split: str, seed: int = 0) -> dict[bytes, int]:
    batches = itertools.islice(CONFIG.build(split, seed=seed, rank=0, world=1), SIZES[split] // 50)
    return {
        row.numpy().tobytes(): int(label)
        for batch in batches
        for row, label in zip(batch.inputs, batch.targets, strict=True)
    }


def test_labels_are_the_rule() -> None:
    for key, label in rows("train").items():
        sums = np.frombuffer(key, np.float32).reshape(4, 3).astype(np.float64).sum(1)
        assert label == int(max(sums, key=abs) > 0)


def test_one_pass_is_every_example_once_and_balanced() -> None:
    for split, size in SIZES.items():
        found = rows(split)
        assert len(found) == size
        assert sum(found.values()) == size // 2


def test_splits_are_disjoint_and_seeds_differ() -> None:
    train, val, test = (rows(split).keys() for split in SIZES)
    assert not train & val
    assert not train & test
    assert not val & test
    assert not train & rows("train", seed=1).keys()
    assert rows("val", seed=1).keys().isdisjoint(val)


def test_drawing_is_repeatable_and_grows_without_changing() -> None:
    small, large = (draw_balanced(4, 3, "val", size, 0)[0] for size in (50, 200))
    assert (draw_balanced(4, 3, "val", 50, 0)[0] == small).all()
    known = {row.tobytes() for row in large}
    assert all(row.tobytes() in known for row in small)


def test_ties_have_no_label() -> None:
    inputs = np.asarray([[[1, 1], [-2, 0]], [[3, 0], [-1, -1]], [[0, 0], [0, 0]]], np.float32)
    labels, valid = sign_of_winner(inputs)
    assert valid.tolist() == [False, True, False]
    assert labels[1] == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps: 0; must be >= 1"),
        ({"val_size": 7}, "val_size: 7; must be even"),
        ({"batch_size": 0}, "batch_size: 0"),
    ],
)
def test_bad_settings(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        structure(StreamConfig, {"kind": "sign_of_winner", **fields}, "stream")
    with pytest.raises(ConfigError, match="use train, val, test"):
        CONFIG.build("dev", seed=0, rank=0, world=1)
