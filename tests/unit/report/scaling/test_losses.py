"""Files of losses per token: what is read, what is refused; the ensemble of experts."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nl.config import ConfigError
from nl.core.ergodic import Mixture, bayes_filter, parse
from nl.report.scaling.ensemble import alone_nll, mixture_nll
from nl.report.scaling.losses import read_losses
from nl.report.scaling.power import needed, power

CHAINS = (
    ([2 / 3, 1 / 3], [[0.9, 0.1], [0.2, 0.8]]),
    ([6 / 13, 7 / 13], [[0.3, 0.7], [0.6, 0.4]]),
    ([0.5, 0.5], [[0.5, 0.5], [0.5, 0.5]]),
)


def test_a_file_comes_back(simulated: Any, tmp_path: Path) -> None:
    one = simulated.World().runs(np.random.default_rng(0))[5]
    exact = {"bayes_nll": one.nll - 0.1}
    path = simulated.write(tmp_path / "nll.safetensors", replace(one, exact=exact), writes="on")
    found = read_losses(path)
    assert np.array_equal(found.nll, one.nll.astype(np.float32))
    assert np.array_equal(found.exact["bayes_nll"], exact["bayes_nll"].astype(np.float32))
    assert (found.components, found.subset, found.seed) == (("c0", "c1", "c2"), (1,), 2)
    assert (found.digest, found.split, found.more) == ("same", "test", {"writes": "on"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trained_on": ("c0", "x")}, r"trained_on: x; it knows c0, c1, c2"),
        ({"trained_on": ()}, "trained_on: empty"),
        ({"component": np.full(48, 3)}, "component: codes beyond the 3 names"),
        ({"document": np.zeros(4, np.int64)}, r"document: shape \(4,\); must be \(48,\)"),
        ({"exact": {"posterior": np.zeros((2, 2))}}, r"posterior: shape \(2, 2\)"),
        ({"nll": np.full((48, 2), np.inf)}, "nll: 96 of 96 numbers are not finite"),
    ],
)
def test_what_does_not_fit_is_refused(
    simulated: Any, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    one = simulated.World().runs(np.random.default_rng(0))[0]
    path = simulated.write(tmp_path / "nll.safetensors", replace(one, **change))
    with pytest.raises(ConfigError, match=message):
        read_losses(path)


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nll.safetensors"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_losses(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_losses(path)


def exact_filter(tokens: list[int]) -> tuple[list[float], list[list[float]]]:
    """-ln p of the mixture of chains, and posteriors before each token, one sequence, plainly."""
    weights = [1 / len(CHAINS)] * len(CHAINS)
    nll, before = [], []
    for n, token in enumerate(tokens):
        given = [p[token] if n == 0 else t[tokens[n - 1]][token] for p, t in CHAINS]
        joint = [w * g for w, g in zip(weights, given, strict=True)]
        nll.append(-math.log(math.fsum(joint)))
        before.append(list(weights))
        weights = [one / math.fsum(joint) for one in joint]
    return nll, before


def chain_nll(chain: Any, tokens: list[int]) -> list[float]:
    start, matrix = chain
    steps = [matrix[a][b] for a, b in itertools.pairwise(tokens)]
    return [-math.log(p) for p in (start[tokens[0]], *steps)]


def test_the_ensemble_of_exact_experts_is_the_exact_filter() -> None:
    rng = np.random.default_rng(0)
    windows = [[int(x) for x in rng.integers(0, 2, 30)] for _ in range(40)]
    experts = np.array([[chain_nll(chain, one) for one in windows] for chain in CHAINS])
    found = mixture_nll(experts)
    exact = np.array([exact_filter(one)[0] for one in windows])
    assert np.abs(found - exact).max() < 5e-15
    # The whole price of not knowing the component is -ln w_c at most, ln K here.
    price = (found - experts[0]).sum(1)
    assert price.max() < math.log(3) + 1e-12
    assert found.mean() > experts.min(0).mean()
    agreed = mixture_nll(experts[[1, 1]], np.array([0.9, 0.1]))
    assert np.abs(agreed - experts[1]).max() < 1e-14
    with pytest.raises(ConfigError, match=r"weights: \[0.5, 0.5\]; 3 positive numbers"):
        mixture_nll(experts, np.array([0.5, 0.5]))


def test_the_ensemble_is_the_filter_of_the_core() -> None:
    names = ("mess3:0.05:0.85", "mess3:0.15:0.6", "chain:3:1:0.5:2")
    sources = tuple(parse(name) for name in names)
    mixture = Mixture(sources)
    tokens = np.random.default_rng(0).integers(0, 3, (50, 64))
    told = bayes_filter(mixture, tokens)
    experts = np.stack([bayes_filter(Mixture((one,)), tokens).nll for one in sources])
    assert np.abs(mixture_nll(experts) - told.nll).max() < 5e-15
    alone = alone_nll(told.nll, told.posterior[:, :, 1], 1 / 3, before=True)
    assert np.abs(alone[:, :-1] - experts[1][:, :-1]).max() < 1e-9


@pytest.mark.parametrize("before", [True, False])
def test_the_loss_of_a_source_alone_from_the_filter_of_the_mixture(before: bool) -> None:
    tokens = [int(x) for x in np.random.default_rng(1).integers(0, 2, 20)]
    nll, posteriors = exact_filter(tokens)
    shown = posteriors if before else exact_filter([*tokens, 0])[1][1:]
    posterior = np.array([[one[1] for one in shown]])
    found = alone_nll(np.array([nll]), posterior, 1 / 3, before=before)[0]
    known = len(tokens) - before
    assert found[:known] == pytest.approx(chain_nll(CHAINS[1], tokens)[:known], abs=1e-13)
    assert np.isnan(found[known:]).all()


def test_windows_needed(simulated: Any) -> None:
    effect = math.log(5) / 99
    assert needed(effect, 0.5, 0.1) == (14850, 297)
    assert needed(effect, 0.9, 0.2)[1] == 1188
    world = simulated.World(documents=400, document=0.5, cell=0.1, seed=0.0, positions=99)
    runs = world.runs(np.random.default_rng(0))
    found = power(runs[0], runs[1], 3)
    assert found.effect == pytest.approx(math.log(3) / 99)
    assert found.deviation == pytest.approx(math.hypot(0.5, 0.1), rel=0.05)
    assert found.paired_deviation == pytest.approx(math.sqrt(2) * 0.1, rel=0.05)
    assert found.unpaired > 10 * found.paired
