"""Ergodic sources: published values to 1e-6, identities to 1e-9, three ways agree, refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from nl.core.ergodic import (
    Mixture,
    Source,
    SourceError,
    bayes_filter,
    bayes_filter_reference,
    chain,
    coin,
    entropies,
    entropy_rate,
    enumerated,
    kl,
    kl_rate,
    merged,
    parse,
    rate_bounds,
    sampled,
)
from nl.core.ergodic.specs import permutation

FIRST, SECOND = parse("mess3:0.05:0.85"), parse("mess3:0.15:0.6")
PAIR = Mixture((FIRST, SECOND))
CHAINS = Mixture(
    (
        chain(np.array([[0.9, 0.1], [0.2, 0.8]])),
        chain(np.array([[0.3, 0.7], [0.6, 0.4]])),
        coin(0.5),
    )
)
MANY = [FIRST, SECOND, *(parse(n) for n in ("z1r", "golden", "even", "rrxor", "chain:3:2:0.5:1"))]
MANY += [parse("hmm:3:4:2"), parse("unifilar:3:4:2"), parse("coin:r5"), parse("mess3:r5")]


def close(found: Any, wanted: list[float]) -> None:
    """To the six digits that are known, half a unit of the last."""
    assert np.abs(np.asarray(found)[: len(wanted)] - wanted).max() < 1.0e-6


@pytest.mark.parametrize(
    ("mixture", "wanted"),
    [
        (
            Mixture((FIRST,)),
            [
                1.098612,
                0.857719,
                0.813356,
                0.798118,
                0.794740,
                0.793783,
                0.793543,
                0.793480,
                0.793463,
                0.793459,
                0.793458,
            ],
        ),
        (
            Mixture((SECOND,)),
            [
                1.098612,
                1.091068,
                1.089391,
                1.089004,
                1.088915,
                1.088894,
                1.088890,
                1.088889,
                1.088888,
            ],
        ),
        (
            PAIR,
            [
                1.098612,
                1.014796,
                0.988412,
                0.979023,
                0.974764,
                0.972029,
                0.969855,
                0.967963,
                0.966248,
                0.964680,
                0.963239,
                0.961907,
            ],
        ),
        (
            Mixture(PAIR.sources, (), 0.1),
            [
                1.098612,
                1.030452,
                1.013351,
                1.008608,
                1.006870,
                1.005947,
                1.005346,
                1.004925,
                1.004622,
                1.004401,
            ],
        ),
        (Mixture((parse("z1r"),)), [0.693147, 0.636514, 0.462098, 0.231049]),
    ],
)
def test_enumeration_gives_the_reference_values(mixture: Mixture, wanted: list[float]) -> None:
    close(entropies(mixture, len(wanted)), wanted)


@pytest.mark.parametrize(
    ("mixture", "wanted"),
    [
        (
            Mixture(tuple(coin(p) for p in (0.1, 0.5, 0.9))),
            {1: 0.693147, 2: 0.599140, 4: 0.532490, 8: 0.490188, 16: 0.461639, 32: 0.449546}
            | {64: 0.447807, 100: 0.447772},
        ),
        (
            CHAINS,
            {1: 0.689490, 2: 0.679567, 3: 0.656947, 4: 0.641495, 8: 0.611799, 16: 0.590210}
            | {32: 0.580057, 64: 0.576311},
        ),
        (
            Mixture((parse("z1r"), coin(0.5))),
            {1: 0.693147, 2: 0.679193, 3: 0.658863, 4: 0.591900, 8: 0.516521, 16: 0.465097}
            | {32: 0.462103, 40: 0.462098},
        ),
    ],
)
def test_merged_beliefs_give_the_reference_values(
    mixture: Mixture, wanted: dict[int, float]
) -> None:
    found = merged(mixture, max(wanted))
    for t, value in wanted.items():
        assert found[t - 1] == pytest.approx(value, abs=1e-6), t
    assert np.abs(found[:10] - entropies(mixture, 10)).max() < 1e-9


@pytest.mark.parametrize(
    ("count", "wanted"),
    [
        (2, [0.13081, 0.09923, 0.06403, 0.02969, 0.00742, 0.00057, 0, 0]),
        (4, [0.17398, 0.12432, 0.07868, 0.04507, 0.02352, 0.00981, 0.00218, 0.00047]),
        (8, [0.18745, 0.13261, 0.08390, 0.04858, 0.02638, 0.01362, 0.00655, 0.00370]),
        (32, [0.19268, 0.13616, 0.08642, 0.05028, 0.02752, 0.01449, 0.00745, 0.00481]),
    ],
)
def test_coins_on_a_grid_cost_half_of_one_over_t(count: int, wanted: list[float]) -> None:
    coins = tuple(coin((k + 0.5) / count) for k in range(count))
    rate = float(np.mean([entropy_rate(one) for one in coins]))
    found = merged(Mixture(coins), 100) - rate
    places = np.array([1, 2, 4, 8, 16, 32, 64, 100]) - 1
    assert np.abs(found[places] - wanted).max() < 6e-6


def test_identities_of_mixtures() -> None:
    for mixture in (PAIR, CHAINS, Mixture(PAIR.sources, (0.3, 0.7))):
        blocks = enumerated(mixture, 10)
        weights = mixture.weights
        prior = -float(weights @ np.log(weights))
        told = blocks.entropy - weights @ blocks.own  # D_t
        assert (np.diff(blocks.entropy) < 1e-12).all()
        assert (told > -1e-12).all()
        assert np.abs(told.cumsum() - (prior - blocks.doubt)).max() < 1e-9
        assert np.abs(weights @ blocks.cross - blocks.entropy).max() < 1e-9
        assert (blocks.price.sum(1) < -np.log(weights) + 1e-12).all()
        for c in range(len(weights)):
            alone = entropies(mixture.alone(c), 10)
            assert np.abs(alone - blocks.own[c]).max() < 1e-9
    found = enumerated(PAIR, 12).doubt
    close(
        math.log(2) - found,
        [
            0,
            0.040403,
            0.077441,
            0.112904,
            0.145841,
            0.176531,
            0.205170,
            0.231949,
            0.257021,
            0.280527,
            0.302593,
            0.323328,
        ],
    )


def test_rates_are_bracketed_and_exact_where_they_can_be() -> None:
    for t, low, other in (
        (2, 0.769231, 1.080565),
        (4, 0.791799, 1.088451),
        (8, 0.793450, 1.088887),
        (12, 0.793458, 1.088888),
    ):
        assert rate_bounds(FIRST, t)[0] == pytest.approx(low, abs=1e-6)
        assert rate_bounds(SECOND, t)[0] == pytest.approx(other, abs=1e-6)
    low, high = rate_bounds(FIRST, 12)
    assert low - 1e-6 < 0.793458 < high + 1e-6 < low + 2e-6
    rates = [entropy_rate(source) for source in CHAINS.sources]
    close(rates, [0.383523, 0.644328, 0.693147])
    assert np.mean(rates) == pytest.approx(0.573666, abs=1e-6)
    assert entropy_rate(parse("z1r")) == pytest.approx(math.log(2) / 3)
    for name in ("golden", "even", "rrxor"):
        source = parse(name)
        assert entropy_rate(source) == pytest.approx(2 * math.log(2) / 3)
        below, above = rate_bounds(source, 8)
        assert below - 1e-9 <= entropy_rate(source) <= above + 1e-9
    with pytest.raises(SourceError, match="rate_bounds"):
        entropy_rate(FIRST)


def test_stationary_solves_its_equation() -> None:
    for source in MANY:
        assert np.abs(source.stationary @ source.transitions - source.stationary).max() < 1e-12
        assert source.stationary.sum() == pytest.approx(1)
    close(CHAINS.sources[0].stationary, [0.666667, 0.333333])


@pytest.mark.parametrize("hazard", [0.0, 0.1])
def test_the_filter_is_the_ratio_of_its_definition(hazard: float) -> None:
    mixture = Mixture(tuple(MANY), (), hazard)
    drawn = np.random.default_rng(0).random((24, sum(mixture.uniforms) + 11 * mixture.uniforms[1]))
    tokens = mixture.sample(drawn).tokens
    told = bayes_filter(mixture, tokens)
    assert np.abs(told.predicted.sum(2) - 1).max() < 1e-12
    for row in range(len(tokens)):
        slow = bayes_filter_reference(mixture, tokens[row])
        for fast, part in zip(told, slow, strict=True):
            assert np.abs(fast[row] - part[0]).max() < 1e-9


def test_a_hazard_near_zero_is_the_mixture() -> None:
    tokens = PAIR.sample(np.random.default_rng(1).random((16, 2 + 20))).tokens
    plain = bayes_filter(PAIR, tokens)
    almost = bayes_filter(Mixture(PAIR.sources, (), 1e-14), tokens)
    for one, other in zip(plain, almost, strict=True):
        assert np.abs(one - other).max() < 1e-9
    assert np.abs(entropies(Mixture(PAIR.sources, (), 1e-14), 8) - entropies(PAIR, 8)).max() < 1e-9


def test_sampling_agrees_with_enumeration_and_its_error_is_smaller() -> None:
    for mixture in (PAIR, Mixture(PAIR.sources, (), 0.1), Mixture(PAIR.sources, (0.25, 0.75))):
        exact = entropies(mixture, 10)
        found = sampled(mixture, 10, 4000, 3)
        assert (np.abs(found.values - exact) <= 4.5 * found.stderr + 1e-9).all()
        assert (np.abs(found.plain - exact) <= 4.5 * found.plain_stderr + 1e-9).all()
        assert (found.stderr[1:] < 0.6 * found.plain_stderr[1:]).all()


def test_samples_have_the_probabilities_of_the_model() -> None:
    mixture = Mixture((parse("z1r"), parse("coin:0.2"), FIRST), (0.2, 0.5, 0.3), 0.2)
    drawn = np.random.default_rng(5).random((40_000, 2 + 3 * 3))
    found = mixture.sample(drawn)
    codes = found.tokens @ np.array([9, 3, 1])
    counted = np.bincount(codes, minlength=27) / len(codes)
    matrices = mixture.joint()
    wanted = np.array(
        [
            (mixture.eta @ matrices[a] @ matrices[b] @ matrices[c]).sum()
            for a in range(3)
            for b in range(3)
            for c in range(3)
        ]
    )
    assert wanted.sum() == pytest.approx(1)
    assert np.abs(counted - wanted).max() < 4.5 * 0.5 / math.sqrt(len(codes))
    shares = np.bincount(found.component[:, -1], minlength=3) / len(codes)
    assert np.abs(shares - mixture.weights).max() < 0.015


def test_a_component_that_is_excluded_never_comes_back() -> None:
    mixture = Mixture((parse("z1r"), coin(0.5)))
    told = bayes_filter(mixture, np.array([[1, 1, 1, 0, 1, 0]]))
    assert told.posterior[0, 3:, 0].tolist() == [0, 0, 0]
    assert np.isfinite(told.nll).all()
    with pytest.raises(SourceError, match="no component can emit row 0 up to token 2"):
        bayes_filter(Mixture((parse("z1r"),)), np.array([[1, 1, 1]]))
    with pytest.raises(SourceError, match="the alphabet is 0 to 1"):
        bayes_filter(mixture, np.array([[2]]))


def test_a_thousand_symbols_do_not_underflow() -> None:
    mixture = Mixture((coin(0.1), coin(0.9)))
    tokens = np.zeros((1, 1500), dtype=np.int64)
    told = bayes_filter(mixture, tokens)
    assert told.nll[0, -1] == pytest.approx(-math.log(0.9))
    turned = bayes_filter(mixture, np.concatenate([tokens, 1 - tokens], axis=1))
    assert turned.posterior[0, -1, 1] == pytest.approx(0.1, abs=1e-9), "log weights remember"


def test_kl() -> None:
    truth = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    guess = np.array([[0.25, 0.25, 0.5], [0.5, 0.25, 0.25]])
    assert kl(truth, np.log(guess)).tolist() == pytest.approx([math.log(2), math.log(2)])
    first, second = parse("chain:3:1:0.5:1"), parse("chain:3:1:0.5:2")
    gain = kl_rate(first, second)
    tokens = Mixture((first,)).sample(np.random.default_rng(0).random((200, 2 + 300))).tokens
    nll = [bayes_filter(Mixture((one,)), tokens).nll[:, 100:].mean() for one in (second, first)]
    assert gain > 0
    assert nll[0] - nll[1] == pytest.approx(gain, rel=0.05)
    p, q = first.emission, second.emission
    assert gain == pytest.approx(first.stationary @ (p * np.log(p / q)).sum(1))
    assert kl_rate(first, parse("chain:3:1:0.5:1@p0")) == pytest.approx(0)
    moved = kl_rate(first, parse("chain:3:1:0.5:2@p4"))
    order = permutation(3, 4)
    wanted = np.empty_like(q)
    wanted[np.ix_(order, order)] = q
    assert moved == pytest.approx(first.stationary @ (p * np.log(p / wanted)).sum(1))
    assert kl_rate(parse("coin:0.5"), parse("coin:0")) == math.inf
    with pytest.raises(SourceError, match="only of unifilar"):
        kl_rate(FIRST, SECOND)


def test_refusals() -> None:
    with pytest.raises(SourceError, match=r"not stochastic, row 0 .* adds up to 0.9"):
        Source("bad", np.array([[[0.4]], [[0.5]]]))
    with pytest.raises(SourceError, match="entries must be finite"):
        Source("bad", np.array([[[-0.1]], [[1.1]]]))
    with pytest.raises(SourceError, match="reducible, state 1 is never reached from 0"):
        Source("bad", np.array([[[0.5, 0], [0.5, 0]], [[0.5, 0], [0, 0.5]]]))
    with pytest.raises(SourceError, match=r"must be \(V, S, S\)"):
        Source("bad", np.ones((2, 2)))
    with pytest.raises(SourceError, match="weights: 3 for 2 components"):
        Mixture(PAIR.sources, (0.2, 0.3, 0.5))
    with pytest.raises(SourceError, match="add up to 1"):
        assert Mixture(PAIR.sources, (0.2, 0.3)).weights
    with pytest.raises(SourceError, match="components: empty"):
        Mixture(())
    with pytest.raises(SourceError, match="hazard"):
        Mixture(PAIR.sources, (), 1.5)
    with pytest.raises(SourceError, match="use merged or sampled"):
        enumerated(PAIR, 30)
    with pytest.raises(SourceError, match="beliefs after"):
        merged(PAIR, 30, most=1000)
