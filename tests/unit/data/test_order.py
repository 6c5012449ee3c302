"""Permutations are permutations; mixtures are exact after any number of rows."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from nl.data.order import (
    PERIOD,
    KeyedPermutation,
    MixturePlan,
    SequentialPlan,
    integer_weights,
    mixture_pattern,
)


def whole(size: int, key: int, epoch: int) -> np.ndarray:
    return KeyedPermutation(size, key)(np.arange(size), np.full(size, epoch))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 100, 1023, 1024, 1025, 5000])
def test_every_element_once(size: int) -> None:
    assert sorted(whole(size, 3, 0).tolist()) == list(range(size))
    assert sorted(whole(size, 3, 9).tolist()) == list(range(size))


def test_epochs_and_keys_differ_and_repeat_exactly() -> None:
    first = whole(1000, 1, 0)
    assert (first == whole(1000, 1, 0)).all()
    for other in (whole(1000, 1, 1), whole(1000, 2, 0)):
        assert (first == other).mean() < 0.02
    assert (first == np.arange(1000)).mean() < 0.02


def test_looks_shuffled() -> None:
    places = whole(10_000, 5, 0)
    assert abs(np.corrcoef(np.arange(10_000), places)[0, 1]) < 0.05
    neighbours = np.abs(np.diff(places))
    assert abs(neighbours.mean() / (10_000 / 3) - 1) < 0.05


def test_mixed_epochs_in_one_call_and_large_sizes() -> None:
    order = KeyedPermutation(50, 11)
    index, epoch = np.tile(np.arange(50), 3), np.repeat([4, 0, 7], 50)
    got = order(index, epoch).reshape(3, 50)
    for row, number in zip(got, (4, 0, 7), strict=True):
        assert (row == whole(50, 11, number)).all()
    size = 10**15 + 37
    images = KeyedPermutation(size, 2)(np.arange(1000), np.zeros(1000, np.int64))
    assert len(set(images.tolist())) == 1000
    assert images.min() >= 0
    assert size // 2 < images.max() < size


def test_size_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        KeyedPermutation(0, 1)


@pytest.mark.parametrize(
    ("weights", "parts"),
    [([1], [1]), ([0.5, 0.5], [1, 1]), ([0.7, 0.3], [7, 3]), ([2, 1, 1], [2, 1, 1])],
)
def test_integer_weights_are_exact(weights: list[float], parts: list[int]) -> None:
    assert integer_weights(weights) == parts


def test_integer_weights_round_what_they_must() -> None:
    parts = integer_weights([123457, 7654321, 1])
    assert sum(parts) == PERIOD
    assert parts == [158, 9841, 1]


@pytest.mark.parametrize("parts", [[1], [1, 1], [7, 3], [1, 99], [5, 3, 1], [13, 11, 7, 5, 3, 1]])
def test_counts_are_within_one_of_exact(parts: list[int]) -> None:
    pattern = mixture_pattern(parts) * 3
    counts, period = [0] * len(parts), sum(parts)
    for row, source in enumerate(pattern, 1):
        counts[source] += 1
        for count, part in zip(counts, parts, strict=True):
            assert abs(count - Fraction(part * row, period)) < 1
    assert counts == [3 * part for part in parts]


def test_mixture_plan_equals_a_counting_loop() -> None:
    sizes, names, weights = [5, 11, 3], ["a", "b", "c"], [0.5, 0.3, 0.2]
    plan = MixturePlan(sizes, names, weights, seed=4)
    pattern = mixture_pattern([5, 3, 2])
    drawn: list[list[int]] = [[], [], []]
    rows = np.arange(400)
    sources, indices = plan.locate(rows)
    for row, source, index in zip(rows.tolist(), sources.tolist(), indices.tolist(), strict=True):
        assert source == pattern[row % 10]
        drawn[source].append(index)
    for size, seen in zip(sizes, drawn, strict=True):
        for start in range(0, len(seen) - size, size):
            assert sorted(seen[start : start + size]) == list(range(size))
    assert plan.tags(0) == {"epoch": 0}
    assert plan.tags(30) == {"epoch": 3}  # 15, 9 and 6 rows: a has done 3 epochs of 5


def test_mixture_plan_is_random_access() -> None:
    plan = MixturePlan([70, 30], ["a", "b"], [0.25, 0.75], seed=1)
    every = np.stack(plan.locate(np.arange(1000)))
    some = np.asarray([999, 3, 500, 3, 10**12])
    assert (np.stack(plan.locate(some))[:, :4] == every[:, some[:4]]).all()


def test_sequential_plan_reads_all_in_order() -> None:
    plan = SequentialPlan([2, 0, 3])
    source, index = plan.locate(np.arange(5))
    assert plan.total == 5
    assert source.tolist() == [0, 0, 2, 2, 2]
    assert index.tolist() == [0, 1, 0, 1, 2]
