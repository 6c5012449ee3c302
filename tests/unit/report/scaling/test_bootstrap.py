"""Intervals hold what is true as often as they say, also with three seeds."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nl.config import ConfigError
from nl.report.scaling.bootstrap import LEAST_SEEDS, Estimate, band, estimate
from nl.report.scaling.documents import Table, fold
from nl.report.scaling.effects import (
    difference,
    level,
    one_cell,
    outside,
    permutation,
    run_levels,
    transfer,
)

REPEATS = 300


def holds(found: Estimate, truth: float) -> tuple[bool, bool]:
    percentile = found.low[0] <= truth <= found.high[0]
    return percentile, found.bca_low[0] <= truth <= found.bca_high[0]


def coverage(world: Any, size: int, repeats: int = REPEATS) -> tuple[float, float]:
    hits = []
    for n in range(repeats):
        table = fold(world.runs(np.random.default_rng(n))).mean()
        found = estimate(table, difference(size), repeats=300, seed=n)
        hits.append(holds(found, world.effect * math.log(size)))
    percentile, bca = np.mean(hits, axis=0)
    return float(percentile), float(bca)


def test_coverage_of_the_difference_from_one_component(simulated: Any) -> None:
    # 300 repeats: 95 % +- 3 is 2.4 standard errors of the count itself.
    for found in coverage(simulated.World(), 2):
        assert 0.92 <= found <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("size", [2, 3])
def test_coverage_wherever_the_variance_comes_from(simulated: Any, seed: float, size: int) -> None:
    # Where only what a run does on a document varies, intervals are too wide, not too narrow.
    for found in coverage(simulated.World(seed=seed), size):
        assert 0.92 <= found <= (0.98 if seed else 1.0)


def test_level_holds_and_few_seeds_are_only_documents(simulated: Any) -> None:
    world = simulated.World(seeds=2, seed=0.0, document=0.3)
    hits = []
    for n in range(100):
        table = fold(world.runs(np.random.default_rng(n))).mean()
        found = estimate(table, level(3), repeats=300, seed=n)
        assert (world.seeds < LEAST_SEEDS, found.scope) == (True, "documents")
        assert found.shares["seeds"][0] == 0
        hits.append(holds(found, 3 + world.effect * math.log(3) + 1))
    assert all(0.9 <= one <= 0.99 for one in np.mean(hits, axis=0))


def test_band_holds_everywhere_at_once(simulated: Any) -> None:
    world = simulated.World(positions=6, token=0.5, cell=0.05, seed=0.02)
    everywhere, each = [], []
    for n in range(60):
        table = fold(world.runs(np.random.default_rng(n)))
        found = band(table, difference(2), repeats=200, seed=n)
        away = np.abs(found.value - world.effect * math.log(2))
        everywhere.append(bool((away <= found.high - found.value).all()))
        each.append(bool((away <= 1.96 * found.se).all()))
    assert np.mean(everywhere) >= 0.9
    assert np.mean(each) < np.mean(everywhere)


def test_shuffled_labels_have_no_effect_of_k(simulated: Any) -> None:
    world = simulated.World(effect=0.0, foreign=0.0)
    hits, trends = [], []
    for n in range(80):
        rng = np.random.default_rng(n)
        runs = world.runs(rng)
        labels = rng.permutation(runs[0].component)  # one window per document
        documents = np.arange(len(labels))
        runs = [replace(one, component=labels, document=documents) for one in runs]
        table = fold(runs).mean()
        hits.append(holds(estimate(table, difference(3), repeats=300, seed=n), 0.0))
        trends.append(permutation(*run_levels(table), repeats=300, seed=n)[1] < 0.05)
    assert all(one >= 0.9 for one in np.mean(hits, axis=0))
    assert np.mean(trends) <= 0.12


def test_a_trend_is_found_and_equal_seeds_give_equal_numbers(simulated: Any) -> None:
    world = simulated.World(effect=0.2)
    table = fold(world.runs(np.random.default_rng(0))).mean()
    slope, p = permutation(*run_levels(table), repeats=500)
    assert slope == pytest.approx(0.2, abs=0.06)
    assert p < 0.01
    one, other = (estimate(table, difference(3), repeats=200, seed=7) for _ in range(2))
    assert np.array_equal(one.draws, other.draws)
    assert one.low[0] < world.effect * math.log(3) < one.high[0]
    assert one.clear()
    third = estimate(table, difference(3), repeats=200, seed=8)
    assert not np.array_equal(one.draws, third.draws)


def test_pairing_takes_what_is_hard_for_all_out(simulated: Any) -> None:
    world = simulated.World(document=3.0, seed=0.02, cell=0.02)
    table = fold(world.runs(np.random.default_rng(3))).mean()
    paired = estimate(table, difference(3), repeats=400)
    levels = [estimate(table, level(size), repeats=400) for size in (1, 3)]
    assert paired.se[0] < 0.05 * math.hypot(*(one.se[0] for one in levels))


def test_ends_agree_with_scipy(simulated: Any) -> None:
    stats = pytest.importorskip("scipy.stats")
    world = simulated.World(components=1, seeds=1, documents=60, seed=0.0, cell=0.0)
    runs = world.runs(np.random.default_rng(5))
    skewed = replace(runs[0], nll=np.exp(runs[0].nll - 3))
    found = estimate(fold([skewed]).mean(), level(1), repeats=4000)
    values = skewed.nll.mean(1)
    for method, ends in (
        ("percentile", (found.low[0], found.high[0])),
        ("BCa", (found.bca_low[0], found.bca_high[0])),
    ):
        theirs = stats.bootstrap(
            (values,), np.mean, method=method, n_resamples=4000, random_state=1
        ).confidence_interval
        # Ours are wider by sqrt(60 / 59) and by Student's quantile at 59 degrees: 2.9 %.
        centre, wider = values.mean(), math.sqrt(60 / 59) * 2.001 / 1.96
        for mine, other in zip(ends, theirs, strict=True):
            assert (mine - centre) / (other - centre) == pytest.approx(wider, rel=0.06)


def test_components_may_be_drawn_too(simulated: Any) -> None:
    world = simulated.World(components=5, sizes=(1,), seed=0.0, document=0.05, cell=0.0)
    table = fold(world.runs(np.random.default_rng(0))).mean()
    fixed = estimate(table, level(1), repeats=300)
    drawn = estimate(table, level(1), repeats=300, random_components=True)
    # Components lie one nat apart: sd of five of them is 1.41, of their mean 0.63.
    assert fixed.se[0] < 0.05
    assert drawn.se[0] == pytest.approx(math.sqrt(2 / 5), rel=0.15)


def test_transfer_and_outside(simulated: Any) -> None:
    world = simulated.World(document=0.0, seed=0.0, cell=0.0)
    table = fold(world.runs(np.random.default_rng(0))).mean()
    grid = estimate(table, transfer, repeats=2).value.reshape(3, 3)
    assert grid == pytest.approx(3 + np.arange(3)[None] + 1.0 - np.eye(3))
    assert estimate(table, outside(2), repeats=2).value[0] == pytest.approx(
        3 + 1 + 1 + world.effect * math.log(2)
    )
    cell = estimate(table, one_cell((0, 2), 2), repeats=2).value[0]
    assert cell == pytest.approx(3 + 2 + world.effect * math.log(2))


def test_levels_of_a_nested_chain(simulated: Any) -> None:
    world = simulated.World(components=4, document=0.0, seed=0.0, cell=0.0)
    runs = [one for one in world.runs(np.random.default_rng(0)) if one.seed == 0]
    chain = [one for one in runs if one.subset in ((0,), (0, 1), (0, 1, 2, 3))]
    ks, levels = run_levels(fold(chain).mean())
    assert ks == [1, 2, 4]
    assert levels == pytest.approx([world.effect * math.log(k) for k in ks])
    apart = [one for one in runs if one.subset in ((0,), (1, 2))]
    assert run_levels(fold(apart).mean()) == ([], [])


def test_runs_that_cannot_be_paired_are_refused(simulated: Any) -> None:
    runs = simulated.World().runs(np.random.default_rng(0))
    other = replace(runs[1], digest="another", source="b")
    with pytest.raises(ConfigError, match=r"b: scored on other windows than .*another"):
        fold([runs[0], other])
    with pytest.raises(ConfigError, match="several runs of one training and seed"):
        fold([runs[0], runs[0]])
    few = replace(runs[0], document=np.zeros_like(runs[0].document))
    with pytest.raises(ConfigError, match="component c0: 1 documents; at least 2"):
        fold([few])
    with pytest.raises(ConfigError, match="K = 2: no component of it has a run of its own"):
        estimate(fold(runs[9:]).mean(), difference(2), repeats=2)


def test_folding_adds_windows_of_documents(simulated: Any) -> None:
    world = simulated.World(windows=3, positions=4, token=1.0)
    runs = world.runs(np.random.default_rng(1))
    table: Table = fold(runs)
    mine = (runs[4].component == 2) & (runs[4].document == 5)
    assert table.sums[2][4, 5] == pytest.approx(runs[4].nll[mine].sum(0))
    assert table.windows[2][5] == 3
    assert table.mean().sums[2][4, 5] == pytest.approx(runs[4].nll[mine].mean(1).sum())
    less = table.drop(lambda subset: len(subset) == 3)
    assert (len(less.runs), len(less.subsets), len(less.sums[0])) == (18, 6, 18)
