"""The labels of the published sizes are true."""

from __future__ import annotations

import pytest

import nl.assembly  # noqa: F401 - registers every part
from nl.config import structure
from nl.config.groups import ModelConfig
from nl.config.hydra import compose
from nl.models.presets import count_parameters

LABELS = {"pilot": 160e6, "mid": 760e6, "target": 1.3e9}


@pytest.mark.parametrize("name", [*LABELS, *(f"hope/{label}" for label in LABELS)])
def test_size_is_within_five_percent_of_its_label(name: str) -> None:
    config = structure(ModelConfig, compose(name)["model"], "model")
    label = LABELS[name.removeprefix("hope/")]
    assert abs(count_parameters(config) / label - 1) < 0.05
