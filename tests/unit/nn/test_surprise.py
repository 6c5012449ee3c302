"""The surprise gate against a loop over tokens, and where its running threshold goes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from nl.config import ConfigError, structure
from nl.nn.surprise import SurpriseConfig, fresh_surprise, surprise_gate

TILE = 4


def run(config: SurpriseConfig, signal: torch.Tensor, tile: int = TILE) -> tuple[torch.Tensor, Any]:
    state, out = fresh_surprise(len(signal), signal), []
    for start in range(0, signal.shape[1], tile):
        part = signal[:, start : start + tile]
        gated, state = surprise_gate(part, state, config, closes=part.shape[1] == tile)
        out.append(gated)
    return torch.cat(out, 1), state


def naive(config: SurpriseConfig, signal: torch.Tensor) -> tuple[torch.Tensor, float, float]:
    """One row, one token at a time, plain floats."""
    threshold = config.threshold if config.threshold is not None else math.inf
    out, norms, opened, seen = [], [], 0.0, 0
    for t, d in enumerate(signal):
        s = float(d.norm())
        weight = 1.0
        if math.isfinite(threshold):
            weight = float(s >= threshold)
            if config.gate == "soft":
                weight = 1 / (1 + math.exp(-(s - threshold) / (config.temperature * threshold)))
        if s > 0:
            seen, opened = seen + 1, opened + weight
            norms.append((s, s < (threshold if math.isfinite(threshold) else 0.0)))
        out.append(d * weight)
        if (t + 1) % TILE == 0 and config.quantile is not None:
            if norms:
                share = sum(b for _, b in norms) / len(norms)
                mean = sum(s for s, _ in norms) / len(norms)
                step = math.exp(config.step * (config.quantile - share))
                threshold = threshold * step if math.isfinite(threshold) else mean
            norms = []
    return torch.stack(out), opened / max(seen, 1), threshold


CONFIGS = (
    {"gate": "hard", "threshold": 1.5},
    {"gate": "hard", "quantile": 0.7},
    {"gate": "soft", "threshold": 1.5},
    {"gate": "soft", "quantile": 0.3, "step": 0.2, "temperature": 0.5},
)


@pytest.mark.parametrize("data", CONFIGS)
def test_equals_a_loop_over_tokens(data: dict[str, Any]) -> None:
    config = structure(SurpriseConfig, data)
    signal = torch.randn(2, 22, 3, dtype=torch.float64)
    signal[0, 5] = 0
    signal[1, 8:12] = 0  # a whole tile without a scored token
    gated, state = run(config, signal)
    for row in range(2):
        expected, rate, threshold = naive(config, signal[row])
        assert (gated[row] - expected).abs().max() < 1e-12
        assert float(state.opened[row] / state.seen[row]) == pytest.approx(rate, abs=1e-12)
        if config.quantile is not None:
            assert float(state.threshold[row]) == pytest.approx(threshold, rel=1e-12)


def test_a_running_threshold_finds_its_quantile() -> None:
    config = SurpriseConfig(gate="hard", quantile=0.8, step=0.1)
    signal = torch.randn(4, 16000, 3, dtype=torch.float64)
    gated, state = run(config, signal, tile=16)
    late = gated[:, 8000:].norm(dim=-1) > 0
    assert late.double().mean(1).sub(0.2).abs().max() < 0.03
    exact = signal.norm(dim=-1).quantile(0.8)
    assert (state.threshold / exact - 1).abs().max() < 0.1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"gate": "hard"}, "either threshold or quantile"),
        ({"gate": "soft", "threshold": 1.0, "quantile": 0.5}, "not both"),
        ({"threshold": 1.0}, "1.0, None; with gate=none every token writes: set gate=hard"),
        ({"gate": "hard", "threshold": -1.0}, "threshold: -1.0; must be >= 0"),
        ({"gate": "hard", "quantile": 1.0}, "quantile: 1.0; must be in (0, 1)"),
        ({"gate": "hrd", "threshold": 1.0}, "Did you mean 'hard'?"),
        ({"step": 0.0}, "step: 0.0; must be > 0"),
        ({"temperature": 0.0}, "temperature: 0.0; must be > 0"),
    ],
)
def test_bad_values_are_refused(data: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        structure(SurpriseConfig, data, "surprise")
    assert words in str(error.value)
